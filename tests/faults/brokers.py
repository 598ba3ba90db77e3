"""Nemeses of the servers behind a bus: killed and started again, and a node of three killed, under load.

Consuming must go on without help; how long that took is in ``resumed``: seconds from the start of the server (of one
that hung: from its going on; of a node: from its death) to the next settlement that it confirmed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from tests.servers import Server

from tidings.testing.faults import Nemesis, Run

STALL, PATIENCE = 0.3, 60.0  # seconds
SETTLED = 2.0  # seconds: RabbitMQ 3.10 forgets for ever who leads a quorum queue that was declared less than one before


async def _at_work(run: Run, handled: int) -> None:
    """All processes are there: one that starts while there is no broker ends at once, and says so."""
    everybody = run.scenario.publishers + run.scenario.consumers
    await run.until(lambda: run.count("ready") >= everybody, "all are ready", PATIENCE)
    await run.until(lambda: run.count("end") > handled, "work is under way", PATIENCE)


def _hit(run: Run, what: str) -> None:
    """Every process may lose what it has in hand."""
    for name in list(run.alive):
        run.note(what, name, harmless=False)


async def _resumed(run: Run, since: float, resumed: list[float]) -> None:
    """Note when something was settled after that, unless there was nothing left to do."""

    def settled() -> list[float]:
        return [line.at - since for line in run.histories.lines if line.what == "settled" and line.at > since]

    await run.until(lambda: settled() or run.idle, "consuming goes on", within=PATIENCE)
    resumed += sorted(settled())[:1]


def restarted(server: Server, resumed: list[float], times: int = 3) -> Nemesis:
    """``kill -9`` of the server while there is work, and a start on the same port and data; so many times."""

    async def nemesis(run: Run) -> None:
        await asyncio.sleep(SETTLED)
        for n in range(times):
            await _at_work(run, run.count("end") + 20)
            _hit(run, "broker killed")
            server.kill()
            await asyncio.sleep(STALL * (n + 1))
            since = time.monotonic()
            await asyncio.to_thread(server.start)
            await _resumed(run, since, resumed)

    return nemesis


def node_killed(nodes: Sequence[Server], resumed: list[float]) -> Nemesis:
    """``kill -9`` of one node of a cluster while there is work; it stays down."""

    async def nemesis(run: Run) -> None:
        await _at_work(run, 50)
        _hit(run, "node killed")
        since = time.monotonic()
        run.random.choice(nodes).kill()
        await _resumed(run, since, resumed)

    return nemesis


def paused(server: Server, resumed: list[float], seconds: float = 3.0) -> Nemesis:
    """The server hangs (SIGSTOP) for longer than a lease, and goes on."""

    async def nemesis(run: Run) -> None:
        await _at_work(run, 50)
        _hit(run, "broker paused")
        server.pause()
        try:
            await asyncio.sleep(seconds)
        finally:
            since = time.monotonic()
            server.resume()
        await _resumed(run, since, resumed)

    return nemesis


Attack = Callable[[Server, list[float]], Nemesis]
