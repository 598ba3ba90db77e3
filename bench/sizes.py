"""Bodies of 100 bytes to 1 MiB: publishing and consuming, in messages and in megabytes a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from tidings import App, Topic

from .bare import Bare
from .harness import Figure, Scenario, Subject
from .measure import bus_folder
from .sqlite import handled, url

SIZES = {"100 B": 100, "1 KiB": 1 << 10, "64 KiB": 1 << 16, "1 MiB": 1 << 20}
BATCH, BATCH_BYTES = 1000, 4 << 20  # what is published at once, at most
CLAIM = 16  # messages that are claimed at once, at least

blobs = Topic("blobs", bytes)


async def tidings(folder: Path, size: int, messages: int) -> Sequence[float]:
    """Messages a second published, and consumed from the backlog."""
    app, body, batch = App("bench", url(folder)), b"x" * size, at_once(size)

    @app.on(blobs, start="first")
    async def noop(blob: bytes) -> None:
        return None

    async with app.connect():
        start = time.perf_counter()
        for _ in range(messages // batch):
            await app.publish_many([blobs(body) for _ in range(batch)])
        published = messages / (time.perf_counter() - start)
    start = time.perf_counter()
    async with app:
        return published, messages / (await handled(app, messages) - start)


def bare(folder: Path, size: int, messages: int) -> Sequence[float]:
    file, body, batch = Bare(folder), b"x" * size, at_once(size)
    began = time.perf_counter()
    for _ in range(messages // batch):
        file.begin(soft=False)
        file.store([body] * batch)
        file.commit()
    published = messages / (time.perf_counter() - began)
    file.close()
    began = time.perf_counter()
    for _ in Bare(folder).ranges(limit=max(CLAIM, batch)):
        pass
    return published, messages / (time.perf_counter() - began)


def at_once(size: int) -> int:
    return min(BATCH, BATCH_BYTES // size)


def scenario(quick: bool) -> Scenario:
    most, volume = (10_000, 16 << 20) if quick else (200_000, 256 << 20)

    def subject(name: str, size: int, *, ours: bool) -> Subject:
        messages = min(most, volume // size) // at_once(size) * at_once(size)

        def measured() -> Sequence[float]:
            with bus_folder() as folder:
                rates = asyncio.run(tidings(folder, size, messages)) if ours else bare(folder, size, messages)
            return tuple(value for rate in rates for value in (rate, rate * size / 1e6))

        beside = (f"bare: {name}",) if ours else ()
        figures = tuple(
            Figure(work, unit, ratio_to=beside if unit == "msg/s" else ())
            for work in ("publish", "consume")
            for unit in ("msg/s", "MB/s")
        )
        return Subject(name if ours else f"bare: {name}", figures, measured, "Tidings" if ours else "bare", size)

    subjects = (subject(name, size, ours=ours) for name, size in SIZES.items() for ours in (False, True))
    return Scenario(tuple(subjects), rounds=3, grows="bytes a message")
