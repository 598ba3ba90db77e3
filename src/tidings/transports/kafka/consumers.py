"""A group's consumer, as the kernel sees it, with leases and settlements; and the mover of what is delayed."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaException, TopicPartition

from tidings.kernel.errors import BusError
from tidings.kernel.message import Message
from tidings.kernel.topics import GROUP
from tidings.kernel.transport import ACK, Ack, Delivery, Event, Failure, Release, Retry, Settlement
from tidings.transports._offsets import Window
from tidings.transports._points import passed
from tidings.transports._wire import copied

from .exchanges import Exchange, Exchanges, first, unsettled
from .membership import LOOK_AGAIN, LOST, Member, Reads, not_held
from .records import DELAYED, MOVER, Opened, Record, delayed, headers_of, undelayed
from .transactions import Transactions

if TYPE_CHECKING:
    from .transport import KafkaTransport

log = logging.getLogger("tidings")

PARK = 1.0  # seconds; what comes back later than that goes by way of the delays, unless its group is ordered
LEAVE = 1.0  # seconds after ``stop`` until partitions without work are given to others
MOVING = 256  # records of a level of delays that are looked at ahead
TRANSACTION = 5.0  # seconds of one of the mover
REFUSED = 60.0  # seconds until what could not be moved is tried again


class GroupConsumer(Member):
    """A member that hands out and settles. Without ``transactions`` what goes out is sent before its input is settled.

    Replies always are: whoever asked waits for them, and takes the first.
    """

    def __init__(self, transport: KafkaTransport, reads: Reads, transactions: Transactions | None = None) -> None:
        super().__init__(transport, reads)
        self.lease = reads.lease
        self.exchanges = Exchanges(self, transactions) if transactions else None
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

    # -- settling

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        passed("settle.before")
        touched: dict[Window, list[int]] = {}
        failures, others = list[Failure](), list[int]()
        for index, settlement in enumerate(settlements):
            delivery = settlement.delivery
            window: Any = delivery.session
            done = settlement.action is ACK and not settlement.outgoing
            if window is LOST or not (window.settle(delivery) if done else window.holds(delivery)):
                failures.append(not_held(index, delivery))
            elif not done:
                others.append(index)
            elif window in touched:
                touched[window].append(index)
            else:
                touched[window] = [index]
        exchanges: dict[int, Exchange] = {}
        if others:
            together = self.exchanges.together(settlements, others) if self.exchanges else []
            if together and self.exchanges:
                failures += await self.exchanges.prepare(settlements, together, exchanges)
            if len(together) < len(others):
                failures += await self._settle(settlements, sorted({*others}.difference(together)), touched)
        self.finished.set()
        if exchanges or touched:
            if self.reads.ordered or any(window.aside for window in touched):
                self.wake()
            if exchanges and self.exchanges:
                await self.exchanges.put(tuple(exchanges.values()), touched)
                failures += unsettled(exchanges)
            else:
                await self.commit(touched)
            for window, indices in touched.items():
                if not (window.alive or window.given):
                    failures += [not_held(index, settlements[index].delivery) for index in indices]
        if fenced := sum(failure.kind == "fenced" for failure in failures):
            self.transport.notify(Event("fenced", fenced, self.reads.group))
        passed("settle.after")
        return failures

    async def _settle(
        self, settlements: Sequence[Settlement], others: Sequence[int], touched: dict[Window, list[int]]
    ) -> list[Failure]:
        """Those with more than an ``Ack``: what goes out first, then the inputs of what was accepted."""
        sent, of = self.outgoing(settlements, others)
        refused = first(await self.transport.send(sent) if sent else (), of)
        for index in others:
            if index in refused:
                continue
            delivery = settlements[index].delivery
            window: Any = delivery.session
            if window is LOST or not window.holds(delivery):
                refused[index] = not_held(index, delivery)
                continue
            self._apply(window, settlements[index])
            touched.setdefault(window, []).append(index)
        self.wake()
        return list(refused.values())

    def outgoing(self, settlements: Sequence[Settlement], some: Sequence[int]) -> tuple[list[Any], list[int]]:
        """What these send, and of which of them each is."""
        sent, of = list[Any](), list[int]()
        for index in some:
            copy = self._copy(settlements[index])
            out = (*settlements[index].outgoing, *((copy,) if copy else ()))
            sent += out
            of += [index] * len(out)
        return sent, of

    async def _commit_round(self, windows: Collection[Window]) -> None:
        """In one transaction with what goes out, if anything does."""
        await self._commit(await self.exchanges.run(windows) if self.exchanges else windows)

    def copied(self, settlement: Settlement) -> bool:
        action: Any = settlement.action
        return type(action) is not Ack and action.delay > PARK and not self.reads.ordered

    def _copy(self, settlement: Settlement) -> Record | None:
        """What comes back much later goes by way of the delays, to the group's private address."""
        if not self.copied(settlement):
            return None
        action: Any = settlement.action
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

    def back(self, settlement: Settlement) -> tuple[float, int | None] | None:
        """When it is due again in its window, and with how many failures; None: it is done with."""
        action = settlement.action
        if isinstance(action, Ack) or self.copied(settlement):
            return None
        due = self.clock.now() + action.delay if action.delay else 0.0
        return due, action.failures if isinstance(action, Retry) else None

    def _apply(self, window: Window, settlement: Settlement) -> None:
        back = self.back(settlement)
        if back is None:
            window.settle(settlement.delivery)
        else:
            window.put_back(settlement.delivery, *back)

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
        under_way = self.exchanges.under_way if self.exchanges else ()
        late: list[Delivery] = []
        for window in tuple(self.windows.values()):
            for delivery in window.in_hand() if window.held else ():
                key = (window, delivery.token)
                if key in under_way:
                    continue
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
        refused: Collection[int] = range(len(late))
        if copies and self.exchanges is not None:
            refused = await self.exchanges.give_back(zip(windows, late, copies, strict=True))
        elif copies:
            refused = {failure.index for failure in await self.transport.send(copies)}
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
        if self.exchanges is not None:
            self.exchanges.close()
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
        self.transactions = Transactions(transport.sender.config, TRANSACTION)
        more = (lambda *_: -1, lambda *_: None, self._opened, MOVING, self._begin, False)
        self.consumer = GroupConsumer(transport, Reads(MOVER, False, math.inf, self._topics, *more))
        self.waiting: list[tuple[float, int, Delivery]] = []
        self.count, self.more = 0, asyncio.Event()
        transport.spawn(self._receive())
        transport.spawn(self._move())

    def _topics(self) -> list[str]:
        return [topic for topic, name in self.transport.destinations.items() if name.startswith(DELAYED)]

    def _begin(self, places: list[TopicPartition]) -> None:
        """In the poller's thread: the levels are ours, and nothing is under way that another one began."""
        for level in {place.topic for place in places}:
            self.transactions.begin(level)

    def _opened(self, destination: str, raw: Any) -> Opened:
        """Where to, when it is due, and when it has its turn. What a stranger wrote goes nowhere, at once."""
        try:
            level = int(destination.removeprefix(DELAYED))
            to, due = undelayed(raw)
            if self.names.destination(to.topic) is None:
                raise ValueError(f"{to.topic!r} is no topic of this bus")
        except ValueError as error:
            where = f"{raw.topic()}/{raw.partition()}/{raw.offset()}"
            log.error("%s is no delayed message, and is skipped: %s", where, error)
            self.transport.notify(Event("dropped", 1, where))
            return Opened(Message(destination, data=(None, 0.0, 0.0)))
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
            if to is not None:
                moved.append(to if due <= now else delayed(self.names, to, due, now))
        try:
            moved = await self._possible(moved, now)
            async with consumer.exclusive:
                if window.alive and not window.giving:
                    offsets = [TopicPartition(*window.place, *window.without(deliveries))]
                    run, topic = self.transactions.run, window.place[0]
                    refused = await consumer.poller.do(partial(run, topic, moved, consumer.poller.consumer, offsets))
                    if refused:
                        raise KafkaException(next(iter(refused.values())))
                    for delivery in deliveries:
                        window.settle(delivery)
        except (BusError, KafkaException) as error:
            log.warning("moving what is delayed failed, trying again: %s", error)
            window.alive = False
            await asyncio.sleep(1.0)
            consumer.rejoin()

    async def _possible(self, records: list[Record], now: float) -> list[Record]:
        """What goes to a topic that cannot be made waits once more, and holds up nobody. Raises ``BusUnavailable``."""
        destination = self.names.destination
        refused = await self.transport.refusals({destination(record.topic) or "" for record in records})
        for name, error in refused.items():
            log.error("what is due for %r cannot be moved, trying again in %g s: %s", name, REFUSED, error)
        if refused:
            later = now + REFUSED
            records = [delayed(self.names, r, later, now) if destination(r.topic) in refused else r for r in records]
            await self.transport.ensure(destination(record.topic) or "" for record in records)
        return records

    async def close(self) -> None:
        await self.consumer.end(clean=True)
