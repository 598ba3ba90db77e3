"""Planted bugs: the steps of the embedded bus, each broken in one way. The simulation must find every one.

One known from other buses cannot be planted here: a retry that is taken for a duplicate. This bus has no deduplication.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from tests.simulation.process import Hands
from tests.simulation.schedule import Planted

from tidings.kernel.topics import GROUP
from tidings.kernel.transport import Event, Settlement, Subscription
from tidings.transports.sqlite.groups import Group, Held
from tidings.transports.sqlite.log import Log, Segment


class CountAtClaim(Hands):
    """A crash is counted when a suspect is handed out, not when its marked holder dies."""

    def _take(self, group: Group, limit: int, slots: Any, owner: object) -> Any:
        takes = super()._take(group, limit, slots, owner)
        for held, seq, _ in takes:
            if held.suspect:
                self.run("UPDATE parked SET crashes = crashes + 1 WHERE grp = ? AND seq = ?", (group.id, seq))
        return takes


class CumulativeAck(Hands):
    """Acknowledging a number settles all lower ones of its claim."""

    def _strike(self, held: Held, numbers: Iterable[int]) -> set[int]:
        highest = max(numbers, default=0)
        super()._strike(held, {n for n in held.todo if n < highest} if not held.take else ())
        ours: set[int] = super()._strike(held, numbers)
        return ours


class StartRace(Hands):
    """The start position is not written when a group is made, but when it first claims."""

    def register(self, subscription: Subscription) -> int:
        known = {id for (id,) in self.rows("SELECT id FROM grp")}
        id = super().register(subscription)
        if id not in known:
            self.late.add(id)
        return id

    def claim(self, id: int, limit: int, owner: object = None) -> Any:
        if id in self.late:
            self.late.discard(id)
            self._place(id, self.group(id).ordered, self.log.seq)
        return super().claim(id, limit, owner)

    @property
    def late(self) -> set[int]:
        late: set[int] = self.__dict__.setdefault("_late", set())
        return late


class HeldKeyOvertaken(Hands):
    """Fresh messages overtake a parked one of their key."""

    def park(self, group: int, numbers: Iterable[int], due: float, **more: Any) -> None:
        super().park(group, numbers, due, **more)
        self.run("UPDATE parked SET key = NULL WHERE grp = ?", (group,))


class BusySlotHandover(Hands):
    """A slot is surrendered while something of it is held."""

    def _busy(self, id: int) -> set[int]:
        return set()


class SeqReuse(Log):
    """The next number follows the highest that is stored: after retention, numbers come again."""

    def begin(self, now: float) -> None:
        super().begin(now)
        stored = (self.value(f"SELECT max(seq) FROM {table}") or 0 for table in self.tables())
        self.seq = max(stored)


class NoFence(Hands):
    """A lost claim can still be settled: what it held is done, whoever has it now."""

    def _strike(self, held: Held, numbers: Iterable[int]) -> set[int]:
        ours = super()._strike(held, numbers)
        for seq in set(numbers) - ours:
            self.run("DELETE FROM parked WHERE grp = ? AND seq = ?", (held.group, seq))
        return set(numbers)


class SweepsAlone(Hands):
    """What follows a swept message of its key stays in hand (a bug that was found here)."""

    def sweep(self, at: float) -> None:
        late = at - self.lease
        for held in [*self.claims.values(), *self.takes.values()]:
            if held.born < late and (stale := {n for n in held.todo if held.seen.get(n, 0.0) < late}):
                self._give_back(held, stale, suspect=1)


class NoMark(Hands):
    """A suspect starts without a mark."""

    def mark(self, held: Held, seq: int) -> bool:
        return True


class ResetCount(Hands):
    """Whoever finds a dead member forgets what was counted."""

    def expire(self) -> None:
        super().expire()
        self.run("UPDATE parked SET crashes = 0")


class SkipRenewal(Hands):
    """What is extended goes back all the same."""

    def sweep(self, at: float) -> None:
        late, count = at - self.lease, 0
        for held in [*self.claims.values(), *self.takes.values()]:
            if held.born < late:
                count += self._give_back(held, held.todo, suspect=1)
        if count:
            self.events.append(Event("recovered", count))


class ForgetRollback(Hands):
    """After a rollback the memory is not what it was before."""

    def reset(self) -> None:
        self.struck, self.groups = [], {}


class LostOutput(Hands):
    """What a handler sent is stored by a transaction of its own, after the settlement's."""

    later: list[Any]

    def begin(self, mono: float) -> None:
        super().begin(mono)
        self.later, self.now_due = [], self.__dict__.get("later", [])

    def settle(self, batch: Any, outgoing: Any) -> Any:
        for rows, size, _ in self.now_due:
            self.log.append(rows, size, bounded=False)
        self.later = [rows for rows in outgoing.values() if isinstance(rows, tuple)]
        return super().settle([Settlement(s.delivery, s.action) for s in batch], {})


class DoublePark(Hands):
    """What is parked again is not taken off its claim."""

    def _park_again(self, held: Held, seq: int, delay: float, failures: int, why: str) -> None:
        super()._park_again(held, seq, delay, failures, why)
        if not held.take and held.id in self.claims:
            self.claims[held.id].todo = self.claims[held.id].todo | {seq}


class DropNeeded(Hands):
    """Retention looks at claims only, not at what is unread."""

    def _needed(self, last: int) -> bool:
        return bool(self.rows("SELECT 1 FROM claim WHERE todo < ? LIMIT 1", (struct.pack(">Q", last + 1),)))


class PastUnread(Hands):
    """A scan that finds nothing moves the position beyond what it looked at."""

    def stretch(self, group: Group, priority: int, position: int, limit: int, slots: Any = None) -> Any:
        found, looked = super().stretch(group, priority, position, limit, slots)
        return found, looked if found.numbers else looked + 1


class IgnoreDelay(Hands):
    """What is to be retried later comes at once."""

    def _park_again(self, held: Held, seq: int, delay: float, failures: int, why: str) -> None:
        super()._park_again(held, seq, 0.0, failures, why)


class ReleaseCounts(Hands):
    """What is given back has failed."""

    def _park_again(self, held: Held, seq: int, delay: float, failures: int, why: str) -> None:
        super()._park_again(held, seq, delay, failures if why else failures + 1, why)


class Unsuspected(Hands):
    """What a dead member held is handed out as if nothing had happened."""

    def park(self, group: int, numbers: Iterable[int], due: float, *, suspect: int = 0, **more: Any) -> None:
        super().park(group, numbers, due, suspect=0, **more)


class TakenTwice(Hands):
    """The late settlement of a lost take forgets the take that followed it (a bug that was found here)."""

    def _strike(self, held: Held, numbers: Iterable[int]) -> set[int]:
        ours = super()._strike(held, numbers)
        if held.take and not ours:
            self.takes.pop((held.group, next(iter(numbers))), None)
        return ours


class PatternForgotten(Hands):
    """A replaced pattern is forgotten at once, though not all it matched was handed out."""

    def _repattern(self, id: int, pattern: str) -> None:
        before = self.rows("SELECT pattern FROM pattern WHERE grp = ? AND last IS NULL", (id,))
        super()._repattern(id, pattern)
        if (pattern,) not in before:
            private = f"pattern GLOB '{GROUP}*'"
            self.run(f"DELETE FROM pattern WHERE grp = ? AND last IS NOT NULL AND NOT {private}", (id,))
            self.renew(id)


class BytesMisplaced(Log):
    """What begins a segment is counted to the one before (a bug that was found here)."""

    def _filled(self) -> int:
        return super()._filled() + self.delayed + self.appended


class KeptForgotten(Log):
    """A dropped segment takes the bodies of parked messages with it."""

    def drop(self, segment: Segment) -> None:
        super().drop(segment)
        self.run("DELETE FROM kept")


class Found(Planted, frozen=True):
    """A planted bug, and in what kind of schedule it must be found, within how many seeds."""

    kind: str = "mixed"
    within: int = 40


PLANTED = {
    "count-at-claim": Found(claims=CountAtClaim, kind="crash"),
    "cumulative-ack": Found(claims=CumulativeAck),
    "start-race": Found(claims=StartRace),
    "held-key-overtaken": Found(claims=HeldKeyOvertaken, kind="ordered"),
    "busy-slot-handover": Found(claims=BusySlotHandover, kind="ordered"),
    "seq-reuse": Found(log=SeqReuse, kind="retention"),
    "no-fence": Found(claims=NoFence, kind="zombie"),
    "no-mark": Found(claims=NoMark, kind="crash"),
    "reset-count": Found(claims=ResetCount, kind="crash"),
    "skip-renewal": Found(claims=SkipRenewal, kind="zombie"),
    "forget-rollback": Found(claims=ForgetRollback, kind="rollback"),
    "lost-output": Found(claims=LostOutput),
    "double-park": Found(claims=DoublePark),
    "drop-needed-segment": Found(claims=DropNeeded, kind="retention"),
    "cursor-past-unread": Found(claims=PastUnread),
    "ignore-delay": Found(claims=IgnoreDelay),
    "release-counts": Found(claims=ReleaseCounts),
    "unsuspected": Found(claims=Unsuspected, kind="crash"),
    "sweeps-alone": Found(claims=SweepsAlone, kind="zombie"),
    "taken-twice": Found(claims=TakenTwice, kind="hung"),
    "pattern-forgotten": Found(claims=PatternForgotten, kind="deploy"),
    "bytes-misplaced": Found(log=BytesMisplaced, kind="retention"),
    "kept-forgotten": Found(log=KeptForgotten, kind="retention"),
}
