"""The API described: OpenAPI 3.1 of what is the same for every app, AsyncAPI 3.1 of this app's topics."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import tidings
from tidings.asyncapi.document import document
from tidings.kernel.message import JSON

from .cloudevents import BATCHED, STRUCTURED
from .publishing import LINES
from .site import Site, answering

PROBLEM, EVENTS, ANY = "application/problem+json", "text/event-stream", "*/*"
REFUSALS = {
    "401": "Nobody knows who asks: no token, or a wrong one.",
    "403": "Who asks may not do this.",
    "404": "There is nobody, or nothing, of this name.",
    "408": "The body came too slowly.",
    "413": "It is larger than may be.",
    "415": "This content type cannot be read here.",
    "422": "It makes no sense; `detail` says what, `mend` how to mend it.",
    "429": "Too much at once; `Retry-After` says when to come again.",
    "501": "This bus cannot do it.",
    "502": "The bus, or who answers, failed; `accepted`, `rejected` and `unknown` are indices into what was published.",
    "503": "The bus is away, or the server is stopping; `Retry-After` says when to come again.",
    "504": "No reply came in time.",
    "507": "The bus is full.",
}
ALWAYS, BODIES = ("401", "403", "422", "429", "501", "503"), ("408", "413", "415")

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
DURATION: Schema = {
    "oneOf": [
        {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d|w))+$", "maxLength": 20},
        {"type": "integer", "minimum": 0, "maximum": 999_999_999},
    ],
    "examples": ["5s", "250ms", "1h30m", 10],
}


def routes(site: Site) -> list[BaseRoute]:
    """The two documents. The first is the same for all; topics are told to those who may come."""

    @answering
    async def openapi(request: Request) -> Response:
        return _json({**described(), "servers": [{"url": request.scope.get("root_path", "") or "/"}]})

    @answering
    async def asyncapi(request: Request) -> Response:
        site.who(request)
        return _json(document(site.gateway.app, {"": [_server(request)]}))

    return [
        Route("/openapi.json", openapi, methods=["GET"], name="openapi"),
        Route("/asyncapi.json", asyncapi, methods=["GET"], name="asyncapi"),
    ]


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type=JSON, headers={"cache-control": "no-cache"})


def _server(request: Request) -> dict[str, str]:
    """This gateway: what is behind it is nobody's business."""
    path = request.scope.get("root_path", "")
    return {"host": request.url.netloc, "protocol": request.url.scheme, **({"pathname": path} if path else {})}


def described() -> dict[str, Any]:
    """The OpenAPI document, without its servers."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidings",
            "version": tidings.__version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Publish, follow and ask over HTTP. The topics of an app, and what their messages are, are"
            " at `/asyncapi.json`. Errors are problem details (RFC 9457). A WebSocket is at `/ws`.",
        },
        "security": [{}, {"token": []}],
        "paths": {
            "/topics": {"get": _topics()},
            "/topics/{topic}": {"post": _publish(), "get": _follow()},
            "/requests/{service}": {"post": _ask()},
            "/webhooks/{name}": {"post": _webhook()},
            "/asyncapi.json": {"get": _told("asyncapi", "The app's topics, as AsyncAPI 3.1", JSON, "401")},
            "/openapi.json": {"get": _told("openapi", "This document", JSON)},
            "/healthz": {"get": _told("alive", "Whether the server lives", JSON)},
            "/readyz": {"get": _ready()},
            "/metrics": {"get": _told("metrics", "Metrics of Prometheus; for admins", "text/plain", "401", "403")},
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Problem": PROBLEM_SCHEMA, "Published": PUBLISHED, "Event": EVENT},
            "responses": {status: _refusal(status, text) for status, text in REFUSALS.items()},
        },
    }


def _publish() -> Schema:
    return {
        "operationId": "publish",
        "summary": "Publish one message, or many",
        "description": "One: a body of any content type, as it is. Many: a line each (`application/x-ndjson`), or an"
        " element each of a JSON array (`?batch`). CloudEvents: binary (`ce-` headers), structured, batched.",
        "parameters": [
            _path("topic", "Where to: tokens with dots between them."),
            _query("key", TEXT, "Messages of one key stay in order."),
            _query("delay", DURATION, "Not before so long from now; a number is seconds."),
            _query("expires", DURATION, "Not after so long from now."),
            _query("priority", {"type": "integer", "minimum": 0, "maximum": 9}, "0 to 9, higher first."),
            _query("batch", {"enum": ["", "1", "true"]}, "The body is a JSON array of payloads."),
            _header("Idempotency-Key", {**TEXT, "minLength": 1, "maxLength": 255}, "The id of the message."),
        ],
        "requestBody": {
            "content": {
                JSON: {"schema": {}, "example": {"total": 3}},
                LINES: {"schema": TEXT, "example": '{"total": 3}\n{"total": 4}\n'},
                STRUCTURED: {"schema": _ref("schemas", "Event")},
                BATCHED: {"schema": {"type": "array", "items": _ref("schemas", "Event")}},
                "text/plain": {"schema": TEXT, "example": "hello"},
                "application/octet-stream": {"schema": {}},
            }
        },
        "responses": {
            "202": _content("The bus has accepted all of it.", JSON, _ref("schemas", "Published")),
            **_refused(*ALWAYS, *BODIES, "502", "507"),
        },
    }


def _follow() -> Schema:
    return {
        "operationId": "follow",
        "summary": "Server-Sent Events of a pattern's messages, each a structured CloudEvent",
        "parameters": [
            _path("topic", "A pattern: `*` is any token, a last `>` one or more."),
            _query("after", TEXT, "A cursor: the id of the last event that came."),
            _query("group", TEXT, "A durable group, of which each message goes to one member."),
            _query("credit", {"type": "integer", "minimum": 1}, "Messages at once; of a group."),
            _query("start", {"type": "number", "minimum": 0}, "Unix seconds from which a new group begins."),
            _query("ordered", {"type": "boolean"}, "One message of a key at a time; of a group."),
            _header("Last-Event-ID", TEXT, "As `after`; sent by browsers that come again."),
        ],
        "responses": {"200": _content("Events, without end.", EVENTS, TEXT), **_refused(*ALWAYS)},
    }


def _ask() -> Schema:
    return {
        "operationId": "ask",
        "summary": "Ask a service, and wait for its reply",
        "parameters": [
            _path("service", "Whom to ask."),
            _query("timeout", DURATION, "How long to wait; a number is seconds."),
            _header("Prefer", TEXT, "`wait=5`: as `timeout` (RFC 7240)."),
        ],
        "requestBody": {"content": {JSON: {"schema": {}, "example": "b-7"}, "text/plain": {"schema": TEXT}}},
        "responses": {
            "200": {
                "description": "The reply as it is; a streamed one in lines, or as events where `Accept` says so.",
                "content": {LINES: {"schema": TEXT}, EVENTS: {"schema": TEXT}, ANY: {"schema": {}}},
            },
            **_refused(*ALWAYS, *BODIES, "404", "502", "504"),
        },
    }


def _webhook() -> Schema:
    sent = {"type": "object", "required": ["id"], "properties": {"id": TEXT}}
    return {
        "operationId": "webhook",
        "summary": "A webhook of somebody else's, with its signature",
        "security": [{}],
        "parameters": [_path("name", "As it is called in the configuration.")],
        "requestBody": {"content": {JSON: {"schema": {}}}},
        "responses": {
            "200": _content("It came before.", JSON, sent),
            "202": _content("The bus has accepted it.", JSON, sent),
            **_refused(*ALWAYS, *BODIES, "404", "502", "507"),
        },
    }


def _topics() -> Schema:
    return _told("topics", "The topics that one may subscribe to", JSON, "401", "503")


def _ready() -> Schema:
    made = _told("ready", "Whether the server and its bus can be used", JSON)
    made["responses"]["503"] = _content("They cannot.", JSON, {"type": "object", "required": ["status", "why"]})
    return made


def _told(name: str, summary: str, kind: str, *refused: str) -> Schema:
    schema = {"type": "object"} if kind == JSON else TEXT
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": _content("It.", kind, schema), **_refused(*refused)},
    }


# -- pieces


def _path(name: str, description: str) -> Schema:
    schema = {**TEXT, "minLength": 1}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _query(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _header(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "header", "description": description, "schema": schema}


def _content(description: str, kind: str, schema: Schema) -> Schema:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _ref(where: str, name: str) -> Schema:
    return {"$ref": f"#/components/{where}/{name}"}


def _refused(*statuses: str) -> Schema:
    return {status: _ref("responses", status) for status in statuses}


def _refusal(status: str, text: str) -> Schema:
    made = _content(text, PROBLEM, _ref("schemas", "Problem"))
    if status in ("429", "503", "507"):
        made["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return made


INDICES: Schema = {"type": "array", "items": {"type": "integer"}}
PROBLEM_SCHEMA: Schema = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {**TEXT, "examples": ["urn:tidings:TDG-E065"]},
        "title": TEXT,
        "status": {"type": "integer"},
        "detail": TEXT,
        "why": TEXT,
        "mend": TEXT,
        "accepted": INDICES,
        "rejected": INDICES,
        "unknown": INDICES,
    },
}
PUBLISHED: Schema = {
    "type": "object",
    "required": ["ids"],
    "properties": {"ids": {"type": "array", "items": TEXT, "description": "In the order of what was sent."}},
}
SOME: Schema = {**TEXT, "minLength": 1}
EVENT: Schema = {
    "type": "object",
    "description": "A CloudEvent, version 1.0; other members are extension attributes.",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": SOME,
        "source": SOME,
        "type": SOME,
        "time": {**TEXT, "format": "date-time"},
        "datacontenttype": TEXT,
        "data": {},
        "data_base64": {**TEXT, "contentEncoding": "base64"},
        "partitionkey": {**TEXT, "description": "Messages of one key stay in order."},
    },
    "propertyNames": {"pattern": "^([a-z0-9]+|data_base64)$"},
    "additionalProperties": {"type": ["string", "integer", "boolean", "null"]},
}
