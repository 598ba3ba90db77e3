"""An app as an AsyncAPI 3.1 document, and the JSON Schemas of its payloads: for the command line and the gateway."""
