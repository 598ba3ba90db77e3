"""Outputs of a batch are not lost where a bus cannot settle and publish as one: they are out before it is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from tests.conformance.engines import engine_bus
from tests.transports.consuming import until

from tidings import App, Message, Topic
from tidings.kernel.errors import BusError
from tidings.kernel.handler import Handler, Outcome
from tidings.kernel.transport import ACK, Delivery, Failure, Release, Session, Settlement
from tidings.together import Together

numbers, sums = Topic("numbers", int), Topic("sums", int)


class Apart:
    """A consumer whose bus refuses what it is told to, and remembers in which order it was asked."""

    lease = float("inf")

    def __init__(self, *refuses: str) -> None:
        self.refuses, self.calls = refuses, list[list[str]]()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        self.calls.append([settlement.delivery.message.id for settlement in settlements])
        error = BusError("it is away")
        ids = enumerate(self.calls[-1])
        return [Failure(index, "unknown", error) for index, id in ids if id in self.refuses]


async def handled(consumer: Any, outputs: bool = True, count: int = 3) -> tuple[Any, list[Settlement]]:
    """Settlements of a batch that was handled."""

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        return [()] * (len(deliveries) - 1) + [(Message("out", b""),) if outputs else ()]

    together = Together()
    handler = together.around(Handler(many=many, batch=True))
    settling: Any = handler.between(consumer)
    deliveries = [Delivery(Message("in", b"", f"m{n}"), Session()) for n in range(count)]
    assert handler.many is not None
    outcomes: Any = await handler.many(deliveries)
    return settling, [Settlement(d, ACK, o) for d, o in zip(deliveries, outcomes, strict=True)]


async def test_outputs_go_first() -> None:
    consumer = Apart()
    settling, settlements = await handled(consumer)
    other = Settlement(Delivery(Message("in", b"", "other"), Session()))
    assert not await settling.settle([*settlements, other])
    assert consumer.calls == [["m2"], ["m0", "m1", "other"]]
    assert not settling.batches


async def test_if_they_cannot_go_nothing_of_the_batch_is_settled() -> None:
    consumer = Apart("m2")
    settling, settlements = await handled(consumer)
    other = Settlement(Delivery(Message("in", b"", "other"), Session()))
    failures = await settling.settle([*settlements, other])
    assert {(failure.index, failure.kind) for failure in failures} == {(n, "unknown") for n in range(3)}
    assert consumer.calls == [["m2"], ["other"]]


@pytest.mark.parametrize("gone", [0, 2])
async def test_if_one_of_it_is_lost_all_of_it_comes_again(gone: int) -> None:
    consumer = Apart()
    settling, settlements = await handled(consumer)
    settlements[gone].delivery.session.alive = False
    left = [s for n, s in enumerate(settlements) if n != gone]  # the worker drops what is not ours any more
    failures = await settling.settle(left)
    assert [failure.kind for failure in failures] == ["unknown", "unknown"]
    assert consumer.calls == []
    assert not settling.batches


async def test_what_fails_after_the_outputs_is_told_as_it_is() -> None:
    consumer = Apart("m0")
    settling, settlements = await handled(consumer)
    (failure,) = await settling.settle(settlements)
    assert (failure.index, failure.kind) == (0, "unknown")


async def test_without_outputs_and_for_what_is_given_back_nothing_changes() -> None:
    consumer = Apart()
    settling, settlements = await handled(consumer, outputs=False)
    assert not await settling.settle(settlements)
    assert consumer.calls == [["m0", "m1", "m2"]]
    settling, settlements = await handled(consumer)
    settlements[1] = Settlement(settlements[1].delivery, Release())
    failures = await settling.settle(settlements)
    assert {failure.index for failure in failures} == {0, 2}
    assert consumer.calls[1:] == [["m1"]]


async def test_a_bus_that_is_away_is_asked_again_in_the_same_order() -> None:
    class Away(Apart):
        times = 0

        async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
            self.times += 1
            if self.times == 1:
                raise BusError("it is away")
            return await super().settle(settlements)

    consumer = Away()
    settling, settlements = await handled(consumer)
    with pytest.raises(BusError):
        await settling.settle(settlements)
    assert not await settling.settle(settlements)
    assert consumer.calls == [["m2"], ["m0", "m1"]]
    assert not settling.batches


@pytest.mark.parametrize("engine", ["nats", "rabbitmq"])
async def test_a_batch_on_such_a_bus(engine: str) -> None:
    app, arrived = App("app", engine_bus(engine).options(10.0)), list[int]()

    @app.on(numbers, batch=50, within="100ms", concurrency=1)
    async def add(some: list[int]) -> Message[int]:
        return sums(sum(some))

    @app.on(sums)
    async def receive(n: int) -> None:
        arrived.append(n)

    async with app:
        await app.publish_many([numbers(n) for n in range(500)])
        await until(lambda: sum(arrived) == sum(range(500)))
        await until(lambda: app.stats()["app.add"].handled == 500)
        await asyncio.sleep(0)
    assert 1 < len(arrived) < 500
