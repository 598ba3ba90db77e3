"""Nemeses for any transport: what is done to the processes of a run while they work.

Each waits until there is something to hurt, so that it does not miss: ``run.until`` raises when that does not come.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from .history import Line
from .run import Nemesis, Run

PATIENCE, TRIES = 5.0, 4  # seconds until a frozen process had a lock in hand; how often to try


def kills(times: int = 3) -> Nemesis:
    """``kill -9`` of any process at random moments while there is work."""

    async def nemesis(run: Run) -> None:
        total = run.scenario.messages * len(run.scenario.groups)
        for mark in sorted(run.random.randrange(total * 3 // 4) for _ in range(times)):
            await run.until(lambda mark=mark: run.count("end") >= mark, f"{mark} handled")  # type: ignore[misc]
            await asyncio.sleep(run.random.uniform(0.0, 0.05))
            if run.alive:
                run.kill(run.random.choice(sorted(run.alive)))

    return nemesis


def running(run: Run, name: str) -> bool:
    """Whether a consumer has a message in hand whose handler runs."""
    seen = Counter(line.what for line in run.of(name))
    return seen["begin"] > seen["end"] + seen["fail"] + seen["reject"]


async def busy(run: Run, *names: str) -> str:
    """Wait until one of these is; which."""
    found = list[str]()

    def one() -> bool:
        found[:] = [name for name in names if running(run, name)]
        return bool(found)

    await run.until(one, f"{' or '.join(names)} is busy")
    return found[0]


async def freeze(run: Run) -> None:
    """Freeze a busy consumer until its lease is over and others have what it had; let it go on.

    One that was frozen with a lock in hand, so that nobody can go on, is let go and frozen again.
    """
    await run.until(lambda: run.count("end", "c0") > 5, "c0 works")
    for attempt in range(TRIES):
        settled = run.count("settled", "c0")
        await run.until(lambda settled=settled: run.count("settled", "c0") > settled, "c0 goes on")  # type: ignore[misc]
        await busy(run, "c0")
        run.freeze("c0")
        try:
            await run.until(_inherited(run), "another process gets what c0 was handling", within=PATIENCE)
            return
        except TimeoutError:
            if attempt == TRIES - 1:
                raise
        finally:
            run.thaw("c0")


def _inherited(run: Run) -> Callable[[], bool]:
    running = _running(run.of("c0"))

    def inherited() -> bool:
        others = [line for line in run.histories.lines if line.what == "received" and line.process != "c0"]
        return any((line.group, line.id) in running and line.detail == "suspect" for line in others)

    return inherited


def _running(lines: Sequence[Line]) -> set[tuple[str, str]]:
    """Begun and not settled, by group and id."""
    settled = {(line.group, line.id) for line in lines if line.what == "settled"}
    return {(line.group, line.id) for line in lines if line.what == "begin"} - settled


async def drain(run: Run) -> None:
    """SIGTERM to a busy consumer, and another one takes its place; then the other, unless all was done meanwhile.

    Which is busy first is the bus's choice: one may be given nothing before the other has done it all.
    """
    first = await busy(run, "c0", "c1")
    other = "c1" if first == "c0" else "c0"
    await run.terminate(first)
    await run.start(first)
    await run.until(lambda: running(run, other) or (run.published and run.idle), f"{other} is busy")
    await run.terminate(other)
    await run.start(other)


async def come_and_go(run: Run) -> None:
    """Consumers join and leave while retries are in flight: the scenario needs fates that fail."""
    await run.until(lambda: run.count("fail") > 0, "a retry is in flight")
    for joins, leaves in (("c2", "c0"), ("c0", "c1"), ("c1", "c2")):
        await (await run.start(joins)).line("ready")
        seen = run.count("end")
        await run.until(lambda seen=seen: run.count("end") > seen + 20 or run.idle, "work goes on")  # type: ignore[misc]
        await run.terminate(leaves)
