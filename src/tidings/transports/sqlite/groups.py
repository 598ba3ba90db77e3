"""Members and groups: who is there, who reads what, from where, and what must be kept for them. Steps only.

A member is one open bus of one process. One that is provably dead, or silent for a lease, is *expired* by whoever
notices: all it held becomes suspect. It learns so at its next ``begin``, loses its sessions, and joins anew.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from typing import NoReturn

import apsw

from tidings.kernel.errors import BusError, NotFound, nearest
from tidings.kernel.topics import DEAD, GROUP, matches
from tidings.kernel.transport import Event, Session, Subscription
from tidings.transports._numbers import bits, unpack
from tidings.transports._points import passed
from tidings.transports._records import SLOTS, Found, slot_of

from . import identity, started_at
from .log import END, Interest, Log, Steps, sql

ABANDONED = 7 * 86400.0  # seconds; a group without members for so long no longer holds retention back
STRETCHES = 64  # scans in one claim, so that no claim holds the file for long


def _dropped() -> NoReturn:
    raise NotFound(
        "a group was dropped while its consumer was silent",
        why="a process that was stopped or blocked for longer than its lease is no member any more",
        mend="start the app again: it registers the group as a new one",
    )


class Held(Session):
    """What a member has in its hands: a claim of fresh messages, or one parked message taken for the ``take``-th time.

    ``todo``: the numbers not settled yet; ``keys``: theirs, in ordered groups; ``seen``: when they were last extended.
    """

    __slots__ = ("born", "crashes", "failures", "group", "id", "keys", "owner", "seen", "suspect", "take", "todo")

    def __init__(self, group: int, todo: set[int], born: float, owner: object, id: int = 0) -> None:
        super().__init__()
        self.group, self.todo, self.born, self.owner, self.id = group, todo, born, owner, id
        self.take = self.failures = self.crashes = 0
        self.suspect = False
        self.keys: dict[int, str | None] = {}
        self.seen: dict[int, float] = {}


class Group:
    """A group as last read: its patterns, and the channels they match by priority (0 for all, if ordered)."""

    def __init__(self, id: int, ordered: int, generation: int, patterns: list[tuple[str, int, int]]) -> None:
        self.id, self.ordered, self.generation, self.patterns = id, bool(ordered), generation, patterns
        self.interests: dict[int, Interest] = {}
        self.scanned: dict[int, int] = {}  # nothing of ours up to here, though the file does not say so yet
        self.known, self.audience = 0, -1
        self.ended = max((last for _, _, last in patterns if last < END), default=-1)
        self.mixed = max([self.ended, *(first - 1 for _, first, _ in patterns)])  # up to here patterns differ by number

    def learn(self, log: Log) -> None:
        """Match channels that are new."""
        if self.known == log.known:
            return
        ids = {channel for pattern, _, _ in self.patterns for channel in log.matching(pattern, self.known)}
        by_priority: dict[int, list[int]] = {}
        for channel in sorted(ids):
            by_priority.setdefault(0 if self.ordered else log.topics[channel][1], []).append(channel)
        for priority, channels in by_priority.items():
            dead = any(log.topics[channel][0].startswith(DEAD) for channel in channels)
            self.interests.setdefault(priority, Interest()).add(channels, dead)
        self.known = log.known

    def wanted(self, seq: int, topic: str) -> bool:
        """Whether a pattern matches the topic at this number."""
        return any(first <= seq <= last and matches(pattern, topic) for pattern, first, last in self.patterns)


class Groups(Steps):
    """``lost``, ``events`` and ``woken`` tell the loop what a transaction did beside its results."""

    def __init__(self, con: apsw.Connection, log: Log, lease: float, retain: float) -> None:
        super().__init__(con)
        self.log, self.lease, self.keep = log, lease, retain
        log.make_room = self.retain
        self.identity = identity(os.getpid())
        self.member, self.mono, self.checked = 0, time.monotonic(), 0.0
        self.patient = 0.0  # until then nobody is lost for being silent
        self.claims: dict[int, Held] = {}  # by id
        self.takes: dict[tuple[int, int], Held] = {}  # by group and number
        self.joined: set[int] = set()  # groups consumed here
        self.groups: dict[int, Group] = {}
        self.lost: list[Held] = []
        self.events: list[Event] = []
        self.woken: set[int] = set()
        self.struck: list[tuple[Held, set[int]]] = []  # what ``todo`` was before this transaction
        self.before = (0, self.claims, self.takes, self.joined)

    # -- members -------------------------------------------------------------------------------------------------

    def begin(self, mono: float) -> None:
        """First in every transaction. If others declared this member lost, all it held is; it joins anew.

        A member that could not write for long (the file was locked, the machine paused) gives the others, who perhaps
        could not either, time to be heard before it calls them silent.
        """
        if mono - self.mono > self.lease / 2:
            self.patient = mono + self.lease / 2
        self.mono, self.struck, self.lost, self.events, self.woken = mono, [], [], [], set()
        self.before = (self.member, self.claims.copy(), self.takes.copy(), self.joined.copy())
        if self.member and not self.rows("SELECT 1 FROM member WHERE id = ?", (self.member,)):
            self.lost = [*self.claims.values(), *self.takes.values()]
            self.claims, self.takes = {}, {}
            self.events.append(Event("fenced", max(1, len(self.lost)), "this process was silent for a lease"))
            self.woken |= self.joined
            self.join()

    def reset(self) -> None:
        """The transaction was rolled back: what it did in memory is, too."""
        for held, todo in reversed(self.struck):
            held.todo = todo
        self.member, self.claims, self.takes, self.joined = self.before
        self.struck, self.groups = [], {}

    def join(self) -> None:
        query = "INSERT INTO member(boot, pid, started, pidns, beat) VALUES (?, ?, ?, ?, ?) RETURNING id"
        self.member = self.value(query, (*self.identity, self.mono))
        self.con.executemany("INSERT INTO part VALUES (?, ?)", [(group, self.member) for group in self.joined])

    def enter(self) -> None:
        self.run(sql("records"))
        self.join()
        self.expire()

    def beat(self, at: float, *, sweep: bool = False) -> None:
        """The event loop was alive at ``at``."""
        self.run("UPDATE member SET beat = max(beat, ?) WHERE id = ?", (at, self.member))
        query = "UPDATE grp SET seen = ? WHERE seen < ? AND id IN (SELECT grp FROM part WHERE member = ?)"
        self.run(query, (self.log.now, self.log.now - 3600, self.member))
        if sweep:
            self.sweep(at)

    def sweep(self, at: float) -> None:
        """What its holder did not extend goes back: ``claims.py`` knows what is held."""

    def gone(self, mono: float) -> list[int]:
        """Members that are provably dead, or silent for a lease. Needs no transaction."""
        boot, _, _, pidns = self.identity
        late = mono - self.lease if mono >= self.patient else 0.0
        others = self.rows("SELECT id, boot, pid, started, pidns, beat FROM member WHERE id <> ?", (self.member,))
        return [
            id
            for id, its_boot, pid, started, its_pidns, beat in others
            if its_boot != boot or beat < late or (its_pidns == pidns and started_at(pid) != started)
        ]

    def expire(self) -> None:
        """What lost members held is parked as suspect; a mark they left is one crash."""
        self.checked, count = self.mono, 0
        for member in self.gone(self.mono):
            for group, todo in self.rows("SELECT grp, todo FROM claim WHERE member = ?", (member,)):
                numbers = unpack(todo)
                self.park(group, numbers, self.log.now, suspect=1)
                count += len(numbers)
                passed("member.expire")
            count += self.value("SELECT count(*) FROM parked WHERE member = ?", (member,))
            self.woken |= {group for (group,) in self.rows("SELECT grp FROM part WHERE member = ?", (member,))}
            self.run(sql("expire"), {"member": member})
        if count:
            self.events.append(Event("recovered", count, "a process died, or was silent for a lease"))

    def park(
        self, group: int, numbers: Iterable[int], due: float, *, suspect: int = 0, failures: int = 0, why: str = ""
    ) -> None:
        """Give each of these messages a row of its own. Keys matter only where they are held: in ordered groups."""
        numbers = list(numbers)
        keys: dict[int, tuple[str | None, int | None]] = {}
        if self.group(group).ordered:
            for seq, message in self.log.fetch(numbers).items():
                keys[seq] = message.key, slot_of(seq, message.key)
        self.con.executemany(
            "INSERT INTO parked(grp, seq, key, slot, due, failures, suspect, why) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            [(group, seq, *keys.get(seq, (None, None)), due, failures, suspect, why) for seq in numbers],
        )
        self.woken.add(group)

    # -- registration --------------------------------------------------------------------------------------------

    def register(self, subscription: Subscription) -> int:
        """A group with its start position, and this process as one of its members. The last registration wins."""
        self.expire()
        self.log.flush()
        name, ordered = subscription.group or "", int(subscription.ordered)
        row = self.rows("SELECT id, ordered FROM grp WHERE name = ?", (name,))
        id: int = row[0][0] if row else self._create(name, subscription)
        if row and row[0][1] != ordered:
            self._reorder(id, ordered)
        passed("group.register")
        self._repattern(id, subscription.pattern)
        query = "UPDATE grp SET app = ?, ordered = ?, seen = ? WHERE id = ?"
        self.run(query, (subscription.app, ordered, self.log.now, id))
        self.run("INSERT OR IGNORE INTO part VALUES (?, ?)", (id, self.member))
        self.joined.add(id)
        return id

    def _create(self, name: str, subscription: Subscription) -> int:
        first = self.log.seq + 1 if subscription.start is None else self._first(subscription.start)
        query = "INSERT INTO grp(name, app, generation, ordered, seen) VALUES (?, ?, 1, ?, ?) RETURNING id"
        id: int = self.value(query, (name, subscription.app, int(subscription.ordered), self.log.now))
        patterns = [(id, subscription.pattern, first), (id, GROUP + name, 0)]
        self.con.executemany("INSERT INTO pattern(grp, pattern, first) VALUES (?, ?, ?)", patterns)
        self._place(id, subscription.ordered, first - 1)
        self.renew(id)
        for channel in self.log.matching(GROUP + name):  # its private address is read from its beginning
            for table in self.log.tables():
                older = self.rows(f"SELECT seq FROM {table} WHERE channel = ? AND seq < ?", (channel, first))
                self.park(id, [seq for (seq,) in older], self.log.now)
        return id

    def _first(self, start: float) -> int:
        """The first number of what was stored at or after ``start``, dead letters included."""
        if start <= 0:
            return 1
        first = self.log.position(start)
        return min(first, self.value("SELECT min(seq) FROM dead WHERE at >= ?", (start,)) or first)

    def _place(self, id: int, ordered: bool, seq: int) -> None:
        """Put a group's cursors, or slots, to ``seq``."""
        table, places = ("slot(grp, slot, seq)", SLOTS) if ordered else ("cursor(grp, priority, seq)", 10)
        query = f"INSERT INTO {table} VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET seq = excluded.seq"
        self.con.executemany(query, [(id, place, seq) for place in range(places)])

    def _reorder(self, id: int, ordered: int) -> None:
        """From cursors to slots or back, at the lowest: messages may come again, none is lost."""
        places = json.dumps([*range(SLOTS)] if not ordered else list(self.group(id).interests))
        old, place = ("cursor", "priority") if ordered else ("slot", "slot")
        query = f"SELECT min(seq) FROM {old} WHERE grp = ? AND {place} IN (SELECT value FROM json_each(?))"
        lowest = self.value(query, (id, places))
        seq = self.log.seq if lowest is None else lowest
        self.run("DELETE FROM cursor WHERE grp = :id; DELETE FROM slot WHERE grp = :id", {"id": id})
        self._place(id, bool(ordered), seq)
        self.run("UPDATE parked SET slot = seq & 63 WHERE grp = ? AND slot IS NULL", (id,))
        self.renew(id)

    def _repattern(self, id: int, pattern: str) -> None:
        where = f"WHERE grp = ? AND last IS NULL AND pattern NOT GLOB '{GROUP}*'"
        if self.rows(f"SELECT pattern FROM pattern {where}", (id,)) != [(pattern,)]:
            self.run(f"UPDATE pattern SET last = ? {where}", (self.log.seq, id))
            self.run("INSERT INTO pattern(grp, pattern, first) VALUES (?, ?, ?)", (id, pattern, self.log.seq + 1))
            self.renew(id)

    def renew(self, id: int) -> None:
        """What the group reads has changed."""
        self.run("UPDATE grp SET generation = generation + 1 WHERE id = ?", (id,))
        self.run("UPDATE meta SET groups = groups + 1")
        self.groups.pop(id, None)

    def group(self, id: int) -> Group:
        """A group as it is now."""
        group = self.groups.get(id)
        if group is None or group.audience != self.log.audience:
            ordered, generation = self.value("SELECT ordered, generation FROM grp WHERE id = ?", (id,)) or _dropped()
            if group is None or group.generation != generation:
                rows = self.rows("SELECT pattern, first, coalesce(last, ?) FROM pattern WHERE grp = ?", (END, id))
                group = self.groups[id] = Group(id, ordered, generation, rows)
            group.audience = self.log.audience
        group.learn(self.log)
        return group

    def stretch(
        self, group: Group, priority: int, position: int, limit: int, slots: dict[int, int] | None = None
    ) -> tuple[Found, int]:
        """Messages of one priority beyond ``position``; in ordered groups beyond the positions of ``slots``."""
        mask = None if slots is None else bits(slots)
        found = Found()
        for _ in range(STRETCHES):
            if len(found.numbers) >= limit or position >= self.log.seq:
                break
            before = position
            some, position = self.log.scan(group.interests[priority], before, limit - len(found.numbers), mask)
            if group.ended >= 0 or before < group.mixed:
                some = some.only(lambda seq, message: group.wanted(seq, message.destination))
            if slots is not None:
                some = some.only(lambda seq, message: seq > slots[slot_of(seq, message.key)])
            found.add(some)
        return found, position

    def leave(self, id: int) -> None:
        """This process no longer consumes the group."""
        self.joined.discard(id)
        self.run("DELETE FROM part WHERE grp = ? AND member = ?", (id, self.member))
        self.run("UPDATE slot SET member = NULL WHERE grp = ? AND member = ?", (id, self.member))
        self.run("UPDATE grp SET seen = ? WHERE id = ?", (self.log.now, id))

    # -- retention -----------------------------------------------------------------------------------------------

    def retain(self, need: int = 0) -> None:
        """Drop the oldest segments that are past their time or above the size; never one that is still needed."""
        log = self.log
        current = log.segments[-1]
        newest = log.last_at(current)
        if newest is not None and (newest < log.now - self.keep or current.born < log.now - max(self.keep / 8, 1.0)):
            log.roll()
        for segment in log.segments[:-1]:
            old = (log.last_at(segment) or 0.0) < log.now - self.keep
            if not (old or log.bytes + need > log.max_size) or self._needed(segment.last):
                return
            for name, id in self.rows("SELECT name, id FROM grp WHERE seen <= ?", (log.now - ABANDONED,)):
                if self._needs(self.group(id), segment.last):
                    told = f"{name} has had no member for 7 days: what was stored up to number {segment.last} is gone"
                    self.events.append(Event("retention", 1, told))
            log.drop(segment)

    def _needed(self, last: int) -> bool:
        if self.rows("SELECT 1 FROM claim WHERE todo < ? LIMIT 1", ((last + 1).to_bytes(8),)):
            return True
        query = "SELECT id FROM grp WHERE seen > ? OR EXISTS (SELECT 1 FROM part WHERE grp = id)"
        return any(self._needs(self.group(id), last) for (id,) in self.rows(query, (self.log.now - ABANDONED,)))

    def _needs(self, group: Group, last: int) -> bool:
        """Whether a group has unread messages up to ``last``; if not, its positions move there."""
        table, place = ("slot", "slot") if group.ordered else ("cursor", "priority")
        behind = dict(self.rows(f"SELECT {place}, seq FROM {table} WHERE grp = ? AND seq < ?", (group.id, last)))
        positions = {0: min(behind.values(), default=last)} if group.ordered else behind
        slots = dict.fromkeys(range(SLOTS), END) | behind if group.ordered else None
        for priority, position in positions.items():
            while priority in group.interests and position < last:
                found, position = self.stretch(group, priority, position, 1, slots)
                if found.numbers and found.numbers[0] <= last:
                    return True
        self.run(f"UPDATE {table} SET seq = ? WHERE grp = ? AND seq < ?", (last, group.id, last))
        return False

    # -- mending ---------------------------------------------------------------------------------------------

    def _at_rest(self, name: str) -> int:
        """A group's id. Raises ``NotFound``, and ``BusError`` while a process consumes it."""
        id: int | None = self.value("SELECT id FROM grp WHERE name = ?", (name,))
        if id is None:
            known = (row[0] for row in self.rows("SELECT name FROM grp"))
            raise NotFound(f"no group {name!r}", mend=nearest(name, known))
        self.log.flush()
        self.expire()
        if self.rows("SELECT 1 FROM part WHERE grp = ?", (id,)):
            raise BusError(f"group {name!r} has members at work", mend="stop the app that consumes it")
        return id

    def rename(self, name: str, to: str) -> None:
        """It still answers to the old name: dead letters of before are replayed there."""
        id = self._at_rest(name)
        if self.rows("SELECT 1 FROM grp WHERE name = ?", (to,)):
            raise BusError(f"group {to!r} exists", mend=f"drop it first, or drop {name!r}")
        self.run("UPDATE grp SET name = ? WHERE id = ?", (to, id))
        self.run("INSERT INTO pattern(grp, pattern, first) VALUES (?, ?, 0)", (id, GROUP + to))
        self.renew(id)

    def drop(self, name: str) -> None:
        id = self._at_rest(name)
        self.renew(id)
        self.run(sql("drop"), {"grp": id})

    def seek(self, name: str, start: float) -> None:
        """Replay. What was parked comes again with the rest."""
        id = self._at_rest(name)
        first = self._first(start)
        self.run("UPDATE pattern SET first = min(first, ?) WHERE grp = ?", (first, id))
        self._place(id, self.group(id).ordered, first - 1)
        self.renew(id)
        retained = max(first, self.log.segments[0].first)  # of what is older, the parked row is all there is
        rows = self.rows("SELECT seq FROM parked WHERE grp = ? AND seq >= ?", (id, retained))
        read = {channel for interest in self.group(id).interests.values() for channel in interest.ids}
        again = [
            seq
            for seq, message in self.log.fetch([seq for (seq,) in rows]).items()
            if self.log.channels[message.destination, message.priority] in read
        ]
        self.con.executemany("DELETE FROM parked WHERE grp = ? AND seq = ?", [(id, seq) for seq in again])
        self.run("UPDATE parked SET failures = 0, due = ? WHERE grp = ? AND seq >= ?", (self.log.now, id, retained))

    def tick(self, name: str, due: float) -> bool:
        newer = "ON CONFLICT DO UPDATE SET due = excluded.due WHERE excluded.due > tick.due"
        return self.run(f"INSERT INTO tick VALUES (?, ?) {newer}", (name, due)) == 1
