"""The event loop's side of the embedded bus: publishing, consumers, wake-ups, and a look inside."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import apsw
from msgspec import DecodeError

from tidings.kernel import transport as spi
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import BusError, NotOpen, TooLarge
from tidings.kernel.message import Message, seconds
from tidings.kernel.topics import GROUP, matches
from tidings.kernel.transport import Event, Failure, GroupInfo, TopicInfo
from tidings.transports._matcher import Matcher
from tidings.transports._numbers import unpack
from tidings.transports._records import Found, freeze
from tidings.transports._waiting import Waiting

from . import SQLite, connect, size, translate
from .claims import Claims, Outgoing
from .consumers import GroupConsumer, LiveConsumer
from .groups import Group, Groups
from .log import END, Interest, Log, sql
from .records import Keeping, Records
from .writer import News, Writer, forked

T = TypeVar("T")

MAX_PAYLOAD, MAX_HEADERS = 16 * 1024 * 1024, 1024 * 1024  # bytes
INHERITED: list[Any] = []  # open buses: a fork's child keeps them, for closing them would damage its parent's

NATIVE = ("ordered", "delay", "crash_count", "start", "replay", "priority", "expiry", "wildcards", "peek", "request")


class SQLiteTransport(Keeping):
    """The embedded bus. ``client`` is an ``apsw.Connection`` for reading, to be used on the event loop only."""

    def __init__(self, options: SQLite) -> None:
        self.options, self.path, self.lease = options, options.file(), options.lease_seconds
        self.capabilities = spi.Capabilities(
            durable="power" if options.sync == "full" else "process",
            ordering="total",
            delay_resolution=0.02,
            lease="timer",
            fence="native",
            atomic_settle=True,
            publish_atomic=True,
            stable_id=True,
            max_payload=MAX_PAYLOAD,
            provision="native",
            **dict.fromkeys(NATIVE, "native"),  # type: ignore[arg-type]
        )
        self.client: apsw.Connection | None = None
        self._writer: Writer | None = None

    # -- life cycle ----------------------------------------------------------------------------------------------

    async def open(self, notify: Callable[[Event], None]) -> None:
        if any(bus.path == self.path and bus.forked for bus in INHERITED):
            raise forked(self.path)  # SQLite would take its parent's locks on the file for its own
        self.notify, self.clock, self.loop = notify, current_clock(), asyncio.get_running_loop()
        self.matcher: Matcher[Waiting] = Matcher()
        self.consumers: dict[int, list[GroupConsumer]] = {}
        con = connect(self.path)
        self.client = connect(self.path, read=True)
        self.view = self._log(self.client)
        self.view.seen = END  # it looks for no news
        self.steps = Claims(con, self._log(con), self.lease, seconds(self.options.retain, "retain"))
        self.kept = Records(self.steps)
        self._writer = Writer(self.path, self.steps, self.options.sync, self.clock, self._told)
        self._writer.start()
        INHERITED.append(self)
        self.beat = self.loop.call_later(self.lease / 3, self._beat, time.monotonic())
        try:
            await self.writer.submit(self.steps.enter)
        except BaseException:
            await self.close()
            raise

    def _log(self, con: apsw.Connection) -> Log:
        options, most = self.options, size(self.options.max_size)
        return Log(con, most, options.segment_rows, options.segment_bytes or max(65_536, min(64 * 2**20, most // 16)))

    def _beat(self, before: float) -> None:
        """The heartbeat comes from the event loop: one that is blocked stops it; once late, nothing is swept."""
        if self._writer is None or self.forked:
            return
        now = time.monotonic()
        step = partial(self.steps.beat, now, sweep=now - before < self.lease / 2)
        self._writer.submit(step, soft=True).add_done_callback(lambda done: done.exception())  # told by what fails next
        self.beat = self.loop.call_later(self.lease / 3, self._beat, now)

    @property
    def writer(self) -> Writer:
        if self._writer is None:
            raise NotOpen(f"the bus {self.path} is not open")
        if self.forked:
            raise forked(self.path)
        return self._writer

    @property
    def forked(self) -> bool:
        """Whether this is a copy of its parent's bus, in a child."""
        return self._writer is not None and os.getpid() != self._writer.pid

    async def close(self) -> None:
        if self._writer is None:
            return
        writer = self.writer
        self.beat.cancel()
        for consumer in [c for consumers in self.consumers.values() for c in consumers]:
            consumer.stop()
        try:
            await writer.submit(self.steps.part)
        except BusError as error:
            self.notify(Event("lost", 1, str(error)))
        await writer.stop()
        INHERITED.remove(self)
        if self.client is not None:
            self.client.close()
        self._writer = self.client = None

    def _told(self, news: News) -> None:
        """After a commit, of this process or another: who has something to do?"""
        for lost in news.lost:
            if (heir := self.steps.claims.get(lost.id)) is not None and isinstance(lost.owner, GroupConsumer):
                for delivery in lost.owner.extended:
                    if delivery.session is lost and delivery.token in heir.todo:
                        delivery.session = heir
            lost.alive = False
        for group in news.groups:
            for consumer in self.consumers.get(group, ()):
                consumer.wake()
        topics = list(self.steps.log.names.values()) if news.topics is None else news.topics
        for waiting in {found for topic in topics for found in self.matcher.match(topic)}:
            waiting.wake()
        for event in news.events:
            if event.kind != "unrouted" or not self.matcher.match(event.detail):  # live consumers are no groups
                self.notify(event)

    # -- publishing and subscribing ------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        writer, outgoing = self.writer, self.prepare(messages)
        step = partial(self.steps.publish, outgoing)  # type: ignore[arg-type]
        error = outgoing if isinstance(outgoing, TooLarge) else await writer.submit(step)
        return [Failure(index, "rejected", error) for index in range(len(messages))] if error else ()

    def prepare(self, messages: Sequence[Message[Any]]) -> Outgoing | TooLarge:
        """Messages as rows, or why they cannot be stored."""
        rows, total = freeze(messages, self.clock.now())
        if total > MAX_PAYLOAD:
            for message, (*_, stored) in zip(messages, rows, strict=True):
                if len(message.body) > MAX_PAYLOAD or len(stored) > MAX_PAYLOAD + MAX_HEADERS:
                    what = f"a message to {message.destination!r} has {len(stored):,} bytes"
                    why = f"this bus takes {MAX_PAYLOAD:,}, and {MAX_HEADERS:,} of headers"
                    return TooLarge(what, why=why, mend="publish where the data can be found")
        return rows, total, [m.address or m.topic for m in messages if m.reply_to is not None]

    async def subscribe(self, subscription: spi.Subscription) -> spi.Consumer:
        if subscription.group is None:
            return LiveConsumer(self, subscription.pattern)
        group = await self.writer.submit(partial(self.steps.register, subscription))
        return GroupConsumer(self, group, subscription)

    # -- looking inside, mending ---------------------------------------------------------------------------------

    async def _look(self, reading: Callable[[Claims], T]) -> T:
        """A short read transaction on a connection of its own, in a thread: nobody is disturbed."""
        _ = self.writer

        def look() -> T:
            con = connect(self.path, read=True)
            try:
                con.execute("BEGIN")
                log = self._log(con)
                log.begin(self.clock.now())
                return reading(Claims(con, log, 0.0, 0.0))
            except (apsw.Error, DecodeError) as error:
                raise translate(error, self.path) from error
            finally:
                con.close()

        return await asyncio.to_thread(look)

    async def topics(self, pattern: str = ">") -> Sequence[spi.TopicInfo]:
        return await self._look(lambda steps: retained(steps, pattern))

    async def groups(self, pattern: str = ">") -> Sequence[spi.GroupInfo]:
        return await self._look(lambda steps: describe(steps, pattern))

    async def peek(self, pattern: str, after: int = 0, limit: int = 100) -> Sequence[spi.Stored]:
        found = await self._look(lambda steps: read(steps, pattern, after, limit))
        return [spi.Stored(*stored) for stored in zip(found.numbers, found.messages, strict=True)]

    async def position(self) -> int:
        return await self._look(lambda steps: steps.log.seq)

    async def rename(self, group: str, to: str) -> None:
        await self.writer.submit(partial(self.steps.rename, group, to))

    async def drop(self, group: str) -> None:
        await self.writer.submit(partial(self.steps.drop, group))

    async def seek(self, group: str, start: float) -> None:
        await self.writer.submit(partial(self.steps.seek, group, start))

    async def tick(self, name: str, due: float) -> bool:
        return await self.writer.submit(partial(self.steps.tick, name, due))


# -- looking inside: in a read transaction, on a connection of its own ---------------------------------------------


def read(steps: Groups, pattern: str, after: int, limit: int) -> Found:
    """Retained messages of a pattern beyond ``after``, dead letters too."""
    interest, found = Interest(), Found()
    interest.add(steps.log.matching(pattern), True)
    while len(found.numbers) < limit and after < steps.log.seq:
        some, after = steps.log.scan(interest, after, limit - len(found.numbers))
        found.add(some)
    return found


def describe(steps: Groups, pattern: str) -> list[GroupInfo]:
    """The groups whose name is in ``pattern``. Needs a read transaction only."""
    found = steps.rows("SELECT id, name FROM grp ORDER BY name")
    return [_info(steps, steps.group(id)) for id, name in found if matches(pattern, name)]


def _info(steps: Groups, group: Group) -> GroupInfo:
    name, app, held, parked, first, dead, members = steps.value(sql("groups"), {"grp": group.id})
    claims = steps.rows("SELECT todo FROM claim WHERE grp = ?", (group.id,))
    todo = [seq for (blob,) in claims for seq in unpack(blob)]
    lag, firsts = _lag(steps, group)
    unsettled = min([*todo, *firsts, *([first] if first else [])], default=0)
    oldest = steps.log.stored_at(unsettled)
    now = (p for p, _, last in group.patterns if last == END and not p.startswith(GROUP))
    return GroupInfo(name, app, next(now, ""), lag, len(todo) + held, parked, dead, oldest, members)


def _lag(steps: Groups, group: Group) -> tuple[int, list[int]]:
    """How many messages wait for the group, and the first of each channel."""
    table, place = ("slot", "slot") if group.ordered else ("cursor", "priority")
    after = dict(steps.rows(f"SELECT {place}, seq FROM {table} WHERE grp = ?", (group.id,)))
    mine = f"(SELECT seq FROM slot s WHERE grp = {group.id} AND s.slot = coalesce(m.slot, m.seq & 63))"
    where = "WHERE channel = ? AND seq > ? AND seq <= ?" + (f" AND seq > {mine}" if group.ordered else "")
    count, firsts, ranges = 0, list[int](), dict[int, list[tuple[int, int]]]()
    for pattern, first, last in group.patterns:
        for channel in steps.log.matching(pattern):
            cursor = min(after.values()) if group.ordered else after[steps.log.topics[channel][1]]
            ranges.setdefault(channel, []).append((max(first - 1, cursor), last))
    for channel, stretches in ranges.items():
        done = -1  # an old pattern and a new one may both match
        for low, last in sorted(stretches):
            for stored in steps.log.tables():
                n, seq = steps.value(
                    f"SELECT count(*), min(seq) FROM {stored} m {where}", (channel, max(low, done), last)
                )
                count, firsts = count + n, firsts + [seq] * bool(n)
            done = max(done, last)
    return count, firsts


def retained(steps: Groups, pattern: str) -> list[TopicInfo]:
    """The topics in ``pattern`` that have messages."""
    found: dict[str, TopicInfo] = {}
    for table in steps.log.tables():
        for channel, count, last in steps.rows(f"SELECT channel, count(*), max(seq) FROM {table} GROUP BY channel"):
            name = steps.log.names[channel]
            if matches(pattern, name):
                at = steps.value(f"SELECT at FROM {table} WHERE seq = ?", (last,))
                known = found.get(name, TopicInfo(name, 0, at))
                found[name] = TopicInfo(name, known.messages + count, max(known.last or at, at))
    return [found[name] for name in sorted(found)]
