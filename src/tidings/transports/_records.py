"""Messages as values of a database, for transports that keep them there: a record each, many read at once."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET

from tidings.kernel.message import Headers, Message

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def record(message: Message[Any]) -> bytes:
    """A sealed message as bytes. What is rarely set stands together at the end, or is not there."""
    m: Any = message
    rest = None
    usual = m.headers is m.deliver_at is m.expires_at is m.reply_to is m.correlation_id is m.causation_id is m.address
    if not usual or m.address is not None or m.priority:
        ways = m.deliver_at, m.expires_at, m.reply_to, m.correlation_id, m.causation_id, m.address
        rest = (m.headers, m.priority, *ways)
    return _encode((m.topic, m.body, m.id, m.key, m.time, m.type, m.source, m.content_type, rest))


def messages(records: bytes, count: int) -> list[Message[Any]]:
    """The messages of ``count`` records that stand one behind the other: at half the cost of one by one."""
    nothing: Any = UNSET
    return [
        Message(topic, nothing, body, id, key, time, type, source, content_type)
        if rest is None
        else Message(topic, nothing, body, id, key, time, type, source, content_type, _headers(rest[0]), *rest[1:])
        for topic, body, id, key, time, type, source, content_type, rest in _decode(_LIST + count.to_bytes(4) + records)
    ]


_LIST = b"\xdd"  # MessagePack: an array, and its length in four bytes


def _headers(pairs: list[tuple[str, str]] | None) -> Headers | None:
    return tuple((name, value) for name, value in pairs) if pairs is not None else None
