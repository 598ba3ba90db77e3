"""From the moment a message is due to its handler, over two processes; and what a publisher waits in a busy process."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from tidings import App, Topic

from .harness import Scenario, Subject, timed_figures
from .histogram import Timed, timed
from .measure import bus_folder
from .pacer import RUNNING_INTERVAL, Stamped, stamped
from .payload import Order, order

RATE = 1000
BURN = 0.02  # seconds of pure Python a CPU-bound handler takes
STEP = 0.001  # seconds the loop is kept at a time

T = TypeVar("T")

work = Topic("work.heavy", Order)
steps = Topic("work.steps", Order)


def burn(seconds: float) -> None:
    """Pure Python, which never lets go of the GIL by itself."""
    until, n = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        n += 1


def add_heavy(app: App, threads: int) -> None:
    @app.on(work, concurrency=threads, start="first")
    def heavy(order: Order) -> None:
        burn(BURN)


async def backlog(app: App, topic: Topic[Order], messages: int) -> None:
    for _ in range(messages // 100):
        await app.publish_many([topic(order(n)) for n in range(100)])


async def two_processes(folder: Path, rate: float, seconds: float, threads: int = 0) -> list[float]:
    """Delays of a consumer in this process; ``threads``: of a CPU-bound handler beside it."""
    url, delays = f"sqlite:///{folder / 'bench.db'}", list[float]()
    app = App("bench", url)

    @app.on(stamped)
    async def take(stamp: Stamped) -> None:
        delays.append(time.monotonic() - stamp.due)

    if threads:
        add_heavy(app, threads)
        async with app.connect():
            await backlog(app, work, int(seconds / BURN) + 1000)
    await app.__aenter__()
    await paced(url, rate, seconds, lambda: len(delays) >= int(rate * seconds))
    return delays


async def paced(url: str, rate: float, seconds: float, done: Callable[[], bool]) -> None:
    """Let a publisher run beside this process, until everything has arrived. The app stays open."""
    command = (sys.executable, "-m", "bench.pacer", url, str(rate), str(seconds))
    publisher = await asyncio.create_subprocess_exec(*command)
    if await publisher.wait():
        raise RuntimeError("the publisher failed")
    deadline = time.monotonic() + 30.0
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError("not every message arrived")
        await asyncio.sleep(0.01)


async def publishing(app: App, seconds: float) -> list[float]:
    """What ``await publish`` takes, 200 a second, none waiting for another.

    From its call on: a busy loop comes to the call itself late too, and that is not the bus's.
    """
    delays, tasks = list[float](), list[asyncio.Task[None]]()

    async def one(n: int) -> None:
        began = time.monotonic()
        await app.publish(stamped, Stamped(began, n))
        delays.append(time.monotonic() - began)

    loop, start = asyncio.get_running_loop(), time.monotonic()
    for n in range(int(seconds * 200)):
        await asyncio.sleep(max(0.0, start + n / 200 - time.monotonic()))
        tasks.append(loop.create_task(one(n)))
    await asyncio.gather(*tasks)
    return delays


async def busy_process(folder: Path, seconds: float) -> list[float]:
    """In one process: a backlog whose handler keeps the loop for up to 1 ms, a CPU-bound sync handler, a publisher."""
    app = App("bench", f"sqlite:///{folder / 'bench.db'}")
    add_heavy(app, 1)

    @app.on(steps, start="first")
    async def step(order: Order) -> None:
        burn(STEP * (order.n % 10 + 1) / 10)

    async with app.connect():
        await backlog(app, work, int(seconds / BURN) + 1000)
        await backlog(app, steps, int(seconds / STEP) * 3)
    await app.__aenter__()
    return await publishing(app, seconds)


async def only_publishing(folder: Path, seconds: float) -> list[float]:
    """A process without handlers whose loop is never idle: steps of 1 ms, one after another."""
    app = App("bench", f"sqlite:///{folder / 'bench.db'}")

    async def always() -> None:
        while True:
            burn(STEP)
            await asyncio.sleep(0)

    async with app.connect():
        busy = asyncio.get_running_loop().create_task(always())
        try:
            return await publishing(app, seconds)
        finally:
            busy.cancel()


def scenario(quick: bool) -> Scenario:
    seconds = 2.0 if quick else 10.0

    def subject(
        name: str,
        measure: Callable[[Path], Awaitable[list[float]]],
        p50: float | None,
        p99: float,
        interval: float | None = RUNNING_INTERVAL,
    ) -> Subject:
        async def run() -> Timed:
            with bus_folder() as folder:
                return timed(await measure(folder))

        def measured() -> Timed:
            if interval is not None:
                sys.setswitchinterval(interval)
            return stopped(run())

        return Subject(name, timed_figures(p50=p50, p99=p99), measured)

    return Scenario(
        (
            subject("two processes, 1,000/s", lambda f: two_processes(f, RATE, seconds), 2.0, 10.0),
            subject("… beside a CPU-bound thread", lambda f: two_processes(f, RATE, seconds, 1), None, 50.0),
            subject("… beside 8 (the default) of them", lambda f: two_processes(f, RATE, seconds, 8), None, 50.0),
            subject("publish: backlog, CPU-bound, 1 ms steps", lambda f: busy_process(f, seconds), None, 50.0),
            subject("publish: only publishing, 1 ms steps", lambda f: only_publishing(f, seconds), None, 50.0, None),
        ),
        rounds=3,
    )


def stopped(measuring: Awaitable[T]) -> T:
    """The result, without the end: the work is endless, and this process is about to go."""
    loop = asyncio.new_event_loop()
    return loop.run_until_complete(measuring)
