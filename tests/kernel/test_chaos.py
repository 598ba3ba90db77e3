"""Everything at once, at random, in virtual time: nothing is lost, keys keep their order, nothing is left in hand."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from tests.kernel.rig import each, message, stage, virtual

from tidings import Backoff, Breaker, BusError, Defer, Delivery, Message, Retry
from tidings.kernel.errors import TooLarge
from tidings.kernel.transport import Failure, Settlement


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", ["one", "ordered", "batch"])
@virtual
async def test_faults_of_bus_and_handlers_together(seed: int, shape: str) -> None:
    luck = random.Random(seed)
    count, keys = 400, [None, "a", "b", "c", "d"]
    busy: set[str] = set()
    first: dict[str, int] = {}  # message → when it was first handled to the end
    clean = True

    async def handle(delivery: Delivery) -> tuple[Message[Any], ...]:
        sent = delivery.message
        assert sent.key is None or sent.key not in busy
        busy.add(sent.key or "")
        try:
            dice = luck.random() if not clean else 1.0
            if dice < 0.1:
                await asyncio.sleep(dice)
            elif dice < 0.2:
                raise ValueError
            elif dice < 0.22:
                raise Retry("3s")
            elif dice < 0.24:
                raise Defer("2s")
            elif dice < 0.25:
                await asyncio.sleep(1000)
            first.setdefault(sent.id, len(first))
            return (Message("billing.invoiced", body=b"{}", id=f"{sent.id}-out"),)
        finally:
            busy.discard(sent.key or "")

    def refuse(settlement: Settlement) -> Failure | None:
        dice = luck.random() if not clean else 1.0
        if dice < 0.02 and settlement.outgoing:
            return Failure(0, "rejected", TooLarge("no"))
        return Failure(0, "unknown", BusError("lost")) if dice < 0.04 else None

    shaped: dict[str, Any] = {"many": each(handle), "batch": 7, "within": 0.02} if shape == "batch" else {"one": handle}
    backoff, breaker = Backoff(attempts=10_000, first=0.05, factor=3, limit=2), Breaker(least=10, pause=2, limit=5)
    async with stage(
        **shaped,
        concurrency=luck.choice([1, 4, 16]),
        backoff=backoff,
        breaker=breaker,
        timeout=4.0,
        ordered=shape == "ordered",
    ) as s:
        s.tap.refuse, clean = refuse, False
        sent = [message(f"m{n}", luck.choice(keys)) for n in range(count)]
        for at in range(0, count, 20):
            await s.publish(*sent[at : at + 20])
            if luck.random() < 0.3:
                s.tap.settle_errors.append(BusError("down"))
            if luck.random() < 0.3:
                s.tap.receive_errors.append(BusError("down"))
            if luck.random() < 0.3:
                s.worker.pause()
                await asyncio.sleep(luck.random())
                s.worker.pause(False)
            await asyncio.sleep(luck.random() / 5)
        await asyncio.sleep(20)
        clean = True
        await s.settled(count, within=3000)
        assert s.worker.settling.held == 0
        assert s.worker.stats.failed > 0, "inconclusive: nothing failed"
        assert not await s.dead()
        (info,) = await s.transport.groups()
        assert (info.lag, info.in_flight, info.parked) == (0, 0, 0)
        assert set(Counter(s.acked()).values()) == {1}
    if shape == "ordered":
        for key in keys[1:]:
            of_key = [m.id for m in sent if m.key == key]
            assert sorted(of_key, key=first.__getitem__) == of_key
