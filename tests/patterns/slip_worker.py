"""Routing slips to be killed: ``app(url)`` for ``tests.patterns.killing``.

Each step is written to the file that the variable ``SLIP_JOURNAL`` names before it is settled.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from tidings import App, Backoff, Message, Reject
from tidings.patterns import RoutingSlip

JOURNAL = "SLIP_JOURNAL"
STEPS = "abc"
UNDOABLE = "ab"
NEVER = Backoff(attempts=1000, first=0.01, factor=1)


class Job(Struct):
    name: str
    fails: str = ""  # the step that is rejected
    breaks: str = ""  # the step that raises at each attempt


def jobs(names: Iterable[str], since: int = 0) -> list[Job]:
    """One in three fails, in one way or another. ``since``: how many there were before."""
    ways: list[dict[str, str]] = [{}, {}, {"fails": "b"}, {}, {}, {"breaks": "c"}, {}, {}, {"fails": "a"}]
    return [Job(name, **ways[index % len(ways)]) for index, name in enumerate(names, since)]


def slips(app: App) -> RoutingSlip[Job]:
    """The slip as those declare it that start some; its steps are ``elsewhere``."""
    return RoutingSlip(app, "trips", Job, elsewhere=STEPS)


def app(url: str) -> App:
    made = App("travel", url, breaker=None)
    trips = RoutingSlip(made, "trips", Job, backoff=Backoff(attempts=3, first=0.01, factor=1))
    file = os.open(os.environ[JOURNAL], os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def player(what: str, step: str) -> Any:
        async def play(job: Job, message: Message[Job]) -> None:
            os.write(file, f"{what}-{step} {job.name}\n".encode())
            await asyncio.sleep(0.005)
            if what == "do" and job.fails == step:
                raise Reject("as told")
            if what == "do" and job.breaks == step:
                raise OSError("as told")

        return play

    for step in STEPS:
        trips.step(step, group=f"travel.do-{step}", concurrency=4)(player("do", step))
    for step in UNDOABLE:  # a compensation is never given up because its process was killed
        trips.compensate(step, group=f"travel.undo-{step}", backoff=NEVER)(player("undo", step))
    return made
