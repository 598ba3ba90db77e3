"""A loop that is never idle, a thread that computes: publishing must go on. Counted in steps of the loop, not in time.

The embedded bus commits in a thread. A loop that never blocks keeps the GIL from it for thousands of its own steps,
unless it hands over (docs/architecture.md, the GIL).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tidings import App, Topic

PUBLISHES, MOST_STEPS = 20, 400
WORK = 20_000  # rounds of a loop in Python: about a millisecond

ticks = Topic("ticks", int)
heavy = Topic("heavy", int)


def compute(rounds: int = WORK) -> None:
    for _ in range(rounds):
        pass


class Busy:
    """Keeps the loop busy, step after step."""

    def __init__(self) -> None:
        self.steps = 0
        self.task = asyncio.get_running_loop().create_task(self.run())

    async def run(self) -> None:
        while True:
            compute()
            self.steps += 1
            await asyncio.sleep(0)


async def steps_of_publishing(app: App, busy: Busy) -> list[int]:
    """How many steps of the loop each ``await publish`` took."""
    taken = []
    for n in range(PUBLISHES):
        before = busy.steps
        await app.publish(ticks, n)
        taken.append(busy.steps - before)
    return taken


async def test_in_a_process_that_only_publishes(tmp_path: Path) -> None:
    app = App("busy", f"sqlite:///{tmp_path / 'bus.db'}")
    async with app.connect():
        busy = Busy()
        taken = await steps_of_publishing(app, busy)
        busy.task.cancel()
    assert min(taken) >= 1, "the loop was not busy"
    assert max(taken) <= MOST_STEPS, taken


@pytest.mark.parametrize("threads", [0, 1])
async def test_beside_handlers(tmp_path: Path, threads: int) -> None:
    """A backlog on the loop, and one in a thread: what is published meanwhile is handled meanwhile."""
    app, seen, computed = App("busy", f"sqlite:///{tmp_path / 'bus.db'}"), list[int](), list[int]()

    @app.on(ticks)
    async def take(n: int) -> None:
        seen.append(n)

    if threads:

        @app.on(heavy, concurrency=threads)
        def burn(n: int) -> None:
            compute(10 * WORK)
            computed.append(n)

    async with app:
        await app.publish_many([heavy(n) for n in range(100)])
        busy = Busy()
        taken = await steps_of_publishing(app, busy)
        before = busy.steps
        while len(seen) < PUBLISHES:
            await asyncio.sleep(0)
            assert busy.steps - before < 10 * MOST_STEPS, f"published and not handled: {seen}"
        busy.task.cancel()
        app.pause("busy.burn") if threads else None
    assert seen == list(range(PUBLISHES))
    assert max(taken) <= MOST_STEPS, taken
