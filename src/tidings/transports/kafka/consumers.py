"""A group's consumer, as the kernel sees it, with leases and settlements; and the mover of what is delayed."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaException, TopicPartition

from tidings.kernel.errors import BusError
from tidings.kernel.message import Message
from tidings.kernel.topics import GROUP
from tidings.kernel.transport import Ack, Delivery, Event, Failure, Release, Retry, Settlement
from tidings.transports._kafka_records import (
    DELAYED,
    MOVER,
    Opened,
    Record,
    delayed,
    headers_of,
    undelayed,
)
from tidings.transports._offsets import AHEAD, Window
from tidings.transports._points import passed
from tidings.transports._wire import copied

from .clients import Transactions
from .membership import LOOK_AGAIN, LOST, Member, Reads, not_held

if TYPE_CHECKING:
    from .transport import KafkaTransport

log = logging.getLogger("tidings")

PARK = 1.0  # seconds; what comes back later than that goes by way of the delays, unless its group is ordered
LEAVE = 1.0  # seconds after ``stop`` until partitions without work are given to others
MOVING = 256  # records of a level of delays that are looked at ahead
ASIDE = 1000  # records of a partition that are set aside until it is paused


class GroupConsumer(Member):
    """A member that hands out and settles."""

    def __init__(self, transport: KafkaTransport, reads: Reads) -> None:
        super().__init__(transport, reads)
        self.lease, self.limited = reads.lease, False
        self.ages: dict[tuple[Window, int], int] = {}
        if self.lease < math.inf:
            self._at("sweep", self.lease / 2, self._sweep)

    # -- receiving

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not self.stopped:
            self.limited = False
            taken = self._take(limit)
            if taken:
                self._hand_over()
                if self.limited:
                    self.transport.spawn(self.commit(tuple(self.windows.values())))
                passed("receive.after")
                return taken
            if self.limited:
                await self.commit(tuple(self.windows.values()))
                continue
            self.future = self.loop.create_future()
            self._arm()
            await self.future
        return ()

    def stop(self) -> None:
        """The partitions stay ours while something of them is in hand."""
        self.stopped = True
        self.wake()
        self._at("leave", LEAVE, self.refresh)

    def _take(self, limit: int) -> list[Delivery]:
        self.poller.taken()
        now, taken = self.clock.now(), list[Delivery]()
        for window in tuple(self.windows.values()):
            window.ahead = max(2 * limit, window.ahead * 7 // 8, AHEAD)  # the faster, the further
            if window.back and not window.giving:
                taken += window.due(now, limit - len(taken))
            if window.aside and not window.giving:
                self._take_aside(window, taken, limit)
        arrived, windows, kinds = self.poller.arrived, self.windows, self.transport.destinations
        while arrived and len(taken) < limit:
            raw = arrived.popleft()
            self.seen += 1
            offset, topic = raw.offset(), raw.topic()
            found = windows.get((topic, raw.partition()))
            if found is None or found.giving or self.seen <= found.since:
                continue
            if found.aside or offset >= found.upto or len(found.open) >= found.most:
                self._put_aside(found, raw)
            else:
                self._open(found, raw, offset, kinds.get(topic, topic), taken)
        return taken

    def _open(self, window: Window, raw: Any, offset: int, destination: str, taken: list[Delivery]) -> None:
        if raw.error() is not None:  # the end, beyond what is no record
            if window.skip(offset):
                self.transport.spawn(self.commit((window,)))
        elif window.wanted(offset):
            found = self.reads.opened(destination, raw)
            delivery = window.fresh(offset, found.message, found.failures, found.crashes, found.suspect)
            if delivery is not None:
                taken.append(delivery)

    def _put_aside(self, window: Window, raw: Any) -> None:
        """It is further than was declared as handed out, or than can be remembered."""
        if not window.aside:
            window.reach(raw.offset())
        window.aside.append(raw)
        self.limited |= not window.full
        if len(window.aside) >= ASIDE and (not window.paused or not len(window.aside) % ASIDE):
            window.paused = True
            self.poller.do(lambda: self.poller.consumer.pause([TopicPartition(*window.place)]))

    def _take_aside(self, window: Window, taken: list[Delivery], limit: int) -> None:
        aside, destination = window.aside, self.transport.destinations.get(window.place[0], window.place[0])
        while aside and len(taken) < limit and len(window.open) < window.most:
            window.reach(offset := aside[0].offset())
            if offset >= window.upto:
                break
            self._open(window, aside.popleft(), offset, destination, taken)
        self.limited |= bool(aside and not window.full and len(taken) < limit)
        if window.paused and len(aside) < ASIDE // 2:
            window.paused = False
            self.poller.do(lambda: self.poller.consumer.resume([TopicPartition(*window.place)]))

    # -- settling

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        passed("settle.before")
        touched: dict[int, Window] = {}
        failures, others = list[Failure](), list[int]()
        for index, settlement in enumerate(settlements):
            delivery = settlement.delivery
            window: Any = delivery.session
            if window is LOST or not window.holds(delivery):
                failures.append(not_held(index, delivery))
            elif settlement.outgoing or type(settlement.action) is not Ack:
                others.append(index)
            else:
                window.settle(delivery)
                touched[index] = window
        if others:
            failures += await self._settle(settlements, others, touched)
        self.finished.set()
        if touched:
            if self.reads.ordered or any(window.aside for window in set(touched.values())):
                self.wake()
            await self.commit(touched.values())
            failures += [not_held(i, settlements[i].delivery) for i, w in touched.items() if not (w.alive or w.given)]
        if fenced := sum(failure.kind == "fenced" for failure in failures):
            self.transport.notify(Event("fenced", fenced, self.reads.group))
        passed("settle.after")
        return failures

    async def _settle(
        self, settlements: Sequence[Settlement], others: Sequence[int], touched: dict[int, Window]
    ) -> list[Failure]:
        """Those with more than an ``Ack``: what goes out first, then the inputs of what was accepted."""
        sent, of = list[Any](), list[int]()
        for index in others:
            copy = self._copy(settlements[index])
            out = (*settlements[index].outgoing, *((copy,) if copy else ()))
            sent += out
            of += [index] * len(out)
        refused: dict[int, Failure] = {}
        for failure in await self.transport.send(sent) if sent else ():
            refused.setdefault(of[failure.index], Failure(of[failure.index], failure.kind, failure.error))
        for index in others:
            if index in refused:
                continue
            delivery = settlements[index].delivery
            window: Any = delivery.session
            if window is LOST or not window.holds(delivery):
                refused[index] = not_held(index, delivery)
                continue
            self._apply(window, settlements[index])
            touched[index] = window
        self.wake()
        return list(refused.values())

    def _copy(self, settlement: Settlement) -> Record | None:
        """What comes back much later goes by way of the delays, to the group's private address."""
        action: Any = settlement.action
        if type(action) is Ack or action.delay <= PARK or self.reads.ordered:
            return None
        now = self.clock.now()
        return delayed(self.transport.names, self._private(settlement.delivery, action), now + action.delay, now)

    def _private(self, delivery: Delivery, action: Release | Retry, suspect: bool = False) -> Record:
        window: Any = delivery.session
        fact = window.facts.get(delivery.token)
        failures = action.failures if isinstance(action, Retry) else fact.failures if fact else 0
        told = copied(delivery.message, failures, fact.crashes if fact else 0)
        if suspect:
            told["tdgsuspect"] = "true"
        to, message = self.transport.names.topic(GROUP + self.reads.group), delivery.message
        return Record(to, message.body, message.key, headers_of(message, told))

    def _apply(self, window: Window, settlement: Settlement) -> None:
        action, delivery = settlement.action, settlement.delivery
        if isinstance(action, Ack) or (action.delay > PARK and not self.reads.ordered):
            window.settle(delivery)
            return
        due = self.clock.now() + action.delay if action.delay else 0.0
        window.put_back(delivery, due, action.failures if isinstance(action, Retry) else None)

    async def mark(self, delivery: Delivery) -> bool:
        window: Any = delivery.session
        if window is LOST or not window.holds(delivery):
            return False
        window.facts[delivery.token].marked = True
        await self.commit((window,))
        return bool(window.alive)

    # -- leases

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.ages.pop((delivery.session, delivery.token), None)  # type: ignore[arg-type]

    def _sweep(self) -> None:
        """What was in hand at two sweeps, a lease apart, and not extended since, is lost."""
        self._at("sweep", self.lease / 2, self._sweep)
        ages: dict[tuple[Window, int], int] = {}
        late: list[Delivery] = []
        for window in tuple(self.windows.values()):
            for delivery in window.in_hand() if window.held else ():
                key = (window, delivery.token)
                ages[key] = self.ages.get(key, 0) + 1
                if ages[key] > 2:
                    late.append(delivery)
        self.ages = ages
        if late:
            self.transport.spawn(self._expire(late))

    async def _expire(self, late: list[Delivery]) -> None:
        """Back to the group, as suspects: copies to its private address, for the partition stays here."""
        self.transport.notify(Event("recovered", len(late), self.reads.group))
        windows: list[Any] = [delivery.session for delivery in late]
        copies = [] if self.reads.ordered else [self._private(delivery, Release(), suspect=True) for delivery in late]
        for delivery in late:
            delivery.session = LOST
        refused = {failure.index for failure in await self.transport.send(copies)} if copies else range(len(late))
        for index, (window, delivery) in enumerate(zip(windows, late, strict=True)):
            if window.holds(delivery):
                window.put_back(delivery, 0.0, suspect=True) if index in refused else window.settle(delivery)
        self.finished.set()
        self.wake()
        await self.commit(windows)
        if self.stopped:
            self.refresh()

    # -- the end

    async def close(self) -> None:
        await self.end(clean=True)

    async def end(self, *, clean: bool) -> None:
        """Leave the group. ``clean``: what is in hand goes back uncounted; else it may run, and is suspect."""
        if self.closed:
            return
        self.stop()
        self.closed = True
        windows = tuple(self.windows.values())
        if clean:
            if self.committing is not None:
                await self.committing
            await self._commit(windows, clean=True)
        self._forget(windows)
        for timer in self.timers.values():
            timer.cancel()
        await self.poller.end()
        self.transport.consumers.pop(self, None)
        self.transport.answerers.clear()


class Mover:
    """Moves what is delayed, when it is due, to where it belongs: a group of its own, so in one process at a time.

    A record waits in a level for as long as the level says, or until it is due; then goes on to where it belongs or to
    the level of what is left, in one transaction with its offset: nothing is moved twice. Within a level all wait
    equally long, so the first one is the next.
    """

    def __init__(self, transport: KafkaTransport) -> None:
        self.transport, self.names = transport, transport.names
        self.transactions = Transactions(transport.sender.config)
        more = (lambda *_: -1, lambda *_: None, self._opened, MOVING, self.transactions.begin, False)
        self.consumer = GroupConsumer(transport, Reads(MOVER, False, math.inf, self._topics, *more))
        self.waiting: list[tuple[float, int, Delivery]] = []
        self.count, self.more = 0, asyncio.Event()
        transport.spawn(self._receive())
        transport.spawn(self._move())

    def _topics(self) -> list[str]:
        return [topic for topic, name in self.transport.destinations.items() if name.startswith(DELAYED)]

    def _opened(self, destination: str, raw: Any) -> Opened:
        to, due = undelayed(raw)
        level = int(destination.removeprefix(DELAYED))
        turn = min(due, raw.timestamp()[1] / 1000 + level) if level else due
        return Opened(Message(destination, data=(to, due, turn)))

    async def _receive(self) -> None:
        while batch := await self.consumer.receive(MOVING):
            for delivery in batch:
                self.count += 1
                heappush(self.waiting, (delivery.message.data[2], self.count, delivery))
            self.more.set()

    async def _move(self) -> None:
        while True:
            now, levels = self.transport.clock.now(), dict[Window, list[Delivery]]()
            while self.waiting and self.waiting[0][0] <= now:
                _, _, delivery = heappop(self.waiting)
                levels.setdefault(delivery.session, []).append(delivery)  # type: ignore[arg-type]
            for window, deliveries in levels.items():
                await self._go(window, deliveries, now)
            if not levels:
                self.more.clear()
                wait = self.waiting[0][0] - now if self.waiting else LOOK_AGAIN
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(max(wait, 0.0), LOOK_AGAIN)):
                        await self.more.wait()

    async def _go(self, window: Window, deliveries: list[Delivery], now: float) -> None:
        consumer, moved = self.consumer, list[Record]()
        for to, due, _ in (delivery.message.data for delivery in deliveries):
            moved.append(to if due <= now else delayed(self.names, to, due, now))
        try:
            await self.transport.ensure(name for r in moved if (name := self.names.destination(r.topic)))
            async with consumer.exclusive:
                if window.alive and not window.giving:
                    offsets = [TopicPartition(*window.place, *window.without(deliveries))]
                    run, topic = self.transactions.run, window.place[0]
                    await consumer.poller.do(partial(run, topic, moved, consumer.poller.consumer, offsets))
                    for delivery in deliveries:
                        window.settle(delivery)
        except (BusError, KafkaException) as error:
            log.warning("moving what is delayed failed, trying again: %s", error)
            window.alive = False
            await asyncio.sleep(1.0)
            consumer.rejoin()

    async def close(self) -> None:
        await self.consumer.end(clean=True)
