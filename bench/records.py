"""Handlers that keep records on the SQLite bus, in one process, from a backlog: beside one that keeps none.

A thousand accounts; fifty sensors that are read every 10 s, in windows of 5 minutes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from tidings import App, Message, State, Table, Topic
from tidings.middleware.dedup import Dedup
from tidings.patterns import Tumbling, Window, windowed

from .harness import Figure, Scenario, Subject
from .measure import bus_folder
from .payload import Order, order
from .sqlite import BATCH, placed, url

ACCOUNTS, SENSORS, CHUNK = 1000, 50, 512
GROUP = "bench.handle"


class Reading(Struct):
    sensor: str
    at: float
    value: float


class Total(Struct):
    count: int
    sum: float


readings, means = Topic("hall.readings", Reading), Topic("hall.means", float)
totals = Table("totals", Total)


def account(n: int) -> Message[Order]:
    made = order(n)
    made.id = f"a{n % ACCOUNTS}"
    return placed(made)


def reading(n: int) -> Message[Reading]:
    return readings(Reading(f"s{n % SENSORS}", 1.7e9 + n // SENSORS * 10.0, float(n)))


def plain(app: App) -> None:
    @app.on(placed, group=GROUP)
    async def handle(order: Order) -> None: ...


def plain_batch(app: App) -> None:
    @app.on(placed, group=GROUP, batch=CHUNK, concurrency=1)
    async def handle(orders: list[Order]) -> None: ...


def dedup(app: App) -> None:
    @app.on(placed, group=GROUP, middleware=[Dedup()])
    async def handle(order: Order) -> None: ...


def dedup_batch(app: App) -> None:
    @app.on(placed, group=GROUP, batch=CHUNK, concurrency=1, middleware=[Dedup()])
    async def handle(orders: list[Order]) -> None: ...


def add(before: Total | None, value: float) -> Total:
    return Total(before.count + 1, before.sum + value) if before else Total(1, value)


def one_by_one(app: App) -> None:
    @app.on(placed, group=GROUP)
    async def handle(order: Order, state: State) -> None:
        state.put(totals, order.id, add(await state.get(totals, order.id), 1.0))


def in_batches(app: App) -> None:
    @app.on(placed, group=GROUP, batch=CHUNK, concurrency=1)
    async def handle(orders: list[Order], state: State) -> None:
        known = await state.get_many(totals, {order.id for order in orders})
        for each in orders:
            known[each.id] = add(known.get(each.id), 1.0)
        for id, total in known.items():
            state.put(totals, id, total)


def windows(app: App) -> None:
    def fold(before: Total | None, reading: Reading) -> Total:
        return add(before, reading.value)

    def mean(total: Total, window: Window) -> float:
        return total.sum / total.count

    windowed(
        app, readings, Tumbling("5m"), by=lambda r: r.sensor, time=lambda r: r.at, fold=fold, to=means, group=GROUP
    )(mean)


async def worked(
    folder: Path, declare: Callable[[App], None], make: Callable[[int], Message[Any]], messages: int
) -> float:
    """Messages a second."""
    app = App("bench", url(folder))
    declare(app)
    async with app:
        stats = app.stats()[GROUP]
        app.pause(GROUP)
        for first in range(0, messages, BATCH):
            await app.publish_many([make(n) for n in range(first, first + BATCH)])
        began = time.perf_counter()
        app.pause(GROUP, False)
        while stats.handled < messages:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        return messages / (time.perf_counter() - began)


def scenario(quick: bool) -> Scenario:
    messages = 10_000 if quick else 200_000

    def subject(
        name: str, declare: Callable[[App], None], bar: float | None = None, make: Callable = account
    ) -> Subject:
        def measured() -> Sequence[float]:
            with bus_folder() as folder:
                return (asyncio.run(worked(folder, declare, make, messages)),)

        return Subject(name, (Figure("rate", "msg/s", at_least=bar),), measured)

    return Scenario(
        (
            subject("no records", plain),
            subject("no records, batches of 512", plain_batch),
            subject("dedup", dedup, 50_000),
            subject("dedup, batches of 512", dedup_batch, 50_000),
            subject("a total per account", one_by_one),
            subject("a total per account, batches of 512", in_batches),
            subject("windows of 5 minutes", windows, 100_000, reading),
        ),
        rounds=3,
    )
