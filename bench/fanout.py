"""One topic, 1, 10, 100 groups: what a delivery costs when a message is stored once and read by many."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tidings import App

from .harness import Figure, Scenario, Subject
from .measure import bus_folder
from .payload import Order, order
from .sqlite import BATCH, placed, publish_all, url

GROUPS = (1, 10, 100)


async def deliveries(url: str, groups: int, messages: int) -> float:
    """A backlog that every group reads: deliveries a second, all groups together."""
    app = App("bench", url)
    for n in range(groups):

        @app.on(placed, group=f"bench.g{n}")
        async def noop(order: Order) -> None:
            return None

    async with app:
        stats = app.stats()
        for group in stats:
            app.pause(group)
        await publish_all(app, [placed(order(n)) for n in range(BATCH)], messages)
        began = time.perf_counter()
        for group in stats:
            app.pause(group, False)
        while sum(one.handled for one in stats.values()) < messages * groups:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        return messages * groups / (time.perf_counter() - began)


def scenario(quick: bool) -> Scenario:
    total = 20_000 if quick else 400_000

    def subject(bus: str, groups: int) -> Subject:
        messages = min(90_000, max(BATCH, total // groups))  # the memory bus retains 100,000

        async def measure(folder: Path) -> float:
            return await deliveries("memory://" if bus == "memory" else url(folder), groups, messages)

        def measured() -> tuple[float]:
            with bus_folder() as folder:
                return (asyncio.run(measure(folder)),)

        name = f"{bus}, {groups} {'group' if groups == 1 else 'groups'}"
        return Subject(name, (Figure("rate", "deliveries/s"),), measured, series=bus, at=groups)

    return Scenario(
        tuple(subject(bus, groups) for groups in GROUPS for bus in ("memory", "SQLite")), rounds=3, grows="groups"
    )
