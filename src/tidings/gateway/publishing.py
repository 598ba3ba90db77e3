"""``POST /topics/{topic}``: publish one message or many. 202, with their ids, once the bus has accepted them.

One message: a body of any content type, as it is. Many: a line each (``application/x-ndjson``), or an element each of a
JSON array (``?batch``). CloudEvents: in each of the three modes. ``key``, ``delay``, ``expires`` and ``priority`` of
the query are for all of them. ``Idempotency-Key`` becomes the message's id, after the client's name
and a slash where there is one; of many, the ids begin with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tidings.channels import draft_fields
from tidings.kernel.errors import nearest
from tidings.kernel.message import JSON, Message

from .bodies import refuse_unreadable
from .cloudevents import BATCHED, STRUCTURED, drafts, is_json, media_type
from .refusals import Malformed, UnsupportedMediaType
from .rights import ANYONE
from .site import Site, answering
from .tracing import trace_headers

LINES = "application/x-ndjson"
MANY = (LINES, BATCHED, STRUCTURED)  # whose bodies are longer than those of their messages
OPTIONS = ("key", "delay", "expires", "priority", "batch")
QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
LONGEST = 255  # characters of an idempotency key

_raw = msgspec.json.Decoder(msgspec.Raw)
_raws = msgspec.json.Decoder(list[msgspec.Raw])


def routes(site: Site) -> list[BaseRoute]:
    """The route of this module."""

    @answering
    async def publish(request: Request) -> Response:
        who, limits = site.who(request), site.gateway.limits
        query, headers, topic = request.query_params, _plain(request), request.path_params["topic"]
        options, batch = _options(query), "batch" in query
        refuse_unreadable(headers)
        many = batch or media_type(headers.get("content-type", "")) in MANY
        async with site.intake.body(request, limits.batch if many else limits.body) as body:
            messages = with_options(read(topic, headers, body, batch), headers, options, many, who.name)
            sealed = await (await site.ready()).publish(who, messages)
        told = msgspec.json.encode({"ids": [message.id for message in sealed]})
        return Response(told, 202, media_type=JSON)

    return [Route("/topics/{topic}", publish, methods=["POST"])]


def _plain(request: Request) -> dict[str, str]:
    """Its headers, for many a look: Starlette's search a list each time."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}


def read(topic: str, headers: Mapping[str, str], body: bytes, batch: bool = False) -> list[Message[Any]]:
    """A request's drafts. ``batch``: the body is a JSON array of payloads.

    Raises ``Malformed`` for JSON that is none, ``UnsupportedMediaType`` for events that are not JSON.
    """
    kind = media_type(headers.get("content-type", ""))
    if kind == LINES or (batch and kind == JSON):
        return [Message(topic, bytes(raw), type=topic) for raw in _payloads(body, kind)]
    if batch:
        raise UnsupportedMediaType(f"?batch is for arrays in {JSON}, not for {kind or 'no content type'}")
    if is_json(kind) and body and not kind.startswith("application/cloudevents"):
        _payloads(body, "")
    return drafts(topic, headers, body)


def _payloads(body: bytes, kind: str) -> Sequence[msgspec.Raw]:
    try:
        body.decode()  # a raw value is not looked into
        if kind == LINES:
            return _raw.decode_lines(body)
        return _raws.decode(body) if kind else [_raw.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = {LINES: "not every line is JSON", JSON: "the body is no JSON array"}.get(kind, "the body is no JSON")
        raise Malformed(what, why=str(error), mend="mend it, or send another content type") from None


def _options(query: Mapping[str, str]) -> dict[str, Any]:
    """The fields that the query gives all messages. Raises ``Malformed``, ``InvalidOption``."""
    options: dict[str, Any] = {}
    for name, text in query.items():
        if name == "batch":
            if text not in ("", "1", "true"):
                raise Malformed(f"batch cannot be {text!r}", mend="?batch, or leave it out")
        elif name not in OPTIONS:
            raise Malformed(f"there is no option {name!r}", mend=nearest(name, OPTIONS) or ", ".join(OPTIONS))
        elif name != "key" and text.isdecimal() and len(text) <= 10:
            options[name] = int(text)
        else:
            options[name] = text
    return draft_fields(options)  # type: ignore[arg-type]


def with_options(
    messages: Sequence[Message[Any]], headers: Mapping[str, str], options: Mapping[str, Any], many: bool, whose: str
) -> Sequence[Message[Any]]:
    """Drafts with what the query and the headers say of them all. ``many``: they may be several. ``whose``: an
    idempotency key is the client's.
    """
    given, trace = headers.get("idempotency-key"), trace_headers(headers)
    if given is None and not trace and not options:
        return messages
    key, changed = _idempotency(given, whose) if given is not None else "", []
    for number, draft in enumerate(messages):
        fields = dict(options)
        if key and not draft.id:
            fields["id"] = f"{key}-{number}" if many else key
        if trace and not draft.header("traceparent"):
            fields["headers"] = (*(draft.headers or ()), *trace)
        changed.append(replace(draft, **fields))
    return changed


def _idempotency(given: str, whose: str) -> str:
    """The id that comes of a key: bare, as most send it, or in quotes, as the HTTP API draft has it.

    After the client's name, so that one's ids hide no other's.
    """
    quoted = QUOTED.fullmatch(given)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else given
    if not key or len(key) > LONGEST or not key.isascii() or not key.isprintable():
        raise Malformed("Idempotency-Key is no key", mend=f"1 to {LONGEST} printable ASCII characters")
    return key if whose == ANYONE.name and "/" not in key else f"{whose}/{key}"
