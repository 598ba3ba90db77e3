"""The messaging bridge from the embedded bus to NATS, beside each of its sides alone: the slower one is its bar."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from tidings import App
from tidings.kernel.message import new_id
from tidings.patterns import bridge

from . import servers
from .harness import Figure, Scenario, Subject
from .measure import bus_folder
from .payload import order
from .sqlite import BATCH, consuming, handled, placed, publish_all, url

KEYS = 1000
GROUP = "bench.bridge"


async def fill(bus: str, messages: int) -> float:
    """Messages a second, published in batches."""
    app, drafts = App("bench", bus), [placed(order(n), key=f"k{n % KEYS}") for n in range(BATCH)]
    async with app.connect():
        await publish_all(app, drafts, BATCH)
        began = time.perf_counter()
        await publish_all(app, drafts, messages)
        return messages / (time.perf_counter() - began)


async def publish(nats: str, folder: Path, messages: int) -> float:
    return await fill(nats, messages)


async def consume(nats: str, folder: Path, messages: int) -> float:
    await fill(url(folder), messages)
    app, _ = consuming(url(folder))
    began = time.perf_counter()
    async with app:
        return messages / (await handled(app, messages) - began)


async def carry(nats: str, folder: Path, messages: int, ordered: bool = False) -> float:
    await fill(url(folder), messages)
    app = App("bench", url(folder), far=nats)
    bridge(app, placed, to="far", group=GROUP, start="first", ordered=ordered)
    began = time.perf_counter()
    async with app:
        stats = app.stats()[GROUP]
        while stats.handled < messages:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        return messages / (time.perf_counter() - began)


async def carry_ordered(nats: str, folder: Path, messages: int) -> float:
    return await carry(nats, folder, messages, ordered=True)


def scenario(quick: bool) -> Scenario:
    messages = 10_000 if quick else 60_000

    def subject(name: str, work: Any, beside: tuple[str, ...] = (), bar: float | None = None) -> Subject:
        def measured() -> tuple[float]:
            with servers.engine("nats") as nats, bus_folder() as folder:
                at = f"{nats}{'&' if '?' in nats else '?'}namespace={new_id()}"
                running: Coroutine[Any, Any, float] = work(at, folder, messages)
                return (asyncio.run(running),)

        return Subject(name, (Figure("rate", "msg/s", ratio_to=beside, ratio_at_least=bar),), measured)

    return Scenario(
        (
            subject("SQLite alone: a backlog", consume),
            subject("NATS alone: publish_many", publish),
            subject("bridge", carry, ("NATS alone: publish_many",), 0.8),
            subject("bridge, ordered", carry_ordered, ("NATS alone: publish_many",), 0.8),
        ),
        rounds=3,
        around=lambda: servers.shared(("nats",)),
    )
