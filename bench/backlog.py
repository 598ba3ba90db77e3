"""A backlog of 1,000 to 10,000,000 messages: what does its size change?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from tidings.transports.sqlite import SQLite

from .harness import Figure, Scenario, Subject
from .machine import peak_rss
from .measure import bus_folder
from .payload import order
from .sqlite import BATCH, consuming, handled, placed, publish_all

SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
LAST = 100_000  # messages: the last part of the backlog, whose publishing is timed
ONCE = 1_000_000  # from this size on one round is enough

FIGURES = (
    Figure("publish", "msg/s"),
    Figure("consume", "msg/s"),
    Figure("start", "s"),
    Figure("memory", "MiB"),
    Figure("file", "MiB"),
)


async def grown(folder: Path, messages: int) -> Sequence[float]:
    """``publish``: onto a backlog of nearly that size; ``consume``: all of it, with ``start``; ``start``: opening."""
    options = SQLite(path=str(folder / "bench.db"), max_size="64GiB")
    app, _ = consuming(options)
    async with app:  # so that the group is there, and what is published is its backlog
        pass
    drafts, last = [placed(order(n)) for n in range(BATCH)], min(messages, LAST)
    async with app.connect():
        await publish_all(app, drafts, messages - last)
        start = time.perf_counter()
        await publish_all(app, drafts, last)
        published = last / (time.perf_counter() - start)
    size = size_of(folder)
    start = time.perf_counter()
    async with app:
        ready = time.perf_counter()
        consumed = messages / (await handled(app, messages) - start)
    return published, consumed, ready - start, peak_rss(), size


def size_of(folder: Path) -> float:
    """MiB of all files in it."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 2**20


def scenario(quick: bool) -> Scenario:
    def subject(messages: int) -> Subject:
        def measured() -> Sequence[float]:
            with bus_folder() as folder:
                return asyncio.run(grown(folder, messages))

        rounds = 1 if messages >= ONCE else None
        return Subject(f"{messages:,} messages", FIGURES, measured, at=messages, rounds=rounds)

    return Scenario(tuple(map(subject, SIZES[:3] if quick else SIZES)), rounds=3, grows="messages of backlog")
