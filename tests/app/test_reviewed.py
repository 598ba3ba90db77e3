"""Bugs that a reviewer found, each with the test that would have found it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec import Struct
from tests.kernel.rig import message, stage, until, virtual

from tidings import App, Backoff, Message, Partial, Retry, Service, Topic
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import BusFull, InvalidOption
from tidings.kernel.handler import Outcome
from tidings.kernel.transport import ACK, Delivery, Failure, Settlement, Subscription, Transport
from tidings.testing.conformance.mutants import MutantConsumer
from tidings.transports.memory import Memory, MemoryTransport
from tidings.transports.sqlite import SQLite

QUICK = Backoff(attempts=2, first=0.05, jitter=0)
REAL = 10.0  # seconds within which a bus in a file has done what is waited for
UNREADABLE = os.fsdecode(b"caf\xe9.txt")  # a lone surrogate, as names of files have them

numbers = Topic("orders.placed", int)


class Given(Struct, frozen=True):
    """Options of a transport that is there already."""

    made: Any

    def transport(self) -> Any:
        return self.made


def shop(made: Any, **options: Any) -> App:
    return App("shop", cast(Any, Given(made)), **options)


class Faults:
    """What goes wrong with a bus: errors by the call that raises them, once each; a ``slow`` call waits at a gate."""

    def __init__(self, slow: str = "", **errors: Exception) -> None:
        self.slow, self.errors, self.gate, self.calls = slow, errors, asyncio.Event(), list[str]()

    async def meet(self, call: str) -> None:
        self.calls.append(call)
        if call == self.slow:
            await self.gate.wait()
        if call in self.errors:
            raise self.errors.pop(call)


class FaultyConsumer(MutantConsumer):
    def __init__(self, inner: Any, subscription: Subscription, faults: Faults) -> None:
        super().__init__(inner, subscription)
        self.faults = faults

    async def receive(self, limit: int) -> Sequence[Delivery]:
        taken = await self.inner.receive(limit)
        if taken:
            await self.faults.meet("receive")
        return taken

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        await self.faults.meet("settle")
        return await self.inner.settle(settlements)

    async def mark(self, delivery: Delivery) -> bool:
        await self.faults.meet("mark")
        return await self.inner.mark(delivery)


class Faulty:
    """A bus whose consumers fail."""

    def __init__(self, inner: Transport, faults: Faults) -> None:
        self.inner, self.faults = inner, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def subscribe(self, subscription: Subscription) -> Any:
        return FaultyConsumer(await self.inner.subscribe(subscription), subscription, self.faults)


@pytest.fixture(params=["memory", "sqlite"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Transport]:
    """Ends of one bus."""
    if request.param == "memory":
        return Memory(name=tmp_path.name).transport
    return SQLite(path=str(tmp_path / "bus.db")).transport


async def suspected(name: str) -> MemoryTransport:
    """A shared bus, kept open, whose group ``shop.bill`` has one message in hand of a member that died."""
    keeper, dead = Memory(name=name).transport(), Memory(name=name).transport()
    for transport in (keeper, dead):
        await transport.open(lambda event: None)
    consumer = await dead.subscribe(Subscription(app="shop", pattern="orders.>", group="shop.bill"))
    assert not await keeper.publish([message("n1", body=b"1")])
    assert len(await consumer.receive(1)) == 1
    dead.abandon()
    return keeper


# -- what a bus cannot store


@pytest.mark.parametrize("attempts", [1, 2], ids=["dead", "retried"])
async def test_an_exception_whose_text_is_no_unicode(bus: Callable[[], Transport], attempts: int) -> None:
    backoff = Backoff(attempts=attempts, first=1.01, jitter=0)  # beyond a wait in place: the text goes to the bus
    a, seen = shop(bus(), backoff=backoff), list[int]()

    @a.on(numbers)
    async def bill(n: int) -> None:
        seen.append(n)
        if n == 1:
            raise ValueError(UNREADABLE)

    async with a:
        await a.publish(numbers, 1)
        await until(lambda: a.stats()["shop.bill"].dead == 1, REAL)
        await a.publish(numbers, 2)
        await until(lambda: a.stats()["shop.bill"].handled == 1, REAL)
    assert seen == [1] * attempts + [2]


async def test_an_output_that_the_bus_chokes_on_fails_alone(tmp_path: Path) -> None:
    a = App("shop", SQLite(path=str(tmp_path / "bus.db")), backoff=Backoff(attempts=1))

    @a.on(numbers)
    async def bill(n: int) -> Message[Any]:
        return Message(
            "bills.sent", data=n, correlation_id=UNREADABLE if n == 1 else None
        )  # it is not looked at before

    async with a:
        await a.publish_many([numbers(n) for n in range(4)])
        await until(lambda: (a.stats()["shop.bill"].handled, a.stats()["shop.bill"].dead) == (3, 1), REAL)


@pytest.mark.parametrize("priority", [-1, 10])
@virtual
async def test_a_priority_out_of_range_is_refused(priority: int) -> None:
    a, seen = App("shop", "memory://", backoff=QUICK), list[int]()

    @a.on(numbers)
    async def bill(n: int) -> Message[int] | None:
        seen.append(n)
        return Message("bills.sent", data=n, priority=priority) if n == 1 else None

    async with a:
        with pytest.raises(InvalidOption, match=f"priority cannot be {priority}"):
            await a.publish(Message("orders.placed", data=0, priority=priority))
        await a.publish(numbers, 1)
        await until(lambda: a.stats()["shop.bill"].dead == 1)
        await a.publish(Message("orders.placed", data=2, priority=9))
        await until(lambda: a.stats()["shop.bill"].handled == 1)
    assert seen == [1, 1, 2]


# -- requests, batches


@virtual
async def test_an_answerer_on_a_named_bus_replies_there() -> None:
    a, adding = App("shop", "memory://", devices="memory://"), Service("numbers.add", int, int, bus="devices")

    @a.answer(adding)
    async def add(n: int) -> int:
        return n + 1

    async with a:
        assert await a.request(adding, 1, timeout="2s") == 2


@virtual
async def test_partial_with_what_is_no_exception() -> None:
    a, junk = App("shop", "memory://", backoff=Backoff(attempts=1)), dict[Any, Any]({0: "a string", 1: None})

    @a.on(numbers, batch=3, within="50ms")
    async def index(several: list[int]) -> None:
        raise Partial(junk)

    async with a:
        await a.publish_many([numbers(n) for n in range(3)])
        await until(lambda: a.stats()["shop.index"].dead == 2)
        await until(lambda: a.stats()["shop.index"].handled == 1)


@virtual
async def test_what_waits_behind_a_failed_key_keeps_its_lease() -> None:
    """A batch failed and its items run one by one: those that are put off until the end are held meanwhile."""

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        if len(deliveries) > 1 or (deliveries[0].message.id == "a1" and not deliveries[0].failures):
            raise ValueError
        await asyncio.sleep(100 if deliveries[0].message.id == "b1" else 0)  # the lease is 30 s
        return [()]

    async with stage(many=many, batch=3, concurrency=1) as s:
        await s.publish(message("a1", "a"), message("a2", "a"), message("b1", "b"))
        await s.settled(3)
        assert s.tap.extended["a2"] >= 3
        assert s.worker.stats.fenced == 0
        assert s.fates("a2") == [ACK]


# -- key order


async def test_nothing_of_a_key_runs_before_its_failure_is_committed(bus: Callable[[], Transport]) -> None:
    faults, seen = Faults(slow="settle"), list[int]()
    a = shop(Faulty(bus(), faults))

    @a.on(numbers, ordered=True)
    async def bill(n: int) -> None:
        seen.append(n)
        if n == 1 and len(seen) == 1:
            raise Retry("1.01s")

    async with a:
        await a.publish(numbers, 1, key="k")
        await until(lambda: "settle" in faults.calls, REAL)
        await a.publish(numbers, 2, key="k")
        await until(lambda: faults.calls.count("receive") == 2, REAL)
        faults.gate.set()
        await until(lambda: a.stats()["shop.bill"].handled == 2, REAL)
    assert seen == [1, 1, 2]


async def test_a_subscription_that_died_gives_its_slots_back(bus: Callable[[], Transport]) -> None:
    faults, seen = Faults(receive=ZeroDivisionError("a bug of the transport")), set[int]()
    a, b = shop(Faulty(bus(), faults)), shop(bus())
    for each in (a, b):

        async def bill(n: int) -> None:
            seen.add(n)

        each.on(numbers, ordered=True)(bill)
    async with a:
        await a.publish_many([numbers(n, key=f"k{n}") for n in range(100)])
        await until(lambda: "receive" in faults.calls, REAL)
        async with b:
            await until(lambda: len(seen) == 100, REAL)
            assert a.stats()["shop.bill"].handled == 0, "inconclusive: it went on"


# -- suspects, ticks


@virtual
async def test_a_mark_that_fails_is_tried_again() -> None:
    keeper, seen = await suspected("marking"), list[int]()
    faults = Faults(mark=BusFull("disk full"))
    a = shop(Faulty(Memory(name="marking").transport(), faults))

    @a.on("orders.>")
    async def bill(n: int) -> None:
        seen.append(n)

    async with a:
        await until(lambda: a.stats()["shop.bill"].handled == 1)
    assert seen == [1]
    assert faults.calls.count("mark") == 2
    await keeper.close()


@virtual
async def test_pausing_while_a_suspect_is_marked_holds_up_no_other_group() -> None:
    keepers, seen = [await suspected(name) for name in ("pausing", "going-on")], list[str]()
    faults = Faults(slow="mark")
    a = shop(Faulty(Memory(name="pausing").transport(), faults))
    b = App("shop", "memory://going-on")
    for name, each in (("a", a), ("b", b)):

        async def bill(n: int, name: str = name) -> None:
            seen.append(name)

        each.on("orders.>")(bill)
    async with a:
        await until(lambda: "mark" in faults.calls)
        a.pause("shop.bill")
        faults.gate.set()
        async with b:
            await until(lambda: seen == ["b"], 60)
        a.pause("shop.bill", False)
        await until(lambda: seen == ["b", "a"])
    for keeper in keepers:
        await keeper.close()


class Full(MemoryTransport):
    """A bus that refuses the first tick."""

    refused = 0

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        if not self.refused and messages[0].topic.startswith("_tick."):
            self.refused += 1
            raise BusFull("full")
        return await super().publish(messages)


@virtual
async def test_a_tick_that_was_won_but_not_published_is_published_later() -> None:
    began, full, ticks = current_clock().now(), Full(Memory()), list[str]()
    a = shop(full)

    @a.every("10s")
    async def sample(message: Message[Any]) -> None:
        ticks.append(message.id)

    async with a:
        await until(lambda: len(ticks) == 2, 60)
    assert full.refused == 1
    assert ticks == [f"shop.sample-{began // 10 * 10 + due:.3f}" for due in (10, 20)]
