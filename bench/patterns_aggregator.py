"""The aggregator on the SQLite bus, in one process, from a backlog; and what a million open groups take.

Ten lines of about 200 bytes make an order; lines of all orders that are open come in any order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from tidings import App, Message, Topic
from tidings.patterns import aggregator, resequencer

from .harness import Figure, Scenario, Subject
from .machine import peak_rss
from .measure import bus_folder
from .payload import Order, order
from .sqlite import BATCH, placed, url

SIZE = 10
GROUP = "bench.whole"
counted, ordered = Topic("orders.counted", int), Topic("orders.ordered", Order)

RATE = (Figure("rate", "msg/s", at_least=50_000),)


def lines(messages: int, open: int) -> Iterator[Message[Order]]:
    """Of ``open`` groups at a time; ``id`` says which, ``n`` which line."""
    luck, live, nexts = Random(1), list(range(open)), [0] * open
    following = open
    for _ in range(messages):
        at = luck.randrange(open)
        line = order(live[at])
        line.n = nexts[at]
        yield placed(line)
        nexts[at] += 1
        if nexts[at] == SIZE:
            live[at], nexts[at], following = following, 0, following + 1


def single(n: int) -> Message[Order]:
    """The first of its group."""
    return placed(order(n))


def collected(found: list[Order]) -> int:
    return len(found)


def count(total: int | None, line: Order) -> int:
    return (total or 0) + 1


def by(line: Order) -> str:
    return line.id


def listing(app: App) -> None:
    aggregator(app, placed, by=by, size=SIZE, to=counted, group=GROUP, start="first")(collected)


def timing(app: App) -> None:
    aggregator(app, placed, by=by, size=SIZE, timeout="1h", to=counted, group=GROUP, start="first")(collected)


def folding(app: App) -> None:
    rule: Any = lambda total: total == SIZE  # noqa: E731
    aggregator(app, placed, by=by, fold=count, until=rule, to=counted, group=GROUP, start="first")(lambda total: total)


def ordering(app: App) -> None:
    by_id: Any = {"by": by, "number": lambda line: line.n}
    resequencer(app, placed, to=ordered, group=GROUP, **by_id)


async def worked(folder: Path, declare: Any, lines: Iterator[Message[Order]]) -> float:
    """Messages a second, of whole batches."""
    app = App("bench", url(folder))
    declare(app)
    async with app:
        stats = app.stats()[GROUP]
        app.pause(GROUP)
        messages = 0
        while len(some := list(islice(lines, BATCH))) == BATCH:
            await app.publish_many(some)
            messages += BATCH
        began = time.perf_counter()
        app.pause(GROUP, False)
        while stats.handled < messages:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        return messages / (time.perf_counter() - began)


def scenario(quick: bool) -> Scenario:
    messages, many = (10_000, 20_000) if quick else (200_000, 1_000_000)

    def subject(name: str, declare: Any, open: int) -> Subject:
        def measured() -> Sequence[float]:
            with bus_folder() as folder:
                return (asyncio.run(worked(folder, declare, lines(messages, open))),)

        return Subject(name, RATE, measured)

    def opened() -> Sequence[float]:
        with bus_folder() as folder:
            return asyncio.run(worked(folder, timing, map(single, range(many)))), peak_rss()

    figures = Figure("rate", "msg/s"), Figure("memory", "MiB", at_most=1024)
    return Scenario(
        (
            subject("list of 10, 100 groups open", listing, 100),
            subject("list of 10, 1,000 groups open", listing, 1000),
            subject("list of 10, 1,000 groups open, with a timeout", timing, 1000),
            subject("total of 10, 1,000 groups open", folding, 1000),
            subject("resequencer, 100 streams", ordering, 100),
            Subject(f"{many:,} groups open", figures, opened, rounds=1),
        ),
        rounds=3,
    )
