"""The end: what has not started goes back uncounted, what runs may finish, nothing becomes a dead letter."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from tests.kernel.rig import GROUP, message, stage, until, virtual

from tidings import Backoff, Delivery, Retry
from tidings.kernel.clock import current_clock
from tidings.kernel.handler import Outcome
from tidings.kernel.transport import ACK, Release
from tidings.kernel.transport import Retry as GoesBack
from tidings.transports.memory import Memory


@virtual
async def test_what_has_not_started_is_released_and_what_runs_may_finish() -> None:
    started: list[str] = []
    gate = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        started.append(delivery.message.id)
        await gate.wait()

    async with stage(handle, concurrency=2) as s:
        s.worker.prefetch = 64
        await s.publish(*(message(f"m{n}", "k" if n > 5 else None) for n in range(12)))
        await until(lambda: len(started) == 2)
        s.worker.stop()
        await until(lambda: len(s.tap.settled) == 10, within=1)
        assert not s.running.done()
        gate.set()
        await asyncio.wait_for(s.running, 1)
        assert s.acked() == ["m0", "m1"]
        assert [s.fates(f"m{n}") for n in range(2, 12)] == [[Release()]] * 10
        assert s.worker.stats.released == 10
        (info,) = await s.transport.groups()
        assert (info.in_flight, info.parked, info.dead, info.members) == (0, 10, 0, 0)


@virtual
async def test_what_waits_in_place_keeps_its_failures() -> None:
    name = "drain-waiters"
    attempts: list[int] = []
    keeper = Memory(name=name).transport()
    await keeper.open(lambda event: None)

    async def handle(delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt < 3:
            raise Retry(0.9 if delivery.attempt == 2 else 0.1)

    async with stage(handle, name=name, backoff=Backoff()) as s:
        await s.publish(message("m", "k"), message("behind", "k"))
        await until(lambda: attempts == [1, 2])
        await s.stop()
        assert s.fates("m") == [GoesBack(0.0, 2, "given back")]
        assert s.fates("behind") == [Release()]
    async with stage(handle, name=name) as s:
        await s.settled(1)
        assert attempts[:3] == [1, 2, 3]
    await keeper.close()


@virtual
async def test_after_the_grace_what_runs_is_cancelled_and_released() -> None:
    ended: list[str] = []

    async def handle(delivery: Delivery) -> None:
        try:
            await asyncio.sleep(10_000)
        finally:
            ended.append(delivery.message.id)

    async with stage(handle, concurrency=2, grace=30.0, timeout=100_000) as s:
        await s.publish(*(message(f"m{n}") for n in range(4)))
        await until(lambda: s.worker.settling.held >= 2)
        began = current_clock().monotonic()
        await s.stop()
        assert current_clock().monotonic() - began == pytest.approx(30, abs=1)
        assert sorted(ended) == ["m0", "m1"]
        assert [s.fates("m0"), s.fates("m1")] == [[Release()], [Release()]]
        (info,) = await s.transport.groups()
        assert (info.in_flight, info.dead) == (0, 0)


@virtual
async def test_a_failure_during_the_drain_is_kept_and_does_not_delay_it() -> None:
    gate = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        await gate.wait()
        raise Retry(0.9)

    async with stage(handle) as s:
        await s.publish(message("m"))
        await until(lambda: s.worker.settling.held == 1)
        s.worker.stop()
        await asyncio.sleep(1)
        gate.set()
        await asyncio.wait_for(s.running, 0.5)
        assert s.fates("m") == [GoesBack(0.0, 1, "given back")]


@virtual
async def test_a_batch_is_not_half_lost_when_its_grace_ends() -> None:
    """Of a failed batch run singly, what already succeeded is settled, whatever happens to the rest."""

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        if len(deliveries) > 1:
            raise ValueError
        if deliveries[0].message.id == "m2":
            hung.set()
            await asyncio.sleep(10_000)
        return [()]

    hung = asyncio.Event()
    async with stage(many=many, batch=4, within=0.1, grace=5.0, timeout=100_000) as s:
        await s.publish(*(message(f"m{n}") for n in range(4)))
        await hung.wait()
        await s.stop()
        assert s.acked() == ["m0", "m1"]


@virtual
async def test_a_handler_that_cannot_be_cancelled_is_left_to_its_lease() -> None:
    """Never given back while it runs: another member gets it only after the lease."""
    name, gate = "left-to-its-lease", asyncio.Event()
    runs: list[float] = []
    keeper = Memory(name=name).transport()
    await keeper.open(lambda event: None)

    async def stubborn(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        runs.append(current_clock().monotonic())
        await gate.wait()
        return [()] * len(deliveries)

    async def other(delivery: Delivery) -> None:
        runs.append(current_clock().monotonic())

    async with stage(many=stubborn, name=name, cancellable=False, grace=2.0) as s:
        await s.publish(message("m"))
        await until(lambda: len(runs) == 1)
        await s.stop()
        stopped = current_clock().monotonic()
    async with stage(other, name=name) as s:
        await until(lambda: len(runs) == 2, within=100)
        assert runs[1] - stopped > 15, "it was given back while it still ran"
        assert s.events["recovered"] == 1
    await keeper.close()


@virtual
async def test_stop_inside_a_handler() -> None:
    async def handle(delivery: Delivery) -> None:
        s.worker.stop()
        await asyncio.sleep(1)

    async with stage(handle, concurrency=1) as s:
        await s.publish(message("m"), message("n"))
        await asyncio.wait_for(s.running, 10)
        assert s.acked() == ["m"]
        assert s.fates("n") in ([], [Release()])


@virtual
async def test_close_and_go_on_with_nothing_lost_or_repeated() -> None:
    """Twenty members come and go over one backlog: each message exactly once."""
    name = "come-and-go"
    done: list[str] = []
    keeper = Memory(name=name).transport()
    await keeper.open(lambda event: None)

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(0.003)
        done.append(delivery.message.id)

    async with stage(handle, name=name) as s:
        await s.publish(*(message(f"m{n}") for n in range(2000)))
    for _ in range(20):
        async with stage(handle, name=name) as s:
            await asyncio.sleep(0.05)
            await s.stop()
            assert set(s.acked()) <= set(done)
    async with stage(handle, name=name) as s:
        await until(lambda: len(done) >= 2000)
    assert sorted(done) == sorted(f"m{n}" for n in range(2000))
    (info,) = await keeper.groups(GROUP)
    assert (info.lag, info.parked, info.in_flight) == (0, 0, 0)
    await keeper.close()


@virtual
async def test_draining_twice_and_an_idle_one() -> None:
    async def handle(delivery: Delivery) -> None: ...

    async with stage(handle) as s:
        s.worker.stop()
        s.worker.stop()
        await asyncio.wait_for(s.running, 1)
        assert ACK not in [x.action for x in s.tap.settled]


@virtual
async def test_cancelled_past_its_grace_a_handler_keeps_what_failed_in_place() -> None:
    attempts: list[int] = []

    async def handle(delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt < 3:
            raise Retry(0.1)
        await asyncio.Event().wait()

    async with stage(handle, grace=0.0, backoff=Backoff()) as s:
        await s.publish(message("m"))
        await until(lambda: attempts == [1, 2, 3])
        await s.stop()
        assert s.fates("m") == [GoesBack(0.0, 2, "given back")]


@virtual
async def test_a_bus_that_is_closed_beneath_its_worker_does_not_stop_the_loop() -> None:
    """A consumer that was stopped by others returns at once, again and again."""

    async def handle(delivery: Delivery) -> None: ...

    async with stage(handle) as s:
        await s.publish(message("m"))
        await until(lambda: s.acked() == ["m"])
        s.tap.stop()
        await asyncio.sleep(10)
        assert len(s.tap.limits) < 100
