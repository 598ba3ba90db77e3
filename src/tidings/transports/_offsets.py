"""One partition in a member's hands: what of it is settled, in hand, or back. Pure: no I/O, no clock.

Kafka remembers one offset per group and partition, and a text beside it. The offset is that of the first message that
is not settled; the text (``state``) says what is settled beyond it, how often which messages failed, and how far
messages were handed out. So every settlement is durable when the commit that follows it is, in whatever order they
come, and whoever takes over goes on exactly there: nothing that was settled comes again, and after a clean handover
nothing is suspect. What a dead member may have had in hand is suspect: all below ``upto`` that it had not settled.

In an ordered window a message that came back holds its key: what follows waits in its ``Lane``.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Any

import msgspec
from msgspec import Struct

from tidings.kernel.message import Message
from tidings.kernel.transport import Delivery, Session

SPAN = 8192  # offsets between the first unsettled message and the last one handed out
LONGEST = 4092  # characters of a state: brokers take fewer than 4,096 by default
AHEAD = 64  # offsets declared as handed out beyond those that are, unless more are taken at once


class Fact(Struct, array_like=True):
    """What is known of a message beside what it says itself."""

    failures: int = 0
    crashes: int = 0
    due: float = 0.0  # Unix seconds: not before
    marked: bool = False  # it has started although suspect
    suspect: bool = False  # never written: ``upto`` says so


class State(Struct, array_like=True, frozen=True):
    """The text beside a committed offset; numbers count from that offset."""

    upto: int = 0
    settled: bytes = b""  # a bit each
    facts: dict[int, Fact] = {}
    writer: str = ""  # whose transactions may be under way
    turn: int = 0  # which of them was the last


NOTHING = Fact()
_encode, _decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(State).decode


def read(text: str | None) -> State:
    """The state in a text; what is none of ours is no state."""
    try:
        return _decode(b64decode(text or "", validate=True)) if text else State()
    except (ValueError, msgspec.MsgspecError):
        return State()


def count_settled(state: State) -> int:
    return sum(byte.bit_count() for byte in state.settled)


class Window(Session):
    """A partition, from its committed offset on. ``until``: nothing from there on is this group's.

    ``giving``: it is to be given up, and nothing more is handed out; ``given``: that is done, all is durable.
    ``writer`` and ``turn``: who commits it in transactions, and how many of them were begun.
    """

    __slots__ = (
        "ahead",
        "aside",
        "back",
        "facts",
        "given",
        "giving",
        "held",
        "most",
        "next",
        "open",
        "paused",
        "place",
        "settled",
        "since",
        "suspects",
        "turn",
        "until",
        "upto",
        "waiting",
        "writer",
    )

    def __init__(self, place: tuple[str, int], offset: int, state: State, until: int | None = None) -> None:
        super().__init__()
        self.place, self.next, self.until, self.most = place, offset, until, SPAN
        self.ahead = AHEAD
        self.upto = self.suspects = offset + state.upto
        self.settled = {
            offset + (at << 3) + bit
            for at, byte in enumerate(state.settled)
            if byte
            for bit in range(8)
            if byte >> bit & 1
        }  # ahead of ``next``
        self.facts = {offset + at: fact for at, fact in state.facts.items()}
        for fact in self.facts.values():
            fact.crashes, fact.marked = fact.crashes + fact.marked, False
        self.open: dict[int, Delivery | None] = {}  # unsettled below ``next``, in order; None: not in hand
        self.held = 0
        self.waiting: dict[int, Message[Any]] = {}  # of those not in hand
        self.back: list[tuple[float, int]] = []  # a heap by due time
        self.since = 0  # what its reader had read by then belongs to a former session
        self.aside: deque[Any] = deque()  # read, and beyond what may be handed out
        self.paused = self.giving = self.given = False
        self.writer, self.turn = "", 0

    @property
    def floor(self) -> int:
        """The offset to commit."""
        return next(iter(self.open), self.next)

    @property
    def full(self) -> bool:
        upcoming = self.aside[0].offset() if self.aside else self.next
        return len(self.open) >= self.most or upcoming - self.floor >= SPAN

    def reach(self, offset: int) -> None:
        """The next record is this one: there is nothing before it. Not so far that it could not be remembered."""
        if not self.open or offset - self.floor < SPAN:
            self.next = max(self.next, offset)

    def wanted(self, offset: int) -> bool:
        """Whether a record that was read is one to hand out; it counts as seen."""
        if offset < self.next or (self.until is not None and offset >= self.until):
            return False
        self.next = offset + 1
        if self.settled and offset in self.settled:
            self.settled.discard(offset)
            return False
        return True

    def fresh(
        self, offset: int, message: Message[Any], failures: int = 0, crashes: int = 0, suspect: bool = False
    ) -> Delivery | None:
        """A wanted message, to be handed out; None: it must wait."""
        if self.facts or offset < self.suspects or failures or crashes or suspect:
            return self._fresh(offset, message, failures, crashes, suspect)
        delivery = self.open[offset] = Delivery(message, self, offset)
        self.held += 1
        return delivery

    def _fresh(
        self, offset: int, message: Message[Any], failures: int = 0, crashes: int = 0, suspect: bool = False
    ) -> Delivery | None:
        suspect = suspect or offset < self.suspects
        if failures or crashes or suspect or offset in self.facts:
            fact = self.facts.setdefault(offset, Fact(failures, crashes))
            fact.suspect = fact.suspect or suspect
        self.open[offset] = None
        if self._waits(offset, message):
            self.waiting[offset] = message
            return None
        return self._hand(offset, message)

    def _waits(self, offset: int, message: Message[Any]) -> bool:
        due = self.facts.get(offset, NOTHING).due
        if due:
            heappush(self.back, (due, offset))
        return bool(due)

    def _hand(self, offset: int, message: Message[Any]) -> Delivery:
        fact = self.facts.get(offset, NOTHING)
        delivery = Delivery(message, self, offset, fact.failures, fact.crashes, fact.suspect)
        self.open[offset] = delivery
        self.held += 1
        return delivery

    def due(self, now: float, limit: int) -> Iterator[Delivery]:
        """What is back and due, handed out."""
        while self.back and self.back[0][0] <= now and limit > 0:
            _, offset = heappop(self.back)
            limit -= 1
            yield self._hand(offset, self.waiting.pop(offset))

    def skip(self, offset: int) -> bool:
        """There is nothing before ``offset`` that was not seen; whether that is news."""
        before, self.next = self.next, max(self.next, offset)
        return self.next > before

    def holds(self, delivery: Delivery) -> bool:
        return self.alive and self.open.get(delivery.token) is delivery

    def settle(self, delivery: Delivery) -> bool:
        """It is done; False: it is not held any more."""
        offset = delivery.token
        if not self.alive or self.open.get(offset) is not delivery:
            return False
        del self.open[offset]
        self.held -= 1
        if self.facts:
            self.facts.pop(offset, None)
        self._left(offset, delivery.message)
        return True

    def put_back(self, delivery: Delivery, due: float, failures: int | None = None, suspect: bool = False) -> None:
        """One that is held comes back; ``failures`` None: as many as before."""
        offset = delivery.token
        fact = self._returned(offset, due, failures, suspect)
        self.facts[offset] = fact
        if fact == NOTHING:
            del self.facts[offset]
        self.open[offset] = None
        self.held -= 1
        self.waiting[offset] = delivery.message
        self._came_back(offset, delivery.message)
        self._left(offset, delivery.message)

    def _returned(self, offset: int, due: float, failures: int | None, suspect: bool = False) -> Fact:
        before = self.facts.get(offset, NOTHING)
        return Fact(before.failures if failures is None else failures, before.crashes, due, False, suspect)

    def _came_back(self, offset: int, message: Message[Any]) -> None:
        heappush(self.back, (self.facts.get(offset, NOTHING).due, offset))

    def _left(self, offset: int, message: Message[Any]) -> None:
        """One left the hands of its holder."""

    def in_hand(self) -> list[Delivery]:
        return [delivery for delivery in self.open.values() if delivery is not None]

    def hands(self) -> int:
        return self.held

    def parked(self) -> int:
        return sum(1 for offset in self.waiting if offset in self.facts)

    def left(self, end: int) -> int:
        """How many below ``end`` are not settled."""
        return len(self.open) + max(0, end - self.next - sum(offset < end for offset in self.settled))

    def state(self, *, clean: bool) -> str:
        """The text to commit beside ``floor``. ``clean``: nothing is in hand any more."""
        floor = self.floor
        if not clean:
            self.upto = max(self.upto, min(self.next + self.ahead, floor + SPAN))
        facts = {
            offset - floor: Fact(fact.failures, fact.crashes, fact.due, fact.marked and not clean)
            for offset, fact in self.facts.items()
            if fact.failures or fact.crashes or fact.due or fact.marked
        }
        bits = self._bits(floor)
        writer, turn = ("", 0) if clean else (self.writer, self.turn)
        upto = 0 if clean else self.upto - floor
        text = b64encode(_encode(State(upto, bits, facts, writer, turn)))
        while len(text) > LONGEST:  # more failures than there is room for: those of the latest are forgotten
            facts = dict(sorted(facts.items())[: len(facts) * 3 // 4])
            text = b64encode(_encode(State(upto, bits, facts, writer, turn)))
        return text.decode()

    def without(
        self, settled: Iterable[Delivery], back: Iterable[tuple[Delivery, float, int | None]] = ()
    ) -> tuple[int, str]:
        """What to commit as if these were settled, and those had come back, each when it is due, with its failures."""
        kept, known, gone = self.open, self.facts, {delivery.token for delivery in settled}
        self.open = {offset: delivery for offset, delivery in kept.items() if offset not in gone}
        self.facts = {offset: fact for offset, fact in known.items() if offset not in gone} if known else {}
        for delivery, due, failures in back:
            self.facts[delivery.token] = self._returned(delivery.token, due, failures)
        found = self.floor, self.state(clean=False)
        self.open, self.facts = kept, known
        return found

    def _bits(self, floor: int) -> bytes:
        if self.settled and min(self.settled) < self.next:  # what is seen no more, for it was compacted away
            self.settled = {offset for offset in self.settled if offset >= self.next}
        if not self.settled and len(self.open) == self.next - floor:
            return b""
        length = max(self.next, max(self.settled, default=0) + 1) - floor
        bits = bytearray(length + 7 >> 3)
        seen = self.next - floor
        bits[: seen >> 3] = b"\xff" * (seen >> 3)
        if seen & 7:
            bits[seen >> 3] = (1 << (seen & 7)) - 1
        for offset in self.open:
            bits[offset - floor >> 3] ^= 1 << (offset - floor & 7)
        for offset in self.settled:
            bits[offset - floor >> 3] |= 1 << (offset - floor & 7)
        return bytes(bits)


class Lane(Struct):
    """One key of an ordered window. ``back``: offsets not in hand, rising; ``hold``: one is out alone."""

    back: list[int]
    out: int = 0
    hold: bool = False


class OrderedWindow(Window):
    """Same key, same order, also through failures: only a key's lowest may run again, alone."""

    __slots__ = ("lanes",)

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.lanes: dict[str | int, Lane] = {}

    fresh = Window._fresh

    def _key(self, offset: int, message: Message[Any]) -> str | int:
        return offset if message.key is None else message.key

    def _failing(self, offset: int) -> bool:
        fact = self.facts.get(offset, NOTHING)
        return bool(fact.failures or fact.crashes or fact.suspect)

    def _waits(self, offset: int, message: Message[Any]) -> bool:
        key = self._key(offset, message)
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane([])
        if lane.back or lane.hold or self._failing(offset):
            lane.back.append(offset)
            if not lane.out and len(lane.back) == 1:
                self._offer(lane)
            return True
        lane.out += 1
        return False

    def _offer(self, lane: Lane) -> None:
        offset = lane.back[0]
        heappush(self.back, (self.facts.get(offset, NOTHING).due, offset))

    def _came_back(self, offset: int, message: Message[Any]) -> None:
        insort(self.lanes[self._key(offset, message)].back, offset)

    def _left(self, offset: int, message: Message[Any]) -> None:
        key = self._key(offset, message)
        lane = self.lanes[key]
        lane.out -= 1
        if not lane.out:
            lane.hold = False
            if lane.back:
                self._offer(lane)
            else:
                del self.lanes[key]

    def due(self, now: float, limit: int) -> Iterator[Delivery]:
        while self.back and self.back[0][0] <= now and limit > 0:
            _, first = heappop(self.back)
            lane = self.lanes[self._key(first, self.waiting[first])]
            lane.hold = self._failing(first)
            run = lane.back[:1] if lane.hold else list(self._run(lane.back[:limit], now))
            del lane.back[: len(run)]
            lane.out += len(run)
            limit -= len(run)
            for offset in run:
                yield self._hand(offset, self.waiting.pop(offset))

    def _run(self, offsets: Iterable[int], now: float) -> Iterator[int]:
        """Those that may go together."""
        for offset in offsets:
            if self._failing(offset) or self.facts.get(offset, NOTHING).due > now:
                return
            yield offset
