"""Another concurrency while it works; and pausing by several, beside the breaker."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextvars import ContextVar

import pytest
from tests.kernel.rig import FAST, each, message, stage, until, virtual

from tidings import Backoff, Breaker, Delivery
from tidings.kernel.transport import ACK

LEAK: ContextVar[str] = ContextVar("LEAK", default="")


class Gate:
    """Handlers that run until they are let go, and how many do."""

    def __init__(self) -> None:
        self.running: dict[str, asyncio.Event] = {}
        self.begun: list[str] = []

    async def handle(self, delivery: Delivery) -> None:
        id = delivery.message.id
        self.begun.append(id)
        self.running[id] = asyncio.Event()
        await self.running[id].wait()
        del self.running[id]

    async def let_go(self, count: int) -> None:
        for id in list(self.running)[:count]:
            self.running[id].set()
        await asyncio.sleep(0.1)


@virtual
async def test_more_start_at_once_while_all_that_were_there_are_busy() -> None:
    gate = Gate()
    async with stage(gate.handle, concurrency=2) as s:
        await s.publish(*(message(f"m{n}") for n in range(40)))
        await until(lambda: len(gate.running) == 2)
        s.worker.resize(20)
        await until(lambda: len(gate.running) == 20)
        await asyncio.sleep(1)
        assert len(gate.running) == 20
        await gate.let_go(20)
        assert len(gate.begun) == 40, "those that came later take others"
        await gate.let_go(20)


@virtual
async def test_fewer_begin_once_the_surplus_has_ended() -> None:
    gate = Gate()
    async with stage(gate.handle, concurrency=8) as s:
        await s.publish(*(message(f"m{n}") for n in range(40)))
        await until(lambda: len(gate.running) == 8)
        s.worker.resize(3)
        for left in (7, 6, 5, 4, 3):
            await gate.let_go(1)
            assert len(gate.running) == left, "one began while too many ran"
        await gate.let_go(1)
        assert len(gate.running) == 3
        assert len(gate.begun) == 9
        while gate.running:
            await gate.let_go(3)
        assert len(s.acked()) == 40


@pytest.mark.parametrize("sizes", [(1,), (16, 1), (1, 16, 2)])
@virtual
async def test_idle_ones_leave_too(sizes: tuple[int, ...]) -> None:
    """Also when it is told several things at once, before those that were wanted have begun."""
    gate = Gate()
    async with stage(gate.handle, concurrency=8) as s:
        await asyncio.sleep(1)
        for size in sizes:
            s.worker.resize(size)
        await asyncio.sleep(0)
        s.worker.resize(sizes[-1])
        await asyncio.sleep(1)
        assert len(s.worker.slots) == sizes[-1]
        await s.publish(*(message(f"m{n}") for n in range(5)))
        await until(lambda: len(gate.running) == sizes[-1])
        await asyncio.sleep(1)
        assert len(gate.running) == sizes[-1]
        while gate.running:
            await gate.let_go(5)
        assert len(s.acked()) == 5


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", ["one", "chunk", "batch"])
@virtual
async def test_however_it_is_resized_each_key_goes_in_order_and_nothing_is_lost(seed: int, shape: str) -> None:
    luck, count, fails = random.Random(seed), 500, seed % 2 == 0  # one that failed and is given back is overtaken
    busy: dict[str | None, str] = {}
    now = 0

    async def handle(delivery: Delivery) -> None:
        nonlocal now
        id, key = delivery.message.id, delivery.message.key
        assert key is None or key not in busy
        busy[key], now = id, now + 1
        try:
            await asyncio.sleep(luck.choice([0, 0, 0.001, 0.05]))
            if fails and luck.random() < 0.1:
                raise ValueError(id)
            if luck.random() < 0.1:
                LEAK.set(id)
        finally:
            now -= 1
            busy.pop(key, None)

    async def disturb() -> None:
        while True:
            await asyncio.sleep(luck.choice([0, 0.001, 0.01, 0.1]))
            if not fails and luck.random() < 0.2:
                s.worker.pause(by="control")
                await asyncio.sleep(0.01)
                s.worker.pause(False, "control")
            s.worker.resize(luck.choice([1, 2, 7, 16, 40]))

    work = Backoff(attempts=1000, first=0.05, factor=2, limit=0.8)
    if shape == "one":
        staged = stage(handle, backoff=work)
    else:
        staged = stage(many=each(handle), batch=10 if shape == "batch" else 1, backoff=work)
    async with staged as s:
        disturbing = asyncio.create_task(disturb())
        sent = [message(f"m{n}", luck.choice([None, *(f"k{k}" for k in range(9))])) for n in range(count)]
        await s.publish(*sent)
        await s.settled(count)
        disturbing.cancel()
        s.worker.resize(5)
        await asyncio.sleep(1)
        assert len(s.worker.slots) == 5
        assert not s.worker.blocked
        assert s.worker.settling.held == 0
    keys = {m.id: m.key for m in sent}
    assert Counter(s.acked()) == Counter(list(keys))
    for key in {k for k in keys.values() if k}:
        assert [id for id in s.acked() if keys[id] == key] == [id for id in keys if keys[id] == key]


@virtual
async def test_a_group_goes_on_when_all_who_paused_it_say_so() -> None:
    async def handle(delivery: Delivery) -> None: ...

    async with stage(handle) as s:
        s.worker.pause()
        s.worker.pause(by="control")
        s.worker.pause(by="control")
        await s.publish(message("a"))
        s.worker.pause(False)
        await asyncio.sleep(10)
        assert s.acked() == []
        s.worker.pause(False, by="control")
        await s.settled(1)


@virtual
async def test_pause_and_breaker_do_not_undo_one_another() -> None:
    healthy, starts = False, list[str]()

    async def handle(delivery: Delivery) -> None:
        starts.append(delivery.message.id)
        if not healthy:
            raise ValueError("down")

    quick = Backoff(attempts=3, first=0.1, factor=1, jitter=0)
    async with stage(handle, concurrency=4, backoff=quick, breaker=Breaker(pause=10.0)) as s:
        breaker = s.worker.settling.breaker
        assert breaker is not None
        await s.publish(*(message(f"m{n}") for n in range(200)))
        await until(lambda: breaker.open)
        s.worker.pause(by="control")
        await asyncio.sleep(0.1)
        before = len(starts)
        await asyncio.sleep(3600)
        assert len(starts) == before, "a probe ran though the group was paused"
        assert breaker.open, "being paused is no success"
        s.worker.pause(False, by="control")
        await asyncio.sleep(5)
        assert 0 < len(starts) - before <= 1, "resumed, an open breaker still probes one by one"
        assert breaker.open
        s.worker.pause(by="control")
        healthy = True
        await asyncio.sleep(3600)
        s.worker.pause(False, by="control")
        await s.settled(200)
        assert not breaker.open
        assert not await s.dead()


@virtual
async def test_what_a_paused_group_has_not_started_others_can_have() -> None:
    """Nothing is kept: it goes back uncounted, and the key's order stays."""
    gate = Gate()
    async with stage(gate.handle, concurrency=1, backoff=FAST) as s:
        await s.publish(message("a1", "a"), message("a2", "a"), message("b1", "b"))
        await until(lambda: len(gate.running) == 1)
        s.worker.pause(by="control")
        await asyncio.sleep(1)
        assert [info.in_flight for info in await s.transport.groups()] == [1]
        await gate.let_go(1)
        assert s.acked() == ["a1"]
        s.worker.pause(False, by="control")
        while len(gate.begun) < 3 or gate.running:
            await gate.let_go(1)
        assert s.fates("a2")[-1] is ACK
        assert [id for id in gate.begun if id.startswith("a")] == ["a1", "a2"]
