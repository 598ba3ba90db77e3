"""The file, and what processes remember of it, compared with what is true."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import apsw
from msgspec import Struct

from tidings.kernel.message import Message
from tidings.kernel.topics import matches
from tidings.transports._numbers import unpack
from tidings.transports._records import OVERHEAD
from tidings.transports.sqlite.groups import ABANDONED
from tidings.transports.sqlite.log import END

if TYPE_CHECKING:
    from tests.simulation.loop import Time
    from tests.simulation.process import Process


class Broken(BaseException):
    """A promise was broken."""


class Stored(Struct):
    """A row of the log."""

    where: str
    priority: int
    key: str | None
    slot: int
    at: float
    message: Message[Any]


class Open(Struct):
    """A message that a group has not settled."""

    failures: int = 0
    crashes: int = 0
    due: float = 0.0
    suspect: bool = False
    fresh: bool = True
    holder: tuple[int, int, int] | None = None  # member, claim, take
    running: bool = False
    since: float = 0.0  # held, or last extended


class Ledger:
    """What a group must get, and what has become of it."""

    def __init__(self, name: str, ordered: bool) -> None:
        self.name, self.ordered = name, ordered
        self.patterns: list[list[Any]] = []  # pattern, first, last
        self.open: dict[int, Open] = {}
        self.done: dict[int, str] = {}
        self.again: set[int] = set()  # may come again: the group was switched between ordered and not
        self.positions: dict[int, int] = {}

    def wants(self, seq: int, where: str) -> bool:
        return any(first <= seq <= last and matches(pattern, where) for pattern, first, last in self.patterns)


class File(Struct):
    """What the file says of deliveries, after a commit."""

    claims: dict[tuple[int, int], tuple[int, int]]  # (group, number): (claim, member)
    written: set[tuple[int, int, int, int]]  # group, number, claim, member
    parked: dict[tuple[int, int], tuple[Any, ...]]  # member, take, failures, crashes, suspect, running, due
    positions: dict[int, dict[int, int]]  # group: priority or slot: number


class Comparison:
    """What is known of one schedule, and whether the file and its processes agree."""

    def __init__(self, con: apsw.Connection, time: Time) -> None:
        self.con, self.time, self.now = con, time, time.now
        self.stored: dict[int, Stored] = {}
        self.retained: set[int] = set()  # in the log
        self.groups: dict[int, Ledger] = {}
        self.channels: dict[int, tuple[str, int]] = {}
        self.moved: set[int] = set()  # groups whose positions may go back in this commit
        self.segments = self.compared = -1
        self.seen = Counter[str]()  # what happened at all

    def _look_at_channels(self) -> None:
        for id, topic, priority in self.con.execute("SELECT id, topic, priority FROM channel"):
            self.channels[id] = (topic, priority)

    def _tables(self) -> list[str]:
        return ["dead", *(f"log_{n}" for (n,) in self.con.execute("SELECT n FROM segment ORDER BY n"))]

    def _retained(self) -> list[int]:
        tables = " UNION ALL ".join(f"SELECT seq FROM {table}" for table in self._tables())
        return sorted(seq for (seq,) in self.con.execute(tables) if seq in self.stored)

    def _read(self) -> File:
        run = self.con.execute
        claims: dict[tuple[int, int], tuple[int, int]] = {}
        written: set[tuple[int, int, int, int]] = set()
        for claim, group, member, todo in run("SELECT id, grp, member, todo FROM claim"):
            ledger = self.groups.get(group)
            for seq in unpack(todo):
                written.add((group, seq, claim, member))
                if (group, seq) in claims and not (ledger and seq in ledger.again):
                    raise Broken(f"group {group}: {seq} is in two claims")
                claims[group, seq] = (claim, member)
        fields = "grp, seq, member, take, failures, crashes, suspect, running, due"
        parked = {(row[0], row[1]): row[2:] for row in run(f"SELECT {fields} FROM parked")}
        positions: dict[int, dict[int, int]] = defaultdict(dict)
        for query in ("SELECT grp, priority, seq FROM cursor", "SELECT grp, slot, seq FROM slot"):
            for group, place, seq in run(query):
                positions[group][place] = seq
        for group, seq in claims.keys() | parked.keys():
            ledger = self.groups.get(group)
            if ledger is None or (seq not in ledger.open and seq not in ledger.again):
                known = ledger.done.get(seq, "not for it") if ledger else "of no group"
                raise Broken(f"group {group}: {seq} is {known}, and claimed or parked")
        return File(claims, written, parked, positions)

    def _located(self, id: int, ledger: Ledger, file: File) -> None:
        positions = file.positions.get(id, {})
        hands: dict[str, set[int]] = {}
        for seq, state in ledger.open.items():
            stored, claimed, parked = self.stored[seq], file.claims.get((id, seq)), file.parked.get((id, seq))
            position = positions[stored.slot if ledger.ordered else stored.priority]
            ahead = seq > position and seq in self.retained and ledger.wants(seq, stored.where)
            places = (claimed is not None) + (parked is not None) + ahead
            if places != 1 and not (places and seq in ledger.again):
                where = f"claim {claimed}, parked {parked}, {'ahead' if ahead else 'passed'}"
                raise Broken(f"{ledger.name}: {seq} is in {places} places: {where}")
            if parked is not None:
                self._parked_rightly(ledger, seq, state, parked)
            holder = claimed[1] if claimed else parked[0] if parked else None
            if ledger.ordered and holder is not None and stored.key is not None:
                hands.setdefault(stored.key, set()).add(holder)
        for key, members in hands.items():
            if len(members) > 1 and not ledger.again:
                raise Broken(f"{ledger.name}: key {key} is in the hands of members {sorted(members)}")
        if id in self.moved:
            self._not_again(ledger, positions)

    def _not_again(self, ledger: Ledger, positions: dict[int, int]) -> None:
        for seq in (ledger.done.keys() & self.retained) - ledger.again:
            stored = self.stored[seq]
            if seq > positions[stored.slot if ledger.ordered else stored.priority]:
                raise Broken(f"{ledger.name}: {seq} was {ledger.done[seq]}, and is ahead of the position")

    def _parked_rightly(self, ledger: Ledger, seq: int, state: Open, parked: tuple[Any, ...]) -> None:
        _, _, failures, crashes, suspect, running, _ = parked
        told, truth = (
            (failures, crashes, suspect, running),
            (state.failures, state.crashes, state.suspect, state.running),
        )
        if told != truth and seq not in ledger.again:
            raise Broken(f"{ledger.name}: {seq} has (failures, crashes, suspect, running) {truth}, parked as {told}")

    def _moved(self, id: int, ledger: Ledger, positions: dict[int, int]) -> None:
        if positions == ledger.positions:
            return
        if id not in self.moved:
            for place, seq in ledger.positions.items():
                if positions.get(place, -1) < seq:
                    raise Broken(f"{ledger.name}: position {place} went back from {seq} to {positions.get(place)}")
        ledger.positions = positions

    def mirrored(self, process: Process, file: File) -> None:
        """A process's memory of what it holds is what the file says."""
        steps = process.steps
        if not self.con.execute("SELECT 1 FROM member WHERE id = ?", (steps.member,)).get:
            return  # it was declared lost, and will learn so
        claims = {(held.group, seq, id, steps.member) for id, held in steps.claims.items() for seq in held.todo}
        written = {entry for entry in file.written if entry[3] == steps.member}
        if claims != written:
            raise Broken(f"{process.name} remembers claims {claims}, the file says {written}")
        takes = {where: row[1] for where, row in file.parked.items() if row[0] == steps.member}
        remembered = {where: held.take for where, held in steps.takes.items()}
        if takes != remembered:
            raise Broken(f"{process.name} remembers takes {remembered}, the file says {takes}")
        if steps.log.version >= 0:
            self._log_mirrored(process.name, steps.log)

    def rolled_back(self, process: Process) -> None:
        self.seen["rolled back"] += 1
        self.mirrored(process, self._read())

    def _log_mirrored(self, name: str, log: Any) -> None:
        told = self.con.execute("SELECT seq, segments, bytes, delayed FROM meta").fetchone()
        if told != (mirror := (log.seq, log.version, log.bytes, log.delayed)):
            raise Broken(f"{name} remembers (seq, segments, bytes, delayed) {mirror}, it is {told}")
        if len(self.channels) != len(log.topics):
            self._look_at_channels()
        if self.channels != log.topics:
            raise Broken(f"{name} remembers channels {log.topics}, the file says {self.channels}")
        if told[1] != self.compared:
            self.compared = told[1]
            query = "SELECT n, first, coalesce(last, ?) FROM segment ORDER BY n"
            segments = self.con.execute(query, (END,)).fetchall()
            if segments != [(s.n, s.first, s.last) for s in log.segments]:
                raise Broken(f"{name} remembers segments {log.segments}, the file says {segments}")

    def _kept(self, file: File) -> None:
        """When segments were dropped: nothing is gone that an active group needs."""
        segments = self.con.execute("SELECT segments FROM meta").get
        if segments == self.segments:
            return
        self.segments = segments
        self.retained = set(self._retained())
        kept = {seq for (seq,) in self.con.execute("SELECT seq FROM kept")}
        for id, ledger in self.groups.items():
            gone = [n for n in ledger.open.keys() - self.retained if n not in kept or (id, n) not in file.parked]
            if gone and self._active(id):
                raise Broken(f"{ledger.name} is active and needs {gone}, which are gone")
            for seq in gone:
                del ledger.open[seq]
            self.seen["abandoned"] += len(gone)
        self.weighed()

    def _active(self, id: int) -> bool:
        query = "SELECT seen > ? OR EXISTS (SELECT 1 FROM part WHERE grp = id) FROM grp WHERE id = ?"
        return bool(self.con.execute(query, (self.now() - ABANDONED, id)).get)

    def weighed(self) -> None:
        """The size the file remembers is the size it has."""
        tables = [table for table in self._tables() if table != "dead"] + ["delayed"]
        query = "SELECT coalesce(sum(length(record) + {}), 0) FROM {}"
        size = sum(self.con.execute(query.format(OVERHEAD, table)).get for table in tables)
        told = self.con.execute("SELECT bytes FROM meta").get
        if told != size:
            raise Broken(f"the log has {size} bytes, and remembers {told}")
