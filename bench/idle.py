"""What a process costs that has nothing to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from tidings import App, Topic

from .harness import Figure, Scenario, Subject
from .machine import peak_rss
from .measure import bus_folder
from .payload import Order


async def idle(folder: Path, groups: int, seconds: float) -> Sequence[float]:
    """CPU of all its threads in % of one core, seconds to start and to stop, and memory."""
    app = App("bench", f"sqlite:///{folder / 'bench.db'}")
    for n in range(groups):

        @app.on(Topic(f"orders.t{n}", Order), group=f"bench.g{n}")
        async def noop(order: Order) -> None:
            return None

    began = time.perf_counter()
    async with app:
        started = time.perf_counter() - began
        await asyncio.sleep(1.0)  # until it has noticed that nothing happens
        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        cpu = (time.process_time() - cpu) / (time.perf_counter() - began)
        began = time.perf_counter()
    stopped = time.perf_counter() - began
    return cpu * 100, started, stopped, peak_rss()


def scenario(quick: bool) -> Scenario:
    seconds = 2.0 if quick else 10.0

    def subject(name: str, groups: int, budget: float) -> Subject:
        def measured() -> Sequence[float]:
            with bus_folder() as folder:
                return asyncio.run(idle(folder, groups, seconds))

        figures = Figure("CPU", "%", at_most=budget), Figure("start", "s"), Figure("stop", "s"), Figure("memory", "MiB")
        return Subject(name, figures, measured)

    return Scenario((subject("one consumer", 1, 1.0), subject("1,000 groups", 1000, 3.0)), rounds=3)
