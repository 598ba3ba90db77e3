"""The CloudEvents HTTP protocol binding 1.0.2 (§3: binary, structured and batched mode), from and to messages.

Attributes are those of ``docs/wire.md``. A message's own headers are extension attributes where their names allow it;
the others travel together in ``tdgheaders``, a JSON array of [name, value] pairs. An event that comes in goes to the
topic it is posted to, whatever it says of where it has been.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from tidings.kernel.message import BINARY, JSON, Message
from tidings.transports._wire import HEADERS, attributes, data, instant, pairs, restored, unpaired

from .refusals import Malformed, UnsupportedMediaType

STRUCTURED, BATCHED = "application/cloudevents+json", "application/cloudevents-batch+json"
PREFIX = "ce-"

# Attributes that are fields of a message; these say where it has been, and are another's to say.
TIMES = ("time", "expirytime", "tdgdeliverytime")
FIELDS = {"specversion", "id", "source", "type", "partitionkey", "tdgpriority", "tdgreplyto", *TIMES}
FIELDS |= {"correlationid", "causationid", "datacontenttype"}
BODY = ("data", "data_base64")

SAFE = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")  # HTTP binding §3.1.3.2
NAME = re.compile(r"[a-z0-9]+")
SHORT = re.compile(r"[a-z0-9]{1,20}")  # what all can read, says the specification
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')

_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_raws = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_value = msgspec.json.Decoder(str | int | bool | None).decode


# -- messages as events


def event(message: Message[Any]) -> dict[str, Any]:
    """A sealed message in the JSON event format; ``tdgtopic`` is always there."""
    told: dict[str, Any] = _attributes(message)
    if message.content_type:
        told["datacontenttype"] = message.content_type
    body = data(message)
    if not message.content_type and isinstance(body.get("data"), str):
        told["datacontenttype"] = "text/plain"  # without one it would be read as JSON
    return told | body


def structured(message: Message[Any]) -> bytes:
    """One event, as ``application/cloudevents+json``."""
    return msgspec.json.encode(event(message))


def batched(messages: Iterable[Message[Any]]) -> bytes:
    """Events as ``application/cloudevents-batch+json``."""
    return msgspec.json.encode([event(message) for message in messages])


def binary(message: Message[Any]) -> tuple[dict[str, str], bytes]:
    """An event's HTTP headers, with lower-case names, and its body."""
    headers = {PREFIX + name: quote(value, safe=SAFE) for name, value in _attributes(message).items()}
    kind = message.content_type
    if kind:
        headers["content-type"] = header_value(kind)
    return headers, message.body


def _attributes(message: Message[Any]) -> dict[str, str]:
    told = attributes(message)
    told["source"] = told["source"] or f"/topics/{message.topic}"  # what a stranger published may have none
    told["tdgtopic"] = message.topic
    others = []
    for name, value in message.headers or ():
        if SHORT.fullmatch(name) and name not in FIELDS and name not in BODY and name not in told and name != HEADERS:
            told[name] = value
        else:
            others.append((name, value))
    if others:
        told[HEADERS] = pairs(tuple(others))
    return told


# -- events as messages


def drafts(topic: str, headers: Mapping[str, str], body: bytes) -> list[Message[Any]]:
    """What a request publishes to ``topic``, by its headers (lower-case names) and body.

    Events in any of the three modes; a body of another content type, without ``ce-`` headers, is one message as it is.
    Raises ``Malformed``; ``UnsupportedMediaType`` for an event format that is not JSON.
    """
    given = headers.get("content-type", "")
    kind = media_type(given)
    if kind == BATCHED:
        return [_from_json(topic, told, f"event {number}") for number, told in enumerate(_decoded(_raws, body))]
    if kind == STRUCTURED:
        return [_from_json(topic, _decoded(_raw, body), "the event")]
    if kind.startswith("application/cloudevents"):
        raise UnsupportedMediaType(f"events in {kind} cannot be read here", mend=f"send {STRUCTURED} or {BATCHED}")
    if "ce-specversion" not in headers:
        return [Message(topic, body, content_type=given)]
    told = {name[3:]: _unescaped(name, value) for name, value in headers.items() if name.startswith(PREFIX)}
    told.pop("datacontenttype", None)  # it is the content type, says §3.1.1
    return [_draft(topic, told, body, given, "the event")]


def media_type(content_type: str) -> str:
    """Without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def header_value(content_type: str) -> str:
    """A message's content type as a header of HTTP: one that could not be is that of plain bytes."""
    return content_type if content_type.isascii() and content_type.isprintable() else BINARY


def is_json(kind: str) -> bool:
    """Whether a media type is JSON, as JSON Event Format §3.1.1 has it."""
    return kind.endswith(("/json", "+json"))


def _decoded(decode: Any, body: bytes) -> Any:
    try:
        body.decode()  # msgspec leaves this to whoever reads what is raw
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed("the body is no event in JSON", why=str(error)) from None


def _unescaped(name: str, value: str) -> str:
    """A header's value: out of its quotes, then one round of percent-decoding (§3.1.3.2)."""
    if value.startswith('"') and (quoted := QUOTED.fullmatch(value)):
        value = re.sub(r"\\(.)", r"\1", quoted[1])
    try:
        return unquote(value, errors="strict") if "%" in value else value
    except UnicodeDecodeError as error:
        raise Malformed(f"header {name} is no percent-encoded UTF-8", why=str(error)) from None


def _from_json(topic: str, raw: dict[str, msgspec.Raw], which: str) -> Message[Any]:
    found, encoded = raw.pop("data", None), raw.pop("data_base64", None)
    told = dict[str, str]()
    for name, value in raw.items():
        try:
            plain = _value(value)
        except msgspec.DecodeError:
            raise Malformed(f"{name!r} of {which} is no attribute", why="it is no text, integer or boolean") from None
        if plain is not None:
            told[name] = plain if isinstance(plain, str) else str(plain).lower()
    kind = told.pop("datacontenttype", JSON if found is not None else "")
    return _draft(topic, told, _body(found, encoded, kind, which), kind, which)


def _body(found: msgspec.Raw | None, encoded: msgspec.Raw | None, content_type: str, which: str) -> bytes:
    """``data`` or ``data_base64`` as bytes (JSON Event Format §3.1.2)."""
    if encoded is not None and bytes(encoded) != b"null":
        if found is not None:
            raise Malformed(f"{which} has both data and data_base64", mend="leave one out")
        try:
            return base64.b64decode(msgspec.json.decode(encoded, type=str), validate=True)
        except (msgspec.DecodeError, binascii.Error, ValueError) as error:
            raise Malformed(f"data_base64 of {which} is no base64", why=str(error)) from None
    if found is None:
        return b""
    body = bytes(found)
    if body.startswith(b'"') and not is_json(media_type(content_type)):
        return msgspec.json.decode(body, type=str).encode()
    return body


def _draft(topic: str, told: dict[str, str], body: bytes, content_type: str, which: str) -> Message[Any]:
    _check(told, which)
    others = told.pop(HEADERS, None)
    fields = {name: value for name, value in told.items() if name in FIELDS}
    own = [(name, value) for name, value in told.items() if name not in FIELDS and not name.startswith("tdg")]
    if others is not None:
        own += _others(others, which)
    return restored(topic, body, fields, tuple(own) or None, content_type)


def _others(text: str, which: str) -> Sequence[tuple[str, str]]:
    others = unpaired(text)
    if others is None:
        raise Malformed(f"{HEADERS} of {which} are no [name, value] pairs", mend='such as [["trace", "1"]]')
    for name, value in others:
        if not name or name.startswith("tdg") or CONTROL.search(name) or CONTROL.search(value):
            raise Malformed(f"{name!r} in {HEADERS} of {which} is no header", mend="rename it, or escape its value")
    return others


def _check(told: Mapping[str, str], which: str) -> None:
    """Raises ``Malformed`` for what the specification does not allow, and for a value that we could not keep."""
    if told.get("specversion") != "1.0":
        found = told.get("specversion", "none")
        raise Malformed(f"specversion of {which} is {found}", mend="send CloudEvents 1.0")
    for name in ("id", "source", "type"):
        if not told.get(name):
            raise Malformed(f"{which} has no {name}", mend="specversion, id, source and type are required")
    for name, value in told.items():
        if not NAME.fullmatch(name):
            raise Malformed(f"{name!r} of {which} is no attribute's name", mend="lower-case letters and digits")
        if CONTROL.search(value):
            raise Malformed(f"{name} of {which} has a control character", mend="leave it out")
    for name in TIMES:
        if name in told and instant(told[name]) is None:
            raise Malformed(f"{name} of {which} is no time: {told[name]!r}", mend="RFC 3339: 2026-01-31T12:00:00Z")
    priority = told.get("tdgpriority", "0")
    if len(priority) != 1 or not "0" <= priority <= "9":
        raise Malformed(f"tdgpriority of {which} cannot be {priority!r}", mend="0 (default) to 9, higher first")
