"""The log: messages as rows, numbered once, in a chain of tables of which retention drops the oldest whole.

Steps only: every method runs inside the transaction of whoever calls it, between ``begin`` and ``flush``. What is kept
in memory mirrors the file and is renewed by ``begin``; ``reset`` forgets it after a rollback.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, cast

import apsw
from msgspec import Struct

from tidings.kernel.errors import BusFull
from tidings.kernel.message import Message
from tidings.kernel.topics import DEAD, REPLY, is_pattern
from tidings.transports._matcher import Matcher, expression
from tidings.transports._points import passed
from tidings.transports._records import OVERHEAD, Found, Row, messages

SCHEMA, END = 2, 2**62
MOST_BYTES = 64 * 2**20  # of one value: a record, or what is read at once
# The GIL is let go at every step of a statement, and a busy thread then keeps it for a while: few large statements.
# More new rows than FLOOD are not looked through: everybody is woken.
CHUNK, FLOOD = 256, 20_000


@lru_cache(None)
def sql(name: str) -> str:
    """The text of ``<name>.sql``."""
    return files(__package__).joinpath(f"{name}.sql").read_text()


@lru_cache(256)
def _insert(table: str, rows: int) -> str:
    return f"INSERT INTO {table} VALUES " + ",".join(["(?,?,?,?,?)"] * rows)


@lru_cache(1024)
def _scan(table: str, by: str, single: bool, slots: bool) -> str:
    channels = "channel = ?" if single else "channel IN (SELECT value FROM json_each(?))"
    mask = "AND ((? >> coalesce(slot, seq & 63)) & 1)" if slots else ""
    return sql("scan").format(table=table, by=by, where=f"{channels} AND seq > ? AND seq <= ? {mask}")


@lru_cache(1024)
def _pick(table: str) -> str:
    return sql("scan").format(table=table, by="", where="seq IN (SELECT value FROM json_each(?))")


class Steps:
    """What steps are made of: statements on the connection whose transaction they are in."""

    def __init__(self, con: apsw.Connection) -> None:
        self.con = con

    def rows(self, query: str, bindings: Sequence[Any] | dict[str, Any] = ()) -> list[Any]:
        return self.con.execute(query, bindings).fetchall()

    def value(self, query: str, bindings: Sequence[Any] | dict[str, Any] = ()) -> Any:
        """The only value; the only row; or None."""
        return self.con.execute(query, bindings).get

    def run(self, query: str, bindings: Sequence[Any] | dict[str, Any] = ()) -> int:
        """How many rows were changed."""
        self.con.execute(query, bindings)
        return self.con.changes()


class Segment(Struct):
    """One table of the log; ``last`` of the newest is open."""

    n: int
    first: int
    last: int
    bytes: int
    born: float


class Interest:
    """Channels that are read together, and how they are best found: by rows (a large share) or by index."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.dead = self.sparse = False
        self.window = 65_536
        self.bound: int | str = "[]"

    def add(self, ids: Sequence[int], dead: bool) -> None:
        self.ids += ids
        self.dead |= dead
        self.bound = self.ids[0] if len(self.ids) == 1 else json.dumps(self.ids)


class Log(Steps):
    """What is stored. ``segment_rows`` and ``segment_bytes`` say when a new table begins."""

    def __init__(self, con: apsw.Connection, max_size: int, segment_rows: int, segment_bytes: int) -> None:
        super().__init__(con)
        self.max_size, self.segment_rows, self.segment_bytes = max_size, segment_rows, segment_bytes
        self.make_room: Callable[[int], None] = lambda size: None
        self.seen = -1
        self.now = time.time()
        self.names: dict[int, str] = {}  # for the event loop: never emptied
        self.reset()

    def reset(self) -> None:
        """Forget what is in memory: a transaction was rolled back."""
        self.channels: dict[tuple[str, int], int] = {}
        self.topics: dict[int, tuple[str, int]] = {}
        self.by_topic: dict[str, list[int]] = {}
        self.known, self.version, self.seq, self.audience = 0, -1, 0, -1
        self.bytes = self.delayed = self.appended = 0  # of these bytes so many are delayed; so many pending
        self.listeners: Matcher[str] | None = None  # to the patterns of all groups; None: to be read
        self.unrouted: list[str] = []  # what nobody listens to, of this transaction
        self.segments: list[Segment] = []
        self.pending: list[Row] = []
        self.delayed_until: float | None = None  # the earliest delayed message of this transaction
        self.touched: set[int] | None = set()  # channels with new messages; None: too many to name

    def begin(self, now: float) -> None:
        """Learn what others did since. First in every transaction."""
        self.now = now
        query = "SELECT seq, segments, groups, bytes, delayed, (SELECT max(id) FROM channel) FROM meta"
        self.seq, version, audience, self.bytes, self.delayed, newest = self.value(query)
        if audience != self.audience:
            self.audience, self.listeners = audience, None
        if version != self.version:
            query = "SELECT n, first, coalesce(last, ?), bytes, born FROM segment ORDER BY n"
            self.segments, self.version = [Segment(*row) for row in self.rows(query, (END,))], version
        if (newest or 0) > self.known:
            for row in self.rows("SELECT id, topic, priority FROM channel WHERE id > ? ORDER BY id", (self.known,)):
                self._know(*row)
        self.touched, self.delayed_until, self.pending, self.appended, self.unrouted = set(), None, [], 0, []
        if self.seen < 0:
            self.seen = self.seq
        elif self.seq > self.seen:
            self._look_at_news()

    def _look_at_news(self) -> None:
        if self.seq - self.seen > FLOOD:
            self.touched = None
            return
        self.touched = set()
        for table in ["dead", *(f"log_{segment.n}" for segment in self.segments if segment.last > self.seen)]:
            query = f"SELECT DISTINCT channel FROM {table} NOT INDEXED WHERE seq > ?"
            self.touched |= {channel for (channel,) in self.rows(query, (self.seen,))}

    def _know(self, channel: int, topic: str, priority: int) -> None:
        self.channels[topic, priority] = channel
        self.topics[channel] = (topic, priority)
        self.names[channel] = topic
        self.by_topic.setdefault(topic, []).append(channel)
        self.known = max(self.known, channel)

    def _channel(self, where: tuple[str, int]) -> int:
        new: int = self.value("INSERT INTO channel(topic, priority) VALUES (?, ?) RETURNING id", where)
        self._know(new, *where)
        return new

    def matching(self, pattern: str, beyond: int = 0) -> list[int]:
        """Channels with an id above ``beyond`` whose topic is in ``pattern``."""
        if not is_pattern(pattern):
            return [channel for channel in self.by_topic.get(pattern, ()) if channel > beyond]
        fits = expression(pattern).fullmatch
        return [channel for channel, (topic, _) in self.topics.items() if channel > beyond and fits(topic)]

    def tables(self) -> list[str]:
        """All that is retained; dead letters, too."""
        return ["dead", *(f"log_{segment.n}" for segment in self.segments)]

    # -- storing -------------------------------------------------------------------------------------------------

    def append(self, rows: list[Row], size: int, *, bounded: bool = True) -> None:
        """Store at the end of this transaction. Raises ``BusFull``; settling is not bounded, for it makes room."""
        if bounded and self.bytes + size > self.max_size:
            self.make_room(size)
            if self.bytes + size > self.max_size:
                raise BusFull(
                    f"the bus has no room for {len(rows)} more messages",
                    why=f"{self.bytes:,} of {self.max_size:,} bytes are waiting for groups that have not read them",
                    mend="let its groups catch up, drop those that are gone (tidings groups drop), or raise max_size",
                )
        self.bytes += size
        self.appended += size
        self.pending += rows

    def flush(self) -> None:
        """Write what was appended: number it, find its channels, insert it."""
        if not self.pending:
            return
        pending, self.pending = self.pending, []
        self._roll_if_full()
        self.appended = 0
        channels, now, seq = self.channels, self.now, self.seq
        values, new, before, channel, dead = list[Any](), set[int](), None, 0, False
        for where, due, slot, stored in pending:
            if where is not before:
                before, dead = where, where[0].startswith(DEAD)
                channel = channels.get(where) or self._channel(where)
            if due is not None and due > now:
                self._delay(due, channel, slot, stored)
                continue
            seq += 1
            new.add(channel)
            if dead:
                self.run(_insert("dead", 1), (seq, channel, slot, now, stored))
                self.bytes -= len(stored) + OVERHEAD
            else:
                values += (seq, channel, slot, now, stored)
        self._insert(f"log_{self.segments[-1].n}", values)
        self.seq = seq
        self.run("UPDATE meta SET seq = ?, bytes = ?, delayed = ?", (seq, self.bytes, self.delayed))
        if self.touched is not None:
            self.touched |= new
        self._count_unrouted(new, pending)

    def _count_unrouted(self, new: set[int], rows: list[Row]) -> None:
        if self.listeners is None:
            self.listeners = Matcher()
            for (pattern,) in self.rows("SELECT DISTINCT pattern FROM pattern WHERE last IS NULL"):
                self.listeners.add(pattern, pattern)
        match, names = self.listeners.match, self.names
        deaf = {names[c] for c in new if not match(names[c]) and not names[c].startswith((DEAD, REPLY))}
        if deaf:
            self.unrouted += [where[0] for where, *_ in rows if where[0] in deaf]

    def _insert(self, table: str, values: list[Any]) -> None:
        at, rows = 0, CHUNK
        while at < len(values):
            while len(values) - at < rows * 5:
                rows //= 2
            self.con.execute(_insert(table, rows), values[at : at + rows * 5])
            at += rows * 5

    def _delay(self, due: float, *row: Any) -> None:
        n = self.value("SELECT coalesce(max(n), 0) + 1 FROM delayed WHERE due = ?", (due,))
        self.run("INSERT INTO delayed VALUES (?, ?, ?, ?, ?)", (due, n, *row))
        self.delayed_until, self.delayed = min(due, self.delayed_until or due), self.delayed + len(row[-1]) + OVERHEAD

    def move_due(self, limit: int = 1000) -> bool:
        """Delayed messages that are due enter the log; True: perhaps there are more."""
        query = "SELECT due, n, channel, slot, record FROM delayed WHERE due <= ? ORDER BY due, n LIMIT ?"
        due = self.rows(query, (self.now, limit))
        if due:
            self.con.executemany("DELETE FROM delayed WHERE due = ? AND n = ?", [row[:2] for row in due])
            passed("delayed.move")
            size = sum(len(row[4]) + OVERHEAD for row in due)
            self.bytes, self.delayed = self.bytes - size, self.delayed - size
            self.append([(self.topics[row[2]], None, *row[3:]) for row in due], size, bounded=False)
            self.flush()
        return len(due) == limit

    def next_due(self) -> float | None:
        return cast("float | None", self.value("SELECT min(due) FROM delayed"))

    # -- segments ------------------------------------------------------------------------------------------------

    def _filled(self) -> int:
        """Bytes in the newest table."""
        return self.bytes - self.delayed - self.appended - sum(segment.bytes for segment in self.segments[:-1])

    def _roll_if_full(self) -> None:
        rows = self.seq - self.segments[-1].first + 1
        if rows >= self.segment_rows or self._filled() >= self.segment_bytes:
            self.roll()

    def roll(self) -> None:
        """Close the newest table, unless it is empty, and begin another."""
        if self.segments:
            current = self.segments[-1]
            if current.first > self.seq:
                return
            current.bytes, current.last = self._filled(), self.seq
            query = "UPDATE segment SET last = ?, bytes = ? WHERE n = ?"
            self.run(query, (current.last, current.bytes, current.n))
        query = "INSERT INTO segment(first, bytes, born) VALUES (?, 0, ?) RETURNING n"
        n: int = self.value(query, (self.seq + 1, self.now))
        passed("segment.roll")
        self.run(sql("segment").format(n=n))
        self.segments.append(Segment(n, self.seq + 1, END, 0, self.now))
        self._changed()

    def drop(self, segment: Segment) -> None:
        """Give up a closed table; messages that are parked keep their bodies."""
        parked = "SELECT seq FROM parked WHERE seq BETWEEN ? AND ?"
        query = f"INSERT OR IGNORE INTO kept SELECT * FROM log_{segment.n} WHERE seq IN ({parked})"
        self.run(query, (segment.first, segment.last))
        self.run("DELETE FROM kept WHERE seq NOT IN (SELECT seq FROM parked)")
        passed("segment.drop")
        self.run(f"DROP TABLE log_{segment.n}; DELETE FROM segment WHERE n = {segment.n}")
        self.bytes -= segment.bytes
        self.segments.remove(segment)
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self.run("UPDATE meta SET segments = ?, bytes = ?", (self.version, self.bytes))

    def last_at(self, segment: Segment) -> float | None:
        """When its newest message was stored."""
        return cast("float | None", self.value(f"SELECT at FROM log_{segment.n} ORDER BY seq DESC LIMIT 1"))

    # -- finding -------------------------------------------------------------------------------------------------

    def scan(self, interest: Interest, after: int, limit: int, slots: int | None = None) -> tuple[Found, int]:
        """Up to ``limit`` messages beyond ``after`` in one stretch, and how far was looked. ``slots``: a bit mask."""
        segment = next((s for s in self.segments if s.last > after), None)
        if segment is None or not interest.ids:
            return Found(), self.seq
        single = len(interest.ids) == 1
        start = max(after, segment.first - 1)
        width = (END if single else interest.window) if interest.sparse else max(4 * limit, 1024)
        end = min(segment.last, self.seq, start + width)
        limit = min(limit, self._handful(segment))
        by = f"INDEXED BY log_{segment.n}_channel" if interest.sparse else "NOT INDEXED"
        rest = (end,) if slots is None else (end, slots)
        query = _scan(f"log_{segment.n}", by, single, slots is not None)
        found, limit = self._collect(query, (interest.bound, start, *rest), limit)
        if interest.dead:
            query = _scan("dead", "", single, slots is not None)
            more, limit = self._collect(query, (interest.bound, after, *rest), limit)
            found.add(more)
            found = found.first(limit)
        looked = found.numbers[-1] if len(found.numbers) == limit else end
        self._learn(interest, len(found.numbers), looked - start)
        return found, looked

    def _handful(self, segment: Segment) -> int:
        """How many messages of a segment are about half of ``MOST_BYTES``."""
        rows, size = min(segment.last, self.seq) - segment.first + 1, segment.bytes or self._filled()
        return max(1, MOST_BYTES // 2 * rows // max(size, 1))

    def _collect(self, query: str, bindings: Sequence[Any], limit: int) -> tuple[Found, int]:
        """What is found, and the limit that was kept: SQLite's values end at 1 GB."""
        while True:
            try:
                count, first, last, numbers, records = self.value(query, (*bindings, limit))
            except apsw.TooBigError:  # together more than MOST_BYTES: of mixed sizes the average tells little
                if limit == 1:
                    raise
                limit = max(1, limit // 4)
                continue
            if not count:
                return Found(), limit
            given = range(first, last + 1) if last - first + 1 == count else list(map(int, numbers.split(",")))
            return Found(given, messages(records, count)), limit

    @staticmethod
    def _learn(interest: Interest, hits: int, looked: int) -> None:
        """By index where fewer than one row in 16 is ours; back to rows from one in four."""
        if not interest.sparse:
            interest.sparse = looked >= 256 and hits * 16 < looked
        elif looked >= 256 and hits * 4 > looked:
            interest.sparse = False
        else:
            interest.window = max(4096, min(interest.window * (4 if hits * 16 < looked else 1), 2**24))

    def fetch(self, numbers: Sequence[int]) -> dict[int, Message[Any]]:
        """Messages by their numbers, wherever they are."""
        left, found = sorted(numbers), dict[int, Message[Any]]()
        near = [f"log_{s.n}" for s in self.segments if left and s.first <= left[-1] and s.last >= left[0]]
        for table in [*near, "kept", "dead"]:
            while left:
                some, _ = self._collect(_pick(table), (json.dumps(left),), len(left))
                if not some.numbers:
                    break
                found.update(zip(some.numbers, some.messages, strict=True))
                left = [seq for seq in left if seq not in found]
        return found

    def stored_at(self, seq: int) -> float | None:
        """When a message was stored."""
        found = (self.value(f"SELECT at FROM {table} WHERE seq = ?", (seq,)) for table in [*self.tables(), "kept"])
        return next((at for at in found if at is not None), None)

    def position(self, at: float) -> int:
        """The number of the first retained message stored at or after ``at``."""
        for segment in self.segments:
            newest = self.last_at(segment)
            if newest is None or newest < at:
                continue
            low, high = segment.first, min(segment.last, self.seq) + 1
            while low < high:
                middle = (low + high) // 2
                stored = self.value(f"SELECT at FROM log_{segment.n} WHERE seq >= ? ORDER BY seq LIMIT 1", (middle,))
                low, high = (middle + 1, high) if stored is not None and stored < at else (low, middle)
            return low
        return self.seq + 1
