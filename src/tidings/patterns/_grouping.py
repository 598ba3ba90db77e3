"""Groups of messages that wait to become one: what is kept of each, as records.

A group is one record. Folded, that has one value, whatever came. Listed, its last messages are in it; whenever those
are more than ``INLINE`` bytes, they become a record of their own, a *chunk*, which is written once. So a group may grow
without being written anew with each message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from msgspec import Struct

from tidings.inject import name_of, where
from tidings.kernel.codec import decoder, encode
from tidings.kernel.errors import WrongReturn
from tidings.kernel.message import JSON, Headers, Message
from tidings.state import State, Table

from .message_sequence import NUMBER, position

T = TypeVar("T")

INLINE = 1500  # bytes; measured: less makes more records, more writes more of each
MARK = 8  # bytes that stand for an id: a message is taken for another of its group once in 10**13 groups of 1,000


class Item(Struct, array_like=True, frozen=True):
    """A message of a group, as it may be needed again. Of most there are the first four fields only."""

    id: str
    body: bytes
    topic: str
    time: float
    key: str | None = None
    headers: Headers | None = None
    content_type: str = JSON

    @property
    def message(self) -> Message[Any]:
        """As it came, so far."""
        about = {name: getattr(self, name) for name in self.__struct_fields__}
        return Message(**about, type=self.topic)


class Open(Struct, array_like=True):
    """The record of an open group. ``name``: no other group, of this key or another, has or had it."""

    name: str
    root: str  # the correlation id of its first message
    since: float
    count: int = 0
    chunks: int = 0
    ids: bytes = b""  # a mark for each, or one for all
    items: bytes = b""  # those in no chunk, one after the other
    total: tuple[bytes, str] = (b"", "")
    key: str | None = None  # of what it becomes, if that is not the group's


class Group(Struct):
    """A group in work: its key and its record. ``value``: the payloads or the total; ``items``: the messages, if they
    are kept; both as they were when it was loaded."""

    key: str
    open: Open
    value: Any = None
    items: Sequence[Item] = ()


CLOSED = b""  # the record of a closed group that is remembered
_pack = msgspec.msgpack.Encoder().encode
_open = msgspec.msgpack.Decoder(Open).decode
_items = msgspec.msgpack.Decoder(list[Item]).decode
_LIST = b"\xdd"  # MessagePack: an array, and its length in four bytes


def read(key: str, record: bytes) -> Group | None:
    """A group from its record; ``None``: it is closed."""
    return Group(key, _open(record)) if record else None


class Kept(Protocol):
    """What a group keeps of its messages."""

    async def load(self, groups: Sequence[Group], state: State) -> None:
        """Read what these groups have become, all at once."""

    def add(self, group: Group, message: Message[Any], state: State) -> bool:
        """Add a message; False: it is there already."""

    def clear(self, group: Group, state: State) -> None:
        """Remove what is not in the group's own record."""

    def write(self, group: Group) -> bytes:
        """The group's own record."""


class Listed(Generic[T]):
    """Keeps the messages. ``looks``: their payloads are wanted after each; ``numbered``: they are of a sequence, which
    is their order, whatever comes first."""

    def __init__(self, table: str, decode: Callable[[bytes, str], T], *, looks: bool, numbered: bool) -> None:
        self.table, self.decode, self.looks, self.numbered = Table(table, bytes), decode, looks, numbered

    async def load(self, groups: Sequence[Group], state: State) -> None:
        chunks = await state.get_many(self.table, [place for group in groups for place in _places(group)])
        for group in groups:
            stored = b"".join([*(chunks[place] for place in _places(group)), group.open.items])
            items = _items(_LIST + group.open.count.to_bytes(4, "big") + stored)
            group.items = sorted(items, key=_number) if self.numbered else items
            group.value = [self.decode(item.body, item.content_type) for item in group.items]

    def add(self, group: Group, message: Message[Any], state: State) -> bool:
        open, m = group.open, message
        mark = _mark(m.header(NUMBER) if self.numbered else m.id)
        if mark in open.ids:
            return False
        usual = m.key is None and m.headers is None and m.content_type == JSON
        item = m.id, m.body, m.topic, m.time
        open.items += _pack(item if usual else (*item, m.key, m.headers, m.content_type))
        open.ids += mark
        open.count += 1
        if len(open.items) > INLINE:
            state.put(self.table, _place(group, open.chunks), open.items)
            open.items, open.chunks = b"", open.chunks + 1
        if self.looks:
            group.value = group.value or []
            group.value.append(m.data)
        return True

    def clear(self, group: Group, state: State) -> None:
        for place in _places(group):
            state.delete(self.table, place)

    def write(self, group: Group) -> bytes:
        return _pack(group.open)


def _mark(id: str, before: bytes = b"") -> bytes:
    return blake2b(before + id.encode(), digest_size=MARK).digest()


def _place(group: Group, number: int) -> str:
    return f"{group.open.name}/{number:06}"


def _places(group: Group) -> list[str]:
    return [_place(group, number) for number in range(group.open.chunks)]


def _number(item: Item) -> int:
    place = position(item.message)
    return place.number if place else -1


class Folded(Generic[T]):
    """Keeps one value: ``fold(what there was or None, payload)``."""

    def __init__(self, fold: Callable[[Any, Any], T], type: Any) -> None:
        self.fold, self.decode = fold, decoder(type)

    async def load(self, groups: Sequence[Group], state: State) -> None:
        for group in groups:
            group.value = self._value(group)

    def _value(self, group: Group) -> T | None:
        known: T | None = group.value
        return self.decode(*group.open.total) if known is None and group.open.count else known

    def add(self, group: Group, message: Message[Any], state: State) -> bool:
        group.value = self.fold(self._value(group), message.data)
        if group.value is None:
            what = f"{name_of(self.fold)}() returned nothing"
            raise WrongReturn(what, mend="return the total", where=where(self.fold))
        group.open.count += 1
        group.open.ids = _mark(message.id, group.open.ids)
        return True

    def clear(self, group: Group, state: State) -> None: ...

    def write(self, group: Group) -> bytes:
        if group.value is not None:
            group.open.total = encode(group.value)
        return _pack(group.open)
