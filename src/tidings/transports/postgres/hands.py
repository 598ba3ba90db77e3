"""What this process holds, and how it stays a member.

A process that is silent for its lease is lost: others take what it held. So is, after two seconds, one whose connection
of its own has ended (``appear`` in ``groups.sql``). What its handlers do not extend for one lease it gives back itself.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from zlib import crc32

from msgspec import Struct

from tidings.kernel.errors import BusError, TidingsError
from tidings.kernel.message import Message, seconds
from tidings.kernel.transport import Event, Session
from tidings.transports._numbers import pack
from tidings.transports._records import freeze

if TYPE_CHECKING:
    from .transport import PostgresTransport

HOUSEKEEPING, RETENTION, BLOCKED = 0.5, 5.0, 60.0  # seconds
SLOTS = 64


Row = tuple[tuple[str, int], float | None, int | None, bytes]
"""A message on its way: its destination and priority, when (None: at once), the hash of its key, itself."""


def hash_of(key: str | None) -> int | None:
    """A key's hash as the database keeps it: crc32, as a signed integer."""
    return None if key is None else ((crc32(key.encode()) + 2**31) & 0xFFFFFFFF) - 2**31


def rows_of(messages: Sequence[Message[Any]], now: float) -> tuple[list[Row], int]:
    """Sealed messages as rows, and their size."""
    rows, size = freeze(messages, now)
    for at, message in enumerate(messages):
        if message.key is not None:
            where, due, _, record = rows[at]
            rows[at] = where, due, hash_of(message.key), record
    return rows, size


def literal(column: list[Any]) -> str | None:
    """A column of numbers as the database reads it, NULL when there is none in it.

    As text it costs a tenth: asyncpg asks of each element of an array whether it is an array, too.
    """
    if column.count(None) == len(column):
        return None
    return "{" + str(column)[1:-1].replace("None", "NULL") + "}"


def fenced() -> BusError:
    return BusError("this delivery is no longer ours", why="its lease was lost, or it was settled before")


class Held(Session):
    """What a member has in its hands: a claim of fresh messages, or one parked message taken for the ``take``-th time.

    ``todo``: the numbers not settled yet; ``hashes``: of their keys, in ordered groups; ``seen``: when they were last
    extended.
    """

    __slots__ = ("born", "crashes", "failures", "group", "hashes", "id", "owner", "seen", "suspect", "take", "todo")

    def __init__(self, group: int, todo: set[int], born: float, owner: Any, id: int = 0) -> None:
        super().__init__()
        self.group, self.todo, self.born, self.owner, self.id = group, todo, born, owner, id
        self.take = self.failures = self.crashes = 0
        self.suspect = False
        self.hashes: dict[int, int | None] = {}
        self.seen: dict[int, float] = {}


class Outgoing(Struct):
    """Messages as rows, and their size in bytes; why they are refused, if they are."""

    rows: Sequence[Row] = ()
    size: int = 0
    refused: BaseException | None = None


class Hands:
    """The hands of one member. ``member`` changes when it was lost and joined anew."""

    def __init__(self) -> None:
        self.member = 0
        self.claims: dict[int, Held] = {}  # by id
        self.takes: dict[tuple[int, int], Held] = {}  # by group and number

    def all(self) -> list[Held]:
        return [*self.claims.values(), *self.takes.values()]

    def of(self, group: int) -> tuple[list[int], list[int]]:
        """The claims of a group, and the numbers taken."""
        claims = [claim.id for claim in self.claims.values() if claim.group == group]
        return claims, [seq for grp, seq in self.takes if grp == group]

    def busy(self, group: int) -> tuple[list[int], list[int]]:
        """Of an ordered group: slots of which something is held, and hashes of fresh messages in hand."""
        flying = {(seq, h.hashes.get(seq)) for h in self.claims.values() if h.group == group for seq in h.todo}
        slots = {(seq if hash is None else hash) & (SLOTS - 1) for seq, hash in flying}
        return list(slots), list({hash for _, hash in flying if hash is not None})

    def lose(self) -> list[Held]:
        """All of it."""
        lost = self.all()
        self.claims, self.takes = {}, {}
        for held in lost:
            held.alive = False
        return lost

    def drop(self, held: Held) -> None:
        """It is no longer ours."""
        held.alive = False
        if not held.take:
            self.claims.pop(held.id, None)
        for seq in held.todo:
            if self.takes.get((held.group, seq)) is held:
                del self.takes[held.group, seq]

    def mine(self, held: Any, seq: int) -> bool:
        if not isinstance(held, Held):
            return False
        known = self.takes.get((held.group, seq)) if held.take else self.claims.get(held.id)
        return known is held and seq in held.todo

    def stale(self, late: float) -> dict[Held, set[int]]:
        """What was not extended since ``late``; in ordered groups what follows it, too."""
        found = {h: {n for n in h.todo if h.born < late and h.seen.get(n, 0.0) < late} for h in self.all()}
        keys = {(h.group, h.hashes[n]) for h, numbers in found.items() for n in numbers if h.hashes.get(n) is not None}
        for held, numbers in found.items() if keys else ():
            numbers |= {n for n in held.todo if (held.group, held.hashes.get(n)) in keys}
        return {held: numbers for held, numbers in found.items() if numbers}


class Keeper:
    """Keeps this process a member: the heartbeat, what it did not extend, who died, what need not be retained."""

    def __init__(self, bus: PostgresTransport, hands: Hands) -> None:
        self.bus, self.hands, self.beaten = bus, hands, time.monotonic()

    async def enter(self) -> None:
        about = f"{socket.gethostname()}:{os.getpid()}"
        joined = [group for group, lane in self.bus.lanes.items() if lane.consumers]
        self.hands.member = await self.bus.value("enter", about, self.bus.lease, joined)

    async def depart(self) -> None:
        """What was not closed with its consumer keeps its lease: it may run."""
        if not self.hands.all():
            await self.bus.call("depart", self.hands.member, wait=1.0)

    async def beating(self) -> None:
        """The heartbeat comes from the event loop: one that is blocked stops it; once late, nothing is swept.

        When it has not arrived for a lease, others have what is held here, whatever the writer is waiting for.
        """
        before, beat = time.monotonic(), None
        while self.bus.client is not None:
            await asyncio.sleep(self.bus.lease / 3)
            now = time.monotonic()
            sweep = now - before < self.bus.lease / 2
            before = now
            if beat is None or beat.done():
                with suppress(TidingsError):
                    beat = self.bus.writer.turn(lambda now=now, sweep=sweep: self._alive(now, sweep))  # type: ignore[misc]
                    beat.add_done_callback(lambda done: done.exception())  # told by what is lost, or found
            if now - self.beaten > self.bus.lease:
                self._lose("the database was out of reach for a lease")

    async def _alive(self, now: float, sweep: bool) -> None:
        member, claims, takes = self.hands.member, list(self.hands.claims), list(self.hands.takes)
        numbers = [group for group, _ in takes], [seq for _, seq in takes]
        row = await self.bus.call("beat", member, claims, *numbers, wait=self.bus.lease / 3)
        self.beaten = now
        if not row["known"]:
            self._lose("this process was silent for a lease")
            await self.enter()
        for id in row["lost"]:
            if held := self.hands.claims.pop(id, None):
                held.alive = False
        self.doubt(row["strays"])
        for group in row["strays"]:
            if (lane := self.bus.lanes.get(group)) is None or not lane.consumers:
                await self.bus.call("resync", self.hands.member, group, *self.hands.of(group), repeat=True)
        if sweep and (stale := self.hands.stale(now - self.bus.lease)):
            count = await self.give_back(stale, suspect=True)
            self.bus.notify(Event("recovered", count, "this process did not extend what it held for one lease"))

    def doubt(self, groups: Iterable[int]) -> None:
        """The database may have more in our hands than we know of: the next claim of a group gives that back."""
        for group in groups:
            if (lane := self.bus.lanes.get(group)) is not None:
                lane.doubt = True
        self.bus.wake_groups(groups)

    def _lose(self, why: str) -> None:
        """Others have what was held here, or will."""
        if lost := self.hands.lose():
            self.bus.notify(Event("fenced", len(lost), why))
        self.doubt(self.bus.lanes)

    async def give_back(self, what: Mapping[Held, set[int]], *, suspect: bool) -> int:
        """To the group: uncounted, or as suspect. Only in a turn of the writer."""
        hands = self.hands
        claims = [
            (held, numbers) for held, numbers in what.items() if not held.take and hands.claims.get(held.id) is held
        ]
        takes = [held for held in what if held.take and held in hands.takes.values()]
        if not claims and not takes:
            return 0
        rest = [held.todo - numbers for held, numbers in claims]
        numbers = [(n, held.group, place) for place, (held, ns) in enumerate(claims, 1) for n in sorted(ns)]
        await self.bus.call(
            "give_back",
            hands.member,
            [held.id for held, _ in claims],
            [pack(sorted(todo)) if todo else None for todo in rest],
            [place for *_, place in numbers],
            [n for n, *_ in numbers],
            [group for _, group, _ in numbers],
            [held.group for held in takes],
            [seq for held in takes for seq in held.todo],
            [held.take for held in takes],
            suspect,
            repeat=True,
        )
        for (held, _), todo in zip(claims, rest, strict=True):
            self._inherit(held, todo)
        for held in takes:
            del hands.takes[held.group, next(iter(held.todo))]
            held.alive = False
        groups = {held.group for held in what}
        self.bus.wake_groups({-1})
        self.bus.signal(groups)
        return len(numbers) + len(takes)

    def _inherit(self, held: Held, todo: set[int]) -> None:
        """A claim is divided: what stays in hand goes on in another session."""
        del self.hands.claims[held.id]
        if todo:
            heir = self.hands.claims[held.id] = Held(held.group, todo, held.born, held.owner, held.id)
            heir.hashes, heir.seen = held.hashes, held.seen
            for delivery in held.owner.extended:
                if delivery.session is held and delivery.token in todo:
                    delivery.session = heir
        held.alive = False

    async def keeping_house(self) -> None:
        retained = 0.0
        while self.bus.client is not None:
            await asyncio.sleep(min(HOUSEKEEPING, self.bus.lease / 3))
            with suppress(TidingsError):
                joined = [group for group, lane in self.bus.lanes.items() if lane.consumers]
                row = await self.bus.call("look", joined, repeat=True)
                if row["count"]:
                    told = "a process died, or was silent for a lease"
                    self.bus.notify(Event("recovered", row["count"], told))
                if row["groups"]:
                    self.bus.signal(row["groups"])
                self.bus.wake_groups({*row["groups"], *row["waiting"]})
                if time.monotonic() > retained:
                    retained = time.monotonic() + RETENTION
                    retained += BLOCKED if await self._retain() else 0.0

    async def _retain(self) -> bool:
        """Drop the oldest partition, if nobody needs it; whether somebody is in the way."""
        row = await self.bus.call("retain", seconds(self.bus.options.retain), repeat=True)
        for name in row["gone"]:
            told = f"{name} has had no member for 7 days: what was stored in {row['dropped']} is gone"
            self.bus.notify(Event("retention", 1, told))
        return bool(row["blocked"])
