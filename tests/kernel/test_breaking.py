"""The breaker at work: it opens, probes, closes, and costs no message its attempts."""

from __future__ import annotations

import asyncio

import pytest
from tests.kernel.rig import message, stage, until, virtual

from tidings import Backoff, Breaker, Delivery, Reject
from tidings.kernel.clock import current_clock
from tidings.kernel.transport import Release

QUICK = Backoff(attempts=3, first=0.1, factor=1, jitter=0)


@virtual
async def test_it_opens_probes_one_by_one_and_closes() -> None:
    healthy = False
    starts: list[tuple[float, str]] = []

    async def handle(delivery: Delivery) -> None:
        starts.append((current_clock().monotonic(), delivery.message.id))
        if not healthy:
            raise ValueError("down")

    async with stage(handle, concurrency=4, backoff=QUICK, breaker=Breaker(pause=10.0)) as s:
        await s.publish(*(message(f"m{n}") for n in range(200)))
        await until(lambda: bool(s.worker.settling.breaker and s.worker.settling.breaker.open))
        opened, before = current_clock().monotonic(), len(starts)
        await asyncio.sleep(9.5)
        assert len(starts) - before <= 4, "a paused group started more than what already ran"
        await asyncio.sleep(500)
        probes = [(round(at - opened), id) for at, id in starts if at > opened + 5]
        waits = [at for at, _ in probes]
        assert waits[:4] == pytest.approx([10, 30, 70, 130], abs=2)
        assert len({id for _, id in probes}) == len(probes), "each probe is a different message"
        assert all(s.fates(id)[-1] == Release(10.0) for _, id in probes), "it makes room for the others"
        healthy = True
        await s.settled(200)
        assert not await s.dead(), "failures while it was open cost attempts"
        assert s.worker.settling.breaker is not None
        assert not s.worker.settling.breaker.open


@virtual
async def test_a_tenth_of_failures_does_not_open_it() -> None:
    """Also in one burst, whose successes are committed after its failures."""

    async def handle(delivery: Delivery) -> None:
        if int(delivery.message.id) % 10 == 0 and delivery.attempt == 1:
            raise ValueError

    async with stage(handle, backoff=QUICK, breaker=Breaker()) as s:
        s.worker.prefetch = s.worker.most = 2048
        await s.publish(*(message(str(n)) for n in range(1000)))
        await s.settled(1000)
        assert s.worker.stats.failed == 100
        assert s.worker.stats.released == 0, "the breaker opened"


@virtual
async def test_successes_of_before_do_not_close_it() -> None:
    """Half of a burst fails: it opens, and stays open until a probe succeeds."""
    starts: list[float] = []

    async def handle(delivery: Delivery) -> None:
        starts.append(current_clock().monotonic())
        if int(delivery.message.id) % 3:
            raise ValueError

    async with stage(handle, backoff=QUICK, breaker=Breaker(pause=30.0, limit=30.0), concurrency=1) as s:
        s.worker.prefetch = 256
        await s.publish(*(message(str(n)) for n in range(100)))
        breaker = s.worker.settling.breaker
        assert breaker is not None
        await until(lambda: breaker.open, within=5)
        await asyncio.sleep(20)
        assert breaker.open, "a success of before the pause closed it"
        before = len(starts)
        await until(lambda: len(starts) > before, within=30)
        assert len(starts) == before + 1, "more than one probe"


@virtual
async def test_rejects_count_nothing() -> None:
    async def handle(delivery: Delivery) -> None:
        raise Reject("junk")

    async with stage(handle, breaker=Breaker()) as s:
        await s.publish(*(message() for _ in range(100)))
        await s.settled(100)
        assert len(await s.dead()) == 100
        assert s.worker.stats.released == 0


@virtual
async def test_without_one_all_are_tried() -> None:
    async def handle(delivery: Delivery) -> None:
        raise ValueError

    async with stage(handle, backoff=QUICK, breaker=None) as s:
        await s.publish(*(message() for _ in range(100)))
        await s.settled(100)
        assert len(await s.dead()) == 100


@virtual
async def test_it_opens_for_keys_too_and_their_order_stays() -> None:
    healthy = False
    done: list[str] = []

    async def handle(delivery: Delivery) -> None:
        if not healthy:
            raise ValueError
        done.append(delivery.message.id)

    async with stage(handle, concurrency=4, backoff=QUICK, breaker=Breaker(pause=5.0), ordered=True) as s:
        s.worker.prefetch = 256
        await s.publish(*(message(f"{key}{n}", key) for n in range(5) for key in "abcdefghij"))
        await asyncio.sleep(60)
        healthy = True
        await s.settled(50)
        for key in "abcdefghij":
            assert [id for id in done if id[0] == key] == [f"{key}{n}" for n in range(5)]
        assert not await s.dead()
        assert s.worker.stats.released > 0, "inconclusive: it never opened"
