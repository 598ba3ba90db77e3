"""The event loop's side of the embedded bus: publishing, consumers, wake-ups, and a look inside."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import apsw

from tidings.kernel import transport as spi
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import BusError, NotOpen, TooLarge
from tidings.kernel.message import Message, seconds
from tidings.kernel.topics import DEAD, GROUP
from tidings.kernel.transport import Delivery, Event, Failure
from tidings.transports._matcher import Matcher

from . import SQLite, connect, size
from .claims import Claims, Outgoing, Taken
from .log import END, Interest, Log, freeze
from .writer import News, Writer, forked

T = TypeVar("T")

MAX_PAYLOAD = 16 * 1024 * 1024
LIVE_BUFFER = 1024
INHERITED: list[Any] = []  # open buses: a fork's child keeps them, for closing them would damage its parent's

NATIVE = ("ordered", "delay", "crash_count", "start", "replay", "priority", "expiry", "wildcards", "peek", "request")


class SQLiteTransport:
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
        self.matcher: Matcher[_Waiting] = Matcher()
        self.consumers: dict[int, list[GroupConsumer]] = {}
        con = connect(self.path)
        self.client = connect(self.path, read=True)
        self.view = self._log(self.client)
        self.view.seen = END  # it looks for no news
        self.steps = Claims(con, self._log(con), self.lease, seconds(self.options.retain, "retain"))
        self._writer = Writer(self.path, self.steps, self.options.sync, self.clock, self._told)
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
            if (heir := self.steps.claims.get(lost.id)) is not None:  # of what was extended
                for _, delivery in list(lost.seen.values()):
                    delivery.session = heir if delivery.token in heir.todo else lost
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
        if total > MAX_PAYLOAD and (large := [m for m in messages if len(m.body) > MAX_PAYLOAD]):
            what = f"a message to {large[0].destination!r} has {len(large[0].body):,} bytes"
            return TooLarge(what, why=f"this bus takes {MAX_PAYLOAD:,}", mend="publish where the data can be found")
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
            finally:
                con.close()

        return await asyncio.to_thread(look)

    async def topics(self, pattern: str = ">") -> Sequence[spi.TopicInfo]:
        return await self._look(lambda steps: steps.retained(pattern))

    async def groups(self, pattern: str = ">") -> Sequence[spi.GroupInfo]:
        return await self._look(lambda steps: steps.describe(pattern))

    async def peek(self, pattern: str, after: int = 0, limit: int = 100) -> Sequence[spi.Stored]:
        found = await self._look(lambda steps: steps.read(pattern, after, limit))
        return [spi.Stored(*stored) for stored in zip(found.numbers, found.messages, strict=True)]

    async def rename(self, group: str, to: str) -> None:
        await self.writer.submit(partial(self.steps.rename, group, to))

    async def drop(self, group: str) -> None:
        await self.writer.submit(partial(self.steps.drop, group))

    async def seek(self, group: str, start: float) -> None:
        await self.writer.submit(partial(self.steps.seek, group, start))

    async def tick(self, name: str, due: float) -> bool:
        return await self.writer.submit(partial(self.steps.tick, name, due))


class _Waiting:
    """Something that waits for messages: ``wake`` may come at any time, also before anybody waits."""

    lease: float

    def __init__(self, transport: SQLiteTransport, *patterns: str) -> None:
        self.transport, self.loop, self.patterns = transport, transport.loop, patterns
        self.stopped = self.closed = self.hot = False
        self.future: asyncio.Future[None] | None = None
        for pattern in patterns:
            transport.matcher.add(pattern, self)

    def wake(self) -> None:
        self.hot = True
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def stop(self) -> None:
        self.stopped = True
        self.wake()

    def forget(self) -> None:
        self.closed = True
        for pattern in self.patterns:
            self.transport.matcher.remove(pattern, self)

    async def sleep(self, until: float | None = None) -> None:
        """Until woken; or until the wall clock says ``until``."""
        if self.hot:
            return
        self.future = self.loop.create_future()
        if until is None:
            await self.future
        else:
            timer = self.loop.call_later(max(0.001, until - self.transport.clock.now()), self.wake)
            await self.future
            timer.cancel()


class GroupConsumer(_Waiting):
    """A member of a group."""

    def __init__(self, transport: SQLiteTransport, group: int, subscription: spi.Subscription) -> None:
        super().__init__(transport, subscription.pattern, f"{GROUP}{subscription.group}")
        self.group, self.subscription, self.lease = group, subscription, transport.lease
        self.siblings = transport.consumers.setdefault(group, [])
        self.siblings.append(self)
        self.more = True  # perhaps there is more to claim
        self.due: float | None = None

    async def receive(self, limit: int) -> Sequence[Delivery]:
        transport = self.transport
        while not self.stopped:
            if not self.more:
                await self.sleep(self.due)
            self.hot = False
            if self.subscription.ordered and self.siblings[0] is not self:  # one process holds each key once
                await self.sleep()
                continue
            taken = await transport.writer.submit(partial(transport.steps.claim, self.group, limit, self), soft=True)
            self.more, self.due = taken.more, taken.due
            if deliveries := self._deliveries(taken):
                return deliveries
        return ()

    def _deliveries(self, taken: Taken) -> list[Delivery]:
        again = [Delivery(message, h, seq, h.failures, h.crashes, h.suspect) for h, seq, message in taken.takes]
        claim: Any = taken.claim
        fresh = zip(taken.found.messages, taken.found.numbers, strict=True)
        return again + [Delivery(message, claim, seq) for message, seq in fresh]

    async def settle(self, settlements: Sequence[spi.Settlement]) -> Sequence[Failure]:
        transport = self.transport
        outgoing: dict[int, Outgoing | Failure] = {}
        for index, settlement in enumerate(settlements):
            if settlement.outgoing:
                rows = transport.prepare(settlement.outgoing)
                outgoing[index] = Failure(index, "rejected", rows) if isinstance(rows, TooLarge) else rows
        step = partial(transport.steps.settle, settlements, outgoing)
        failures = await transport.writer.submit(
            step, soft=all(s.action is spi.ACK and not s.outgoing for s in settlements)
        )
        if fenced := sum(failure.kind == "fenced" for failure in failures):
            transport.notify(Event("fenced", fenced, self.subscription.group or ""))
        return failures

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        now = time.monotonic()
        for delivery in deliveries:
            delivery.session.seen[delivery.token] = now, delivery  # type: ignore[attr-defined]

    async def mark(self, delivery: Delivery) -> bool:
        step: Any = partial(self.transport.steps.mark, delivery.session, delivery.token)  # type: ignore[arg-type]
        return bool(await self.transport.writer.submit(step))

    async def close(self) -> None:
        self.stop()
        if self.closed:
            return
        self.forget()
        self.siblings.remove(self)
        for sibling in self.siblings:
            sibling.wake()
        step = partial(self.transport.steps.close, self.group, self, not self.siblings)
        if self.transport._writer is not None:
            await self.transport.writer.submit(step)


class LiveConsumer(_Waiting):
    """A live copy: it reads the log from its head, keeps 1,024 messages, and settles nothing."""

    lease = float("inf")

    def __init__(self, transport: SQLiteTransport, pattern: str) -> None:
        super().__init__(transport, pattern)
        self.session, self.buffer, self.interest, self.known = spi.Session(), deque[Delivery](), Interest(), 0
        self._refresh()
        self.position = transport.view.seq

    def _refresh(self) -> None:
        view, (pattern,) = self.transport.view, self.patterns
        view.begin(self.transport.clock.now())
        if view.known > self.known:
            self.interest.add(view.matching(pattern, self.known), pattern.startswith(DEAD))
            self.known = view.known

    def wake(self) -> None:
        if not self.stopped:
            with self.transport.view.con:
                self._read()
        super().wake()

    def _read(self) -> None:
        view, dropped, stretches = self.transport.view, 0, 8
        self._refresh()
        while self.position < view.seq and stretches:
            found, self.position = view.scan(self.interest, self.position, LIVE_BUFFER)
            self.buffer.extend(Delivery(message, self.session) for message in found.messages)
            while len(self.buffer) > LIVE_BUFFER:
                self.buffer.popleft()
                dropped += 1
            stretches -= 1
        if self.position < view.seq:
            self.loop.call_soon(self.wake)
        if dropped:
            self.transport.notify(Event("dropped", dropped, self.patterns[0]))

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not self.stopped:
            self.hot = False
            if self.buffer:
                return [self.buffer.popleft() for _ in range(min(limit, len(self.buffer)))]
            await self.sleep()
        return ()

    async def settle(self, settlements: Sequence[spi.Settlement]) -> Sequence[Failure]:
        failures = []
        for index, settlement in enumerate(settlements):
            if settlement.outgoing and (failed := await self.transport.publish(settlement.outgoing)):
                failures.append(Failure(index, failed[0].kind, failed[0].error))
        return failures

    async def extend(self, deliveries: Sequence[Delivery]) -> None: ...

    async def mark(self, delivery: Delivery) -> bool:
        return not self.stopped

    async def close(self) -> None:
        self.stop()
        if not self.closed:
            self.forget()
