"""Messages as rows of a database, for transports that keep them there: a record each, many read at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from zlib import crc32

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from tidings.kernel import message as kernel

Row = tuple[tuple[str, int], float | None, int | None, bytes]
"""((destination, priority), due, slot, record): a message on its way; ``due`` None: at once; ``slot`` None: no key."""

OVERHEAD = 48  # bytes a row costs beside its record, index entry included
SLOTS = 64  # of an ordered group: each belongs to one member at a time

_encode = msgspec.msgpack.Encoder().encode


class Message(kernel.Message[Any], array_like=True, frozen=True):
    """A message that is read from a record, an array of its first fields: what is seldom set is not there."""

    def __eq__(self, other: object) -> bool:  # to any message, not only to its own kind
        return isinstance(other, kernel.Message) and astuple(self) == astuple(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(kernel.Message(*astuple(self)))


_decode = msgspec.msgpack.Decoder(list[Message]).decode
_decode_any = msgspec.msgpack.Decoder(list[tuple[Any, ...]]).decode
_LIST = b"\xdd"  # MessagePack: an array, and its length in four bytes


def record(message: kernel.Message[Any]) -> bytes:
    """A sealed message as bytes."""
    m: Any = message
    usual = m.headers is m.deliver_at is m.expires_at is m.reply_to is m.correlation_id is m.causation_id is m.address
    first = m.topic, m.body, m.id, m.key, m.time, m.type, m.source, m.content_type
    if usual and m.address is None and not m.priority:
        return _encode(first)
    ways = m.deliver_at, m.expires_at, m.reply_to, m.correlation_id, m.causation_id, m.address
    return _encode((*first, m.headers, m.priority, *ways))


def messages(records: bytes, count: int) -> list[kernel.Message[Any]]:
    """The messages of ``count`` records that stand one behind the other: at a third of the cost of one by one.

    Raises ``msgspec.DecodeError`` for what is no record.
    """
    records = _LIST + count.to_bytes(4) + records
    try:
        return _decode(records)  # type: ignore[return-value]
    except msgspec.ValidationError:  # a field of a strange type, which no publisher was refused for
        return [kernel.Message(*map(_frozen, fields)) for fields in _decode_any(records)]


def _frozen(field: Any) -> Any:
    return tuple(map(tuple, field)) if isinstance(field, list) else field  # headers


def freeze(sealed: Iterable[kernel.Message[Any]], now: float) -> tuple[list[Row], int]:
    """Messages as rows, and their size."""
    rows, size, where = list[Row](), 0, ("", 0)
    for m in sealed:
        due, key, stored = m.deliver_at, m.key, record(m)
        if due is not None and due <= now:
            due = None
        slot = None if key is None else crc32(key.encode()) & (SLOTS - 1)
        if m.topic is not where[0] or m.address is not None or m.priority != where[1]:  # neighbours share it
            where = (m.address or m.topic, m.priority)
        rows.append((where, due, slot, stored))
        size += len(stored)
    return rows, size + OVERHEAD * len(rows)


def slot_of(seq: int, key: str | None) -> int:
    """The slot of a message: by its key, or else by its number."""
    return (seq if key is None else crc32(key.encode())) & (SLOTS - 1)


class Found(Struct):
    """Messages, and their numbers."""

    numbers: Sequence[int] = ()
    messages: list[kernel.Message[Any]] = []  # msgspec copies it

    def add(self, other: Found) -> None:
        self.numbers = [*self.numbers, *other.numbers] if self.numbers else other.numbers
        self.messages = [*self.messages, *other.messages] if self.messages else other.messages

    def first(self, limit: int) -> Found:
        """The ``limit`` with the lowest numbers, in order."""
        pairs = sorted(zip(self.numbers, self.messages, strict=True), key=lambda pair: pair[0])[:limit]
        return Found([number for number, _ in pairs], [message for _, message in pairs])

    def only(self, wanted: Callable[[int, kernel.Message[Any]], bool]) -> Found:
        kept = [pair for pair in zip(self.numbers, self.messages, strict=True) if wanted(*pair)]
        return Found([number for number, _ in kept], [message for _, message in kept])
