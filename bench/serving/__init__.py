"""What is served to devices, browsers and other languages, beside bare servers that do the same work."""
