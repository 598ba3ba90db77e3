"""Bytes to payloads and back, chosen once per type.

JSON unless the payload is ``bytes`` or ``str``; the content type travels with the message. Decoding is strict (``"1"``
is no int) unless the topic says ``lax``. Types are walked when a topic is registered, so that a type nobody can decode
is refused then and not at the first message.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import lru_cache
from math import isfinite
from typing import Any, Union, get_args, get_origin

import msgspec
from msgspec import UNSET

from .errors import InvalidHandler, InvalidOption, PayloadRefused, TooLarge, Undecodable
from .message import BINARY, JSON, TEXT, Message, new_id
from .topics import check_topic, refuse_reserved

Decode = Callable[[bytes, str], Any]


def _foreign(data: Any) -> Any:
    """What msgspec does not know: pydantic models."""
    if hasattr(data, "model_dump"):
        return data.model_dump(mode="json", by_alias=True)
    raise TypeError(f"{type(data).__name__} is no msgspec Struct, dataclass, TypedDict, pydantic model or JSON value")


_json = msgspec.json.Encoder(enc_hook=_foreign)
_json_text = msgspec.json.Decoder(str).decode


def encode(data: Any) -> tuple[bytes, str]:
    """A payload's body and content type. Raises ``PayloadRefused`` for what has no faithful form."""
    try:
        return _writer(data.__class__)(data)
    except UnicodeEncodeError as error:
        raise PayloadRefused("the payload has a lone surrogate", why=str(error), mend="replace or escape it") from None
    except (TypeError, ValueError, RecursionError) as error:
        mend = "publish Structs, dataclasses, TypedDicts, pydantic models or JSON values, and None for a NaN"
        raise PayloadRefused(f"this {type(data).__name__} cannot be published", why=str(error), mend=mend) from None


@lru_cache(1024)
def _writer(kind: type) -> Callable[[Any], tuple[bytes, str]]:
    if issubclass(kind, bytes | bytearray | memoryview):
        return lambda data: (bytes(data), BINARY)
    if issubclass(kind, str):
        return lambda text: (text.encode(), TEXT)
    model = hasattr(kind, "model_dump_json")
    write = (lambda data: data.model_dump_json(by_alias=True).encode()) if model else _json.encode

    def to_json(data: Any) -> tuple[bytes, str]:
        body = write(data)
        # JSON has no NaN: encoders write null, which another reader would take for nothing; pydantic may write NaN
        doubtful = body.find(b"null") >= 0 or (model and (b"NaN" in body or b"Infinity" in body))
        if doubtful and not _finite(msgspec.to_builtins(data, str_keys=True, enc_hook=_foreign)):
            raise ValueError("JSON has no NaN and no infinity: publish None")
        return body, JSON

    return to_json


def _finite(data: Any) -> bool:
    if isinstance(data, dict):
        return all(map(_finite, data.values()))
    return all(map(_finite, data)) if isinstance(data, list | tuple) else not isinstance(data, float) or isfinite(data)


def seal(
    draft: Message[Any], *, now: float, source: str, id: str = "", parent: Message[Any] | None = None
) -> Message[Any]:
    """A draft as transports see it: encoded, with an id and times. ``parent`` is what caused it.

    Raises ``PayloadRefused``; ``InvalidOption`` for a message that would expire before it is due.
    """
    d: Any = draft
    usual = d.headers is d.delay is d.deliver_at is d.expires is d.expires_at is d.reply_to is d.correlation_id
    if usual and parent is d.causation_id is d.address is None and not d.priority and d.type and d.data is not UNSET:
        body, content_type = encode(d.data)
        id, source = d.id or id or new_id(), d.source or source
        return Message(d.topic, body, id, d.key, d.time or now, d.type, source, content_type, bus=d.bus)
    if not d.type and d.address is None:  # made by hand, not by a topic
        refuse_reserved(check_topic(d.topic))
    body, content_type = (d.body, d.content_type) if d.data is UNSET else encode(d.data)
    if type(body) is not bytes:
        raise PayloadRefused(f"a body cannot be {type(body).__name__}", mend="Message(topic, data=payload)")
    deliver_at = d.deliver_at if d.delay is None else now + d.delay
    expires_at = d.expires_at if d.expires is None else now + d.expires
    if deliver_at is not None and expires_at is not None and deliver_at >= expires_at:
        raise InvalidOption("a message would expire before it is due", mend="let `expires` be longer than `delay`")
    if not 0 <= d.priority <= 9:
        raise InvalidOption(f"priority cannot be {d.priority}", mend="0 (default) to 9, higher first")
    correlation = d.correlation_id if parent is None else d.correlation_id or parent.correlation_id or parent.id
    causation = d.causation_id if parent is None else parent.id
    about = d.id or id or new_id(), d.key, d.time or now, d.type, d.source or source
    rest = content_type, d.headers, d.priority, deliver_at, expires_at, d.reply_to, correlation, causation, d.address
    return Message(d.topic, body, *about, *rest, bus=d.bus)  # type: ignore[arg-type]


def refuse_large(message: Message[Any], limit: int) -> None:
    """Raises ``TooLarge`` for a body that leaves no room for a dead letter's context."""
    if len(message.body) > limit:
        what = f"a body of {len(message.body):,} bytes for {message.topic!r} is more than {limit:,}"
        raise TooLarge(what, mend="publish a reference to it (EIP: Claim Check)")


def decoder(type: Any, *, lax: bool = False) -> Decode:
    """A function from (body, content type) to a payload of ``type``; it raises ``Undecodable``.

    Raises ``InvalidHandler`` for a type that cannot be decoded.
    """
    try:
        return _decoder(type, lax)
    except Exception as error:  # unhashable, or unknown to msgspec and pydantic
        raise error if isinstance(error, InvalidHandler) else _undecodable_type(type, str(error)) from None


@lru_cache(1024)
def _decoder(type: Any, lax: bool) -> Decode:
    type = types.NoneType if type is None else type
    members = set(get_args(type)) if get_origin(type) in (Union, types.UnionType) else {type}
    takes_text, takes_bytes, takes_none = (bool(members & {kind, Any, object}) for kind in (str, bytes, types.NoneType))
    from_json = _from_json(type, lax) if members - {bytes, str, types.NoneType} or members == {types.NoneType} else None
    name = getattr(type, "__name__", str(type))

    def decode(body: bytes, content_type: str) -> Any:
        try:
            if content_type == JSON and from_json is not None and body:
                return from_json(body)
            return other(body, content_type)
        except Undecodable:
            raise
        except Exception as error:
            raise Undecodable(f"the body is no {name}", why=str(error), mend="mend the sender") from error

    def other(body: bytes, content_type: str) -> Any:
        kind = content_type.partition(";")[0].strip().lower()
        text = kind.startswith("text/")
        nothing = not body or (body == b"null" and kind == JSON)
        if nothing and takes_none and not (text and takes_text) and not (kind == BINARY and takes_bytes):
            return None
        if body and from_json is not None and (kind in ("", JSON, "text/json") or kind.endswith("+json")):
            return from_json(body)
        if takes_text and (text or (not takes_bytes and from_json is None)):
            return _json_text(body) if kind == JSON and body else body.decode()
        if takes_bytes:
            return body
        if text and body and from_json is not None:  # Literal, NewType, StrEnum
            return from_json(_json.encode(body.decode()))
        if not body:
            raise Undecodable(f"the body is empty, which no {name} is", mend=f"send JSON, or take {name} | None")
        mend = "send application/json, or take bytes and decode them in the handler"
        raise Undecodable(f"content type {content_type!r} cannot be read as {name}", mend=mend)

    return (lambda body, _: body) if type is bytes else decode


def _from_json(type: Any, lax: bool) -> Callable[[bytes], Any]:
    if _has_model(type):
        from pydantic import TypeAdapter

        validate = TypeAdapter(type).validate_json
        return lambda body: validate(body, strict=not lax)
    _refuse_unknown(type)
    return msgspec.json.Decoder(type, strict=not lax).decode


def _has_model(kind: Any) -> bool:
    marks = ("__pydantic_core_schema__", "__pydantic_validator__")
    return any(hasattr(kind, mark) for mark in marks) or any(map(_has_model, get_args(kind)))


def _refuse_unknown(type: Any) -> None:
    """msgspec builds a decoder for any class and fails at the first message: find those now."""
    from msgspec import inspect

    nodes: list[Any] = [inspect.type_info(type)]
    seen: set[int] = set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, inspect.CustomType):
            raise _undecodable_type(node.cls, "nothing says how to read it from JSON")
        if isinstance(node, tuple):
            nodes += node
        elif isinstance(node, inspect.Type | inspect.Field) and id(node) not in seen:
            seen.add(id(node))
            nodes += (getattr(node, name) for name in node.__struct_fields__)


def _undecodable_type(type: Any, why: str) -> InvalidHandler:
    mend = "use a msgspec Struct, dataclass, TypedDict, pydantic model or JSON types"
    return InvalidHandler(f"payloads cannot be {getattr(type, '__name__', type)}", why=why, mend=mend)
