"""A slow handler beside a fast one on the same topic: what it costs the fast one.

1,000 messages a second from another process; the slow handler waits 1 s for each. With the default concurrency it falls
behind, and its backlog grows; with 1,200 it keeps up. The fast one's p99 is compared with its p99 alone, interleaved.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tidings import App

from .harness import Figure, Scenario, Subject
from .histogram import Timed, timed
from .latency import RATE, paced, stopped
from .measure import bus_folder
from .pacer import RUNNING_INTERVAL, Stamped, stamped

WAIT = 1.0
Slow = Callable[[App], None]


def no_one(app: App) -> None:
    """The fast handler alone."""


def waiting(concurrency: int) -> Slow:
    def add(app: App) -> None:
        @app.on(stamped, concurrency=concurrency)
        async def slow(stamp: Stamped) -> None:
            await asyncio.sleep(WAIT)

    return add


def blocking(concurrency: int) -> Slow:
    def add(app: App) -> None:
        @app.on(stamped, concurrency=concurrency)
        def slow(stamp: Stamped) -> None:
            time.sleep(WAIT)

    return add


async def beside(folder: Path, seconds: float, slow: Slow) -> Timed:
    """The fast handler's delays, and what the slow one managed meanwhile."""
    url, delays = f"sqlite:///{folder / 'bench.db'}", list[float]()
    app = App("bench", url)

    @app.on(stamped)
    async def fast(stamp: Stamped) -> None:
        delays.append(time.monotonic() - stamp.due)

    slow(app)
    await app.__aenter__()
    await paced(url, RATE, seconds, lambda: len(delays) >= int(RATE * seconds))
    managed = app.stats()["bench.slow"].handled if "bench.slow" in app.stats() else 0
    return timed(delays, managed)


def scenario(quick: bool) -> Scenario:
    seconds = 4.0 if quick else 15.0

    def subject(name: str, slow: Slow) -> Subject:
        async def run() -> Timed:
            with bus_folder() as folder:
                return await beside(folder, seconds, slow)

        def measured() -> Timed:
            sys.setswitchinterval(RUNNING_INTERVAL)
            return stopped(run())

        alone = () if slow is no_one else ("alone",)
        figures = (
            Figure("p50", "ms", ratio_to=alone),
            Figure("p99", "ms", ratio_to=alone, ratio_at_most=1.5 if alone else None),
            Figure("p99.9", "ms", ratio_to=alone),
            Figure("max", "ms", ratio_to=alone),
            Figure("slow ones handled", ""),
        )
        return Subject(name, figures, measured)

    return Scenario(
        (
            subject("alone", no_one),
            subject("beside asyncio.sleep(1), 16", waiting(16)),
            subject("beside asyncio.sleep(1), 1,200", waiting(1200)),
            subject("beside time.sleep(1), 8 threads", blocking(8)),
            subject("beside time.sleep(1), 1,200 threads", blocking(1200)),
        ),
        rounds=3,
    )
