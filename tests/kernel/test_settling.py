"""Settlements: when they leave, what each failure of one means, and the bus that cannot take them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.kernel.rig import FAST, message, stage, until, virtual

from tidings import Backoff, BusError, Delivery, Message
from tidings.kernel.errors import TooLarge
from tidings.kernel.transport import Ack, Failure, Release, Retry, Settlement


def output(of: str, topic: str = "billing.invoiced") -> Message[Any]:
    return Message(topic, body=b"{}", id=f"{of}-out")


@virtual
async def test_one_slow_handler_does_not_withhold_what_its_slot_handled_before() -> None:
    """Also with a single slot: settlements leave after 2 ms, by the clock."""
    gate = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        if delivery.message.id == "slow":
            await gate.wait()

    async with stage(handle, concurrency=1) as s:
        s.worker.prefetch = 8
        await s.publish(message("quick"), message("slow"), message("behind"))
        await until(lambda: s.acked() == ["quick"], within=1)
        gate.set()
        await s.settled(3)


@virtual
async def test_slow_handlers_in_all_slots_do_not_withhold_others() -> None:
    gate = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        if delivery.message.id.startswith("slow"):
            await gate.wait()

    async with stage(handle, concurrency=4) as s:
        s.worker.prefetch = 64
        await s.publish(*(message(f"quick{n}") for n in range(10)), *(message(f"slow{n}") for n in range(4)))
        await until(lambda: len(s.acked()) == 10, within=1)
        gate.set()
        await s.settled(14)


@virtual
async def test_at_most_512_settlements_are_on_the_way() -> None:
    async def handle(delivery: Delivery) -> None: ...

    async with stage(handle) as s:
        s.worker.prefetch = 1024
        s.tap.settle_errors = [BusError("down")] * 4
        await s.publish(*(message(f"m{n}") for n in range(3000)))
        most = 0
        while len(s.acked()) < 3000:
            most = max(most, len(s.worker.settling.ready) + len(s.worker.settling.committing))
            await asyncio.sleep(0.0001)
        assert 256 < most <= 512 + 16
        assert len(set(s.acked())) == 3000


@virtual
async def test_a_bus_that_fails_is_tried_again() -> None:
    async def handle(delivery: Delivery) -> None: ...

    async with stage(handle) as s:
        s.tap.settle_errors = [BusError("down")] * 3
        s.tap.receive_errors = [BusError("down")] * 3
        await s.publish(*(message(f"m{n}") for n in range(50)))
        await s.settled(50)
        assert sorted(s.acked()) == sorted(f"m{n}" for n in range(50))
        assert not s.tap.settle_errors
        assert not s.tap.receive_errors
        assert s.worker.stats.handled == 50


@virtual
async def test_a_rejected_output_fails_its_own_input_only() -> None:
    runs: list[str] = []

    async def handle(delivery: Delivery) -> tuple[Message[Any], ...]:
        runs.append(delivery.message.id)
        return (output(delivery.message.id),)

    def refuse(settlement: Settlement) -> Failure | None:
        too_large = any(sent.id == "big-out" for sent in settlement.outgoing)
        return Failure(0, "rejected", TooLarge("no")) if too_large else None

    async with stage(handle, backoff=FAST) as s:
        s.tap.refuse = refuse
        await s.publish(message("a"), message("big"), message("b"))
        await s.settled(3)
        (letter,) = await s.dead()
        assert (letter.id, letter.header("tdgreason"), letter.header("tdgerror")) == ("big", "failed", "TooLarge")
        assert letter.header("tdgfailures") == "3"
        assert (runs.count("a"), runs.count("b"), runs.count("big")) == (1, 1, 3)
        assert s.worker.stats.handled == 2
        assert s.worker.stats.failed == 3


@virtual
async def test_a_rejected_output_of_an_ordered_group_while_its_key_goes_on() -> None:
    """The next of the key already runs when the refusal comes."""
    gate, refused = asyncio.Event(), False
    runs: list[str] = []

    async def handle(delivery: Delivery) -> tuple[Message[Any], ...]:
        runs.append(delivery.message.id)
        if delivery.message.id == "second" and not gate.is_set():
            await gate.wait()
        return (output(delivery.message.id),)

    def refuse(settlement: Settlement) -> Failure | None:
        nonlocal refused
        if settlement.delivery.message.id == "first" and not refused:
            refused = True
            return Failure(0, "rejected", TooLarge("no"))
        return None

    async with stage(handle, ordered=True) as s:
        s.worker.prefetch = 8
        s.tap.refuse = refuse
        await s.publish(message("first", "k"), message("second", "k"), message("third", "k"))
        await until(lambda: refused and "second" in runs)
        gate.set()
        await s.settled(3)
        assert sorted(set(s.acked())) == ["first", "second", "third"]
        assert not await s.dead()


@virtual
async def test_an_unknown_result_releases_the_input() -> None:
    answers = [Failure(0, "unknown", BusError("connection lost"))]
    runs: list[int] = []

    async def handle(delivery: Delivery) -> tuple[Message[Any], ...]:
        runs.append(delivery.failures)
        return (output("m"),)

    async with stage(handle) as s:
        s.tap.refuse = lambda settlement: answers.pop() if answers else None
        await s.publish(message("m"))
        await s.settled(1)
        assert runs == [0, 0]
        assert s.fates("m") == [Release(), Ack()]


@virtual
async def test_a_fenced_settlement_does_nothing_and_is_counted() -> None:
    async def handle(delivery: Delivery) -> tuple[Message[Any], ...]:
        if delivery.message.id == "lost":
            delivery.session.alive = False
        return (output(delivery.message.id),)

    async with stage(handle, concurrency=1) as s:
        await s.publish(message("lost"))
        await until(lambda: s.worker.stats.fenced == 1)
        await s.publish(message("next"))
        await s.settled(1)
        assert s.acked() == ["next"]
        assert [stored.message.id for stored in await s.transport.peek("billing.invoiced")] == ["next-out"]
        assert s.worker.stats.handled == 1


@virtual
async def test_a_refused_dead_letter_keeps_its_message() -> None:
    refused = 0

    async def handle(delivery: Delivery) -> None:
        raise ValueError("poison")

    def refuse(settlement: Settlement) -> Failure | None:
        nonlocal refused
        if settlement.outgoing and not refused:
            refused += 1
            return Failure(0, "rejected", BusError("no room"))
        return None

    async with stage(handle, backoff=Backoff(attempts=1)) as s:
        s.tap.refuse = refuse
        await s.publish(message("m"))
        await s.settled(1)
        assert refused == 1
        assert isinstance(s.fates("m")[0], Release)
        assert [letter.id for letter in await s.dead()] == ["m"]
        assert s.worker.stats.handled == 0


@virtual
async def test_settling_what_waits_long_goes_back_to_the_transport() -> None:
    attempts: list[int] = []

    async def handle(delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt < 3:
            raise ValueError("later")

    async with stage(handle, backoff=Backoff(first=5, factor=2, jitter=0)) as s:
        await s.publish(message("m"))
        await s.settled(1)
        assert attempts == [1, 2, 3]
        assert s.retries("m") == [(5.0, 1), (10.0, 2)]
        retry = s.fates("m")[0]
        assert isinstance(retry, Retry)
        assert retry.why.startswith("ValueError")


@pytest.mark.parametrize("count", [1, 300])
@virtual
async def test_a_stopped_worker_ends_though_the_bus_is_gone(count: int) -> None:
    """Shutting down beside a dead broker ends, some time after the grace: what is unsettled comes back by its lease."""

    async def handle(delivery: Delivery) -> None: ...

    async with stage(handle, grace=5) as s:
        s.worker.prefetch = 2048  # halved at the first receive
        s.tap.settle_errors = [BusError("down")] * 100_000
        await s.publish(*(message() for _ in range(count)))
        await until(lambda: bool(s.worker.settling.committing))
        s.worker.stop()
        await asyncio.wait_for(s.running, 60)
