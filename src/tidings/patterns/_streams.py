"""Numbered messages that wait for those before them: what is kept of each stream, as records."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from tidings.kernel.message import Headers, Message
from tidings.state import State, Table

SEALED = 16  # fields of a message that is sealed


class Stream(Struct, array_like=True):
    """A stream's record: the next number, those that wait, sorted, and since when they wait for the next."""

    next: int
    since: float = 0.0
    waiting: list[int] = []

    def has(self, number: int) -> bool:
        """Whether this number came already."""
        at = bisect_left(self.waiting, number)
        return number < self.next or self.waiting[at : at + 1] == [number]

    def wait(self, number: int, now: float) -> None:
        """Note a number that came."""
        if not self.waiting:
            self.since = now
        insort(self.waiting, number)

    def run(self, now: float) -> list[int]:
        """Go on as far as there is no gap: these numbers."""
        count = 0
        while count < len(self.waiting) and self.waiting[count] == self.next + count:
            count += 1
        gone, self.waiting = self.waiting[:count], self.waiting[count:]
        if count:
            self.next, self.since = self.next + count, now
        return gone


pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder(Stream).decode
_message = msgspec.msgpack.Decoder(
    tuple[
        str,
        bytes,
        str,
        str | None,
        float,
        str,
        str,
        str,
        Headers | None,
        int,
        float | None,
        float | None,
        str | None,
        str | None,
        str | None,
        str | None,
    ]
).decode


class Waiting:
    """The messages that wait, each in a record. One run reads them at once, and writes only what waits after it."""

    def __init__(self, table: Table[bytes], state: State) -> None:
        self.table, self.state = table, state
        self.fresh: dict[str, Message[Any]] = {}  # came in this run
        self.going: list[str] = []

    def come(self, key: str, number: int, message: Message[Any]) -> None:
        """A message waits, if only for the end of this run."""
        self.fresh[place(key, number)] = message

    async def take(self, places: list[str]) -> dict[str, Message[Any]]:
        """The messages at these places, which then wait no more."""
        stored = [at for at in places if at not in self.fresh]
        found = await self.state.get_many(self.table, stored) if stored else {}
        for at in found:
            self.state.delete(self.table, at)
        return {at: self.fresh.pop(at) if at in self.fresh else Message(*_message(found[at])) for at in places}

    def keep(self) -> None:
        """Write those that came in this run and still wait."""
        for at, message in self.fresh.items():
            self.state.put(self.table, at, pack(astuple(message)[:SEALED]))


def place(key: str, number: int) -> str:
    """The key of the record of a message that waits."""
    return f"{len(key)}:{key}/{number}"
