"""Settlements with something to send: what goes out and the offsets of its inputs, in one transaction.

What waits together goes together, and with it what else is to be committed. A transaction counts in the text beside
each offset (``writer``, ``turn``), so that after one of unknown outcome the text that is read back says which it was.
Until that is known nothing else of these partitions is committed; and if it cannot be known they are given up as lost.
The writer is in the text before its first transaction begins: who takes over from the dead ends what they left open.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from msgspec import Struct

from tidings.kernel.errors import BusError, BusUnavailable
from tidings.kernel.message import Message, new_id
from tidings.kernel.topics import REPLY
from tidings.kernel.transport import Delivery, Failure, Settlement
from tidings.transports._offsets import Window, read

from .clients import passing
from .membership import AGAIN, LOST, not_held
from .records import WRITER, Names, Place, Record
from .transactions import Transactions

if TYPE_CHECKING:
    from .consumers import GroupConsumer

MOST, LARGEST = 5000, 4 * 1024 * 1024  # records and bytes of a transaction, unless a single settlement has more


class Exchange(Struct, eq=False):
    """A delivery and what goes out for it. ``back``: it comes back when it is due, with so many failures."""

    window: Window
    delivery: Delivery
    records: Sequence[Record]
    back: tuple[float, int | None] | None = None
    done: bool = False
    failure: Failure | None = None

    @property
    def key(self) -> tuple[Window, int]:
        return self.window, self.delivery.token


class Exchanges:
    """Those of a member."""

    def __init__(self, consumer: GroupConsumer, transactions: Transactions) -> None:
        self.consumer, self.transactions, self.transport = consumer, transactions, consumer.transport
        self.writer = new_id().replace("-", "")[-12:]
        self.name = self.transport.names.topic(WRITER + self.writer)
        self.waiting: list[Exchange] = []
        self.under_way: set[tuple[Window, int]] = set()

    def together(self, settlements: Sequence[Settlement], some: Sequence[int]) -> list[int]:
        """Those that send what has to be one transaction with their input."""
        return [index for index in some if self.consumer.copied(s := settlements[index]) or _lasts(s.outgoing)]

    async def prepare(
        self, settlements: Sequence[Settlement], some: Sequence[int], exchanges: dict[int, Exchange]
    ) -> list[Failure]:
        """Make exchanges of those that are ours and can be sent; why not of the others."""
        sent, of = self.consumer.outgoing(settlements, some)
        ready, failures = await self.transport.prepare(sent)
        refused, left_out = first(failures, of), {failure.index for failure in failures}
        records: dict[int, list[Record]] = {}
        for index, record in zip((each for at, each in enumerate(of) if at not in left_out), ready, strict=True):
            records.setdefault(index, []).append(record)
        for index in some:
            if index in refused:
                continue
            delivery = settlements[index].delivery
            window: Any = delivery.session
            exchange = Exchange(window, delivery, records[index], self.consumer.back(settlements[index]))
            if window is LOST or not window.holds(delivery) or exchange.key in self.under_way:
                refused[index] = not_held(index, delivery)
            else:
                exchanges[index] = exchange
        return list(refused.values())

    async def put(self, exchanges: Sequence[Exchange], windows: Iterable[Window]) -> None:
        """Have these done, and those windows committed. What is neither done nor failed then is not ours any more."""
        keys = [exchange.key for exchange in exchanges]
        self.under_way.update(keys)
        self.waiting += exchanges
        try:
            await self.consumer.commit({*windows, *(exchange.window for exchange in exchanges)})
        finally:
            self.under_way.difference_update(keys)

    async def give_back(self, given: Iterable[tuple[Window, Delivery, Record]]) -> set[int]:
        """Send the copies that take the place of these; which could not."""
        exchanges = [Exchange(window, delivery, (copy,)) for window, delivery, copy in given]
        await self.put(exchanges, ())
        return {index for index, exchange in enumerate(exchanges) if not exchange.done}

    async def run(self, windows: Collection[Window]) -> Collection[Window]:
        """All that wait, for as long as they are ours. Returns which windows are still to be committed."""
        waiting, self.waiting = self.waiting, []
        parts = deque(_parts(waiting))
        while parts:
            part = [exchange for exchange in parts.popleft() if exchange.window.holds(exchange.delivery)]
            if not part:
                continue
            async with self.consumer.exclusive:
                refused = await self._attempt(part, [window for window in windows if window.alive])
            if refused is None:
                if self.consumer.closed:
                    break
                parts.appendleft(part)
                await asyncio.sleep(AGAIN)
            elif refused:
                parts.extendleft(reversed(self._apart(part, refused)))
            else:
                windows = ()
        return windows

    def _apart(self, part: list[Exchange], refused: dict[int, Failure]) -> list[list[Exchange]]:
        """The others again; and those refused, each alone, for the broker refuses all that is sent together."""
        good = [exchange for index, exchange in enumerate(part) if index not in refused]
        bad = [part[index] for index in sorted(refused)]
        if len(part) > 1 and all(failure.kind == "rejected" for failure in refused.values()):
            return [good, *([exchange] for exchange in bad)]
        for index, failure in refused.items():
            part[index].failure = failure
        return [good]

    async def _attempt(self, part: list[Exchange], windows: Iterable[Window]) -> dict[int, Failure] | None:
        """Empty: done. Else nothing happened: because of these, or (None) for a reason that may pass."""
        of: dict[Window, list[Exchange]] = {window: [] for window in windows}
        for exchange in part:
            of.setdefault(exchange.window, []).append(exchange)
        if not await self._declared(of):
            return None
        for window in of:
            window.turn += 1
        offsets = [TopicPartition(*window.place, *_as_if(window, some)) for window, some in of.items()]
        records = [record for exchange in part for record in exchange.records]
        known = False
        try:
            try:
                errors = await self.consumer.poller.do(partial(self._run, tuple(of), records, offsets))
            except KafkaException as error:
                self.transport.troubled(error.args[0])
                errors = {} if await self._happened(of) else None
            known = True
        except RuntimeError:  # the consumer is closed
            return None
        finally:
            if not known:
                for window in of:
                    window.alive = False
        if errors is None or errors:
            return self._refused(part, records, errors) if errors else None
        for exchange in part:
            self._apply(exchange)
        self.consumer.finished.set()
        self.consumer.wake()
        return {}

    async def _declared(self, windows: Iterable[Window]) -> bool:
        """Beside each offset stands who may have a transaction under way."""
        fresh = [window for window in windows if not window.writer]
        for window in fresh:
            window.writer = self.writer
        if not fresh or await self.consumer.store(fresh):
            return True
        for window in fresh:
            window.writer = ""
        return False

    def _run(
        self, windows: Sequence[Window], records: list[Record], offsets: list[TopicPartition]
    ) -> dict[int, Any] | None:
        """In the poller's thread. None: one of them is not ours any more, and nothing was begun."""
        if not all(window.alive for window in windows):
            return None
        return self.transactions.run(self.name, records, self.consumer.poller.consumer, offsets)

    async def _happened(self, windows: Iterable[Window]) -> bool:
        """Whether the last transaction did. Raises ``RuntimeError`` if that cannot be known."""
        while alive := [window for window in windows if window.alive]:
            try:
                found = await self.consumer.poller.do(partial(self._read, [window.place for window in alive]))
            except KafkaException as error:
                self.transport.troubled(error.args[0])
                if self.consumer.closed:
                    break
                await asyncio.sleep(AGAIN)
                continue
            told = [(window, read(found.get(window.place))) for window in alive]
            return any((state.writer, state.turn) == (self.writer, window.turn) for window, state in told)
        raise RuntimeError("lost")

    def _read(self, places: list[Place]) -> dict[Place, str]:
        """In the poller's thread: the texts that are committed, when nothing is under way any more."""
        self.transactions.sure(self.name)
        found = self.consumer.poller.consumer.committed([TopicPartition(*place) for place in places], timeout=10)
        for each in found:
            if each.error:
                raise KafkaException(each.error)
        return {(each.topic, each.partition): each.metadata or "" for each in found}

    def _refused(self, part: list[Exchange], records: list[Record], errors: dict[int, Any]) -> dict[int, Failure]:
        of = [index for index, exchange in enumerate(part) for _ in exchange.records]
        refused: dict[int, Failure] = {}
        for failure in self.transport.sender.told(records, errors):
            index = of[failure.index]
            refused.setdefault(index, Failure(index, failure.kind, failure.error))
        return refused

    def _apply(self, exchange: Exchange) -> None:
        exchange.done = True
        window, delivery = exchange.window, exchange.delivery
        if not window.holds(delivery):
            return
        if exchange.back is None:
            window.settle(delivery)
        else:
            window.put_back(delivery, *exchange.back)

    def close(self) -> None:
        self.transactions.forget(self.name)


def _as_if(window: Window, exchanges: list[Exchange]) -> tuple[int, str]:
    settled = [exchange.delivery for exchange in exchanges if exchange.back is None]
    back = [(exchange.delivery, *exchange.back) for exchange in exchanges if exchange.back is not None]
    return window.without(settled, back)


def _parts(exchanges: Iterable[Exchange]) -> list[list[Exchange]]:
    parts: list[list[Exchange]] = []
    count, size = MOST, LARGEST
    for exchange in exchanges:
        more = sum(len(record.value or b"") for record in exchange.records)
        if count + len(exchange.records) > MOST or size + more > LARGEST:
            parts.append([])
            count = size = 0
        parts[-1].append(exchange)
        count += len(exchange.records)
        size += more
    return parts


def first(failures: Sequence[Failure], of: Sequence[int]) -> dict[int, Failure]:
    """Of each settlement the first thing that failed."""
    found: dict[int, Failure] = {}
    for failure in failures:
        found.setdefault(of[failure.index], Failure(of[failure.index], failure.kind, failure.error))
    return found


def unsettled(exchanges: Mapping[int, Exchange]) -> list[Failure]:
    """Of those that were put: what the broker refused, and what is not ours any more."""
    found = []
    for index, exchange in exchanges.items():
        if exchange.failure is not None:
            found.append(Failure(index, exchange.failure.kind, exchange.failure.error))
        elif not exchange.done:
            found.append(not_held(index, exchange.delivery))
    return found


def prove(transactions: Transactions, names: Names, within: float) -> None:
    """In a thread: find out once whether transactions work here. Raises ``BusError``, ``BusUnavailable``."""
    name, deadline = names.topic(f"{WRITER}{new_id().replace('-', '')[-12:]}"), time.monotonic() + within
    while not transactions.proven:
        try:
            transactions.finish(name)
            transactions.proven = True
        except KafkaException as error:
            reason, kind = error.args[0], BusError
            mend = f"let this user write to transactional ids {names.topic(WRITER)}*, or add transactions=false"
            if passing(reason):
                if time.monotonic() < deadline:
                    time.sleep(AGAIN)
                    continue
                kind = BusUnavailable
                mend = "a cluster of one needs transaction.state.log.replication.factor=1; or add transactions=false"
            raise kind("transactions cannot be begun", why=reason.str(), mend=mend) from None


def finish(
    transactions: Transactions, names: Names, config: Mapping[str, Any], places: Iterable[TopicPartition]
) -> None:
    """In a poller's thread: end what a dead member left under way, so that nobody waits until it times out."""
    consumer = Consumer({**config, "isolation.level": "read_uncommitted"})  # another one would have to wait
    try:
        found = consumer.committed([TopicPartition(place.topic, place.partition) for place in places], timeout=10)
    finally:
        consumer.close()
    for writer in {read(place.metadata).writer for place in found} - {""}:
        transactions.finish(names.topic(WRITER + writer))


def _lasts(outgoing: Sequence[Message[Any]]) -> bool:
    """Whether there is more than replies."""
    return any(not message.destination.startswith(REPLY) for message in outgoing)
