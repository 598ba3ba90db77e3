"""1 to 10,000 topics, and as many groups, or one group over all of them: what does a process still cost?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tidings import App, Topic

from .harness import Figure, Scenario, Subject
from .machine import peak_rss
from .measure import bus_folder
from .payload import Order, order
from .sqlite import BATCH, url

SIZES = (1, 10, 100, 1000, 10_000)
GROUPS, WILDCARD = "a group each", "one group for all"
SETTLE, SINGLES = 1.0, 50  # seconds until nothing happens any more; messages sent one by one

FIGURES = (
    Figure("publish", "msg/s"),
    Figure("consume", "msg/s"),
    Figure("one message", "ms"),
    Figure("start", "s"),
    Figure("stop", "s"),
    Figure("memory", "MiB"),
    Figure("idle CPU", "%"),
)


class Fleet:
    """An app that listens to so many topics."""

    def __init__(self, url: str, topics: int, wildcard: bool) -> None:
        self.app, self.count = App("bench", url), 0
        self.topics = [Topic(f"sensors.t{n}", Order) for n in range(topics)]
        self.arrived = asyncio.Event()
        for n, pattern in enumerate(["sensors.*"] if wildcard else [topic.name for topic in self.topics]):
            self.listen(n, pattern)

    def listen(self, n: int, pattern: str) -> None:
        @self.app.on(Topic(pattern, Order), group=f"bench.g{n}")
        async def take(order: Order) -> None:
            self.count += 1
            self.arrived.set()

    async def one_message(self, n: int) -> float:
        """Seconds from publishing it to its handler."""
        self.arrived.clear()
        began = time.perf_counter()
        await self.app.publish(self.topics[n % len(self.topics)], order(n))
        await self.arrived.wait()
        return time.perf_counter() - began

    async def publish(self, messages: int) -> float:
        """Messages a second, over all topics in turn; nobody consumes."""
        batches = [
            [self.topics[n % len(self.topics)](order(n)) for n in range(at, at + BATCH)]
            for at in range(0, max(BATCH, len(self.topics)), BATCH)
        ]
        async with self.app.connect():
            for drafts in batches:  # so that every topic is known
                await self.app.publish_many(drafts)
            began, more = time.perf_counter(), messages // BATCH - len(batches)
            for n in range(more):
                await self.app.publish_many(batches[n % len(batches)])
            return more * BATCH / (time.perf_counter() - began)

    async def consume(self, messages: int) -> float:
        """Messages a second, from when all groups are there."""
        self.count = 0
        async with self.app:
            began = time.perf_counter()
            while self.count < messages:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            return messages / (time.perf_counter() - began)


async def cost(folder: Path, topics: int, wildcard: bool, messages: int, idle: float) -> Sequence[float]:
    fleet = Fleet(url(folder), topics, wildcard)
    began = time.perf_counter()
    async with fleet.app:
        start = time.perf_counter() - began
        single = median([await fleet.one_message(n) for n in range(SINGLES)])
        await asyncio.sleep(SETTLE)
        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(idle)
        cpu = (time.process_time() - cpu) / (time.perf_counter() - began)
        began = time.perf_counter()
    stop = time.perf_counter() - began
    published = await fleet.publish(messages)
    consumed = await fleet.consume(messages)
    return published, consumed, single * 1e3, start, stop, peak_rss(), cpu * 100


def scenario(quick: bool) -> Scenario:
    sizes, messages, idle = (SIZES[:4], 5_000, 1.0) if quick else (SIZES, 50_000, 3.0)

    def subject(topics: int, groups: str) -> Subject:
        def measured() -> Sequence[float]:
            with bus_folder() as folder:
                return asyncio.run(cost(folder, topics, groups == WILDCARD, messages, idle))

        rounds = 1 if topics == SIZES[-1] else None
        name = f"{topics:,} {'topic' if topics == 1 else 'topics'}, {groups}"
        return Subject(name, FIGURES, measured, series=groups, at=topics, rounds=rounds)

    subjects = (subject(topics, groups) for topics in sizes for groups in (GROUPS, WILDCARD))
    return Scenario(tuple(subjects), rounds=2, grows="topics")
