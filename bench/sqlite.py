"""The embedded bus under FULL sync, each figure beside APSW with the least around it: in one thread, and in two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from tidings import App, Message, Topic
from tidings.transports.sqlite import SQLite

from . import bare
from .harness import Figure, Scenario, Subject
from .measure import bus_folder
from .payload import Order, order

BATCH = 1000
TOPICS = 2000
PUBLISHERS = 100

placed = Topic("orders.placed", Order)
billed = Topic("orders.billed", Order)
readings = Topic("sensors.{device}.temperature", Order)


def consuming(bus: str | SQLite) -> tuple[App, list[float]]:
    """An app whose only handler does nothing, and when it began."""
    app, began = App("bench", bus), list[float]()

    @app.on(placed, start="first")
    async def noop(order: Order) -> None:
        if not began:
            began.append(time.perf_counter())

    return app, began


async def handled(app: App, messages: int) -> float:
    """When so many were settled."""
    stats = app.stats()["bench.noop"]
    while stats.handled < messages:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    return time.perf_counter()


async def publish_all(app: App, drafts: list[Message[Order]], messages: int) -> None:
    for _ in range(messages // BATCH):
        await app.publish_many(drafts)


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'bench.db'}"


async def publish(bus: str, messages: int, at_once: int = 1) -> float:
    """``at_once``: so many batches on their way."""
    app, drafts = App("bench", bus), [placed(order(n)) for n in range(BATCH)]
    async with app.connect():
        await publish_all(app, drafts, BATCH)
        began = time.perf_counter()
        await asyncio.gather(*(publish_all(app, drafts, messages // at_once) for _ in range(at_once)))
        return messages / (time.perf_counter() - began)


async def publish_wide(folder: Path, messages: int) -> float:
    """Over many topics, while retention drops what is old: the file has room for a fifth of it."""
    size = max(4 * 2**20, messages * 70)
    app = App("bench", SQLite(path=str(folder / "bench.db"), retain="0s", max_size=size))
    topics = [readings.bind(device=f"d{n}") for n in range(TOPICS)]
    batches = [[topic(order(n)) for n, topic in enumerate(topics[at : at + BATCH])] for at in range(0, TOPICS, BATCH)]
    async with app.connect():
        for drafts in batches:
            await app.publish_many(drafts)
        began = time.perf_counter()
        for n in range(messages // BATCH):
            await app.publish_many(batches[n % len(batches)])
        return messages / (time.perf_counter() - began)


async def backlog(bus: str, messages: int) -> float:
    app, _ = consuming(bus)
    return await consumed(app, messages)


async def consumed(app: App, messages: int) -> float:
    """Messages a second of a backlog, from when the app starts to open until the last was settled."""
    async with app.connect():
        await publish_all(app, [placed(order(n)) for n in range(BATCH)], messages)
    began = time.perf_counter()
    async with app:
        return messages / (await handled(app, messages) - began)


async def answered(bus: str, messages: int) -> float:
    """A backlog whose handler returns a message for each: stored with the settlement, and synced as what is stored."""
    app = App("bench", bus)

    @app.on(placed, start="first", to=billed)
    async def noop(order: Order) -> Order:
        return order

    return await consumed(app, messages)


async def end_to_end(bus: str, messages: int) -> float:
    app, _ = consuming(bus)
    drafts = [placed(order(n)) for n in range(BATCH)]
    async with app:
        began = time.perf_counter()
        await publish_all(app, drafts, messages)
        return messages / (await handled(app, messages) - began)


async def concurrent(bus: str, messages: int) -> float:
    app = App("bench", bus)

    async def publisher() -> None:
        for n in range(messages // PUBLISHERS):
            await app.publish(placed, order(n))

    async with app.connect():
        began = time.perf_counter()
        await asyncio.gather(*(publisher() for _ in range(PUBLISHERS)))
        return messages / (time.perf_counter() - began)


def scenario(quick: bool) -> Scenario:
    many = 20_000 if quick else 300_000
    few = 10_000 if quick else 100_000

    def subject(
        name: str, measure: Callable[[Path], float], beside: tuple[str, ...] = (), budget: float | None = None
    ) -> Subject:
        def measured() -> tuple[float]:
            with bus_folder() as folder:
                return (measure(folder),)

        return Subject(name, (Figure("rate", "msg/s", at_least=budget, ratio_to=beside),), measured)

    run = asyncio.run
    return Scenario(
        (
            subject("bare: insert", lambda f: bare.publish(f, many)),
            subject("two threads: insert", lambda f: bare.publish_apart(f, many)),
            subject("publish_many, 1 topic", lambda f: run(publish(url(f), many)), both("insert"), 300_000),
            subject("publish_many, 2 batches at once", lambda f: run(publish(url(f), many, 2)), both("insert")),
            subject("bare: insert, 2,000 topics", lambda f: bare.publish(f, many, TOPICS)),
            subject(
                "publish_many, 2,000 topics, retention",
                lambda f: run(publish_wide(f, many)),
                ("bare: insert, 2,000 topics",),
                120_000,
            ),
            subject("bare: backlog", lambda f: bare.backlog(f, many)),
            subject("two threads: backlog", lambda f: bare.backlog_apart(f, many)),
            subject("backlog", lambda f: run(backlog(url(f), many)), both("backlog"), 400_000),
            subject("bare: end to end", lambda f: bare.end_to_end(f, many)),
            subject("two threads: end to end", lambda f: bare.end_to_end_apart(f, many)),
            subject("end to end", lambda f: run(end_to_end(url(f), many)), both("end to end"), 150_000),
            subject("two threads: concurrent", lambda f: bare.concurrent(f, few, PUBLISHERS)),
            subject(
                "100 concurrent publish", lambda f: run(concurrent(url(f), few)), ("two threads: concurrent",), 60_000
            ),
        ),
    )


def both(work: str) -> tuple[str, str]:
    """The bare subjects that do the same work."""
    return f"bare: {work}", f"two threads: {work}"
