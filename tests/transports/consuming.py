"""What comes to a consumer, and conditions, with deadlines: shared by the tests of all transports."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from tidings.kernel.transport import Delivery, Settlement

DEADLINE = 20.0  # seconds


async def take(consumer: Any, count: int, limit: int = 500, within: float = DEADLINE) -> list[Delivery]:
    """Exactly ``count`` deliveries."""
    found: list[Delivery] = []
    async with asyncio.timeout(within):
        while len(found) < count:
            found += await consumer.receive(min(limit, count - len(found)))
    return found


async def settle(consumer: Any, deliveries: Sequence[Delivery], **more: Any) -> None:
    """Acknowledge them, unless ``more`` says otherwise."""
    failures = await consumer.settle([Settlement(delivery, **more) for delivery in deliveries])
    assert not failures, failures


async def nothing(consumer: Any, seconds: float = 0.3) -> None:
    """Nothing comes for a while; it ends the consumer."""
    task = asyncio.ensure_future(consumer.receive(1))
    done, _ = await asyncio.wait({task}, timeout=seconds)
    assert not done, task.result()
    consumer.stop()
    assert list(await asyncio.wait_for(task, DEADLINE)) == []


async def until(condition: Callable[[], Any], what: str = "", within: float = DEADLINE) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not within {within:g} s: {what or condition}"
        await asyncio.sleep(0.01)
