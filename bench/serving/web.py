"""The scenario ``serve``: `tidings serve` beside a bare Starlette app that does the same work (``bare_web.py``).

Server and clients are a process each, on a core each: a rate is what one core does. The server is the command as it is
installed, with its defaults, over memory and over SQLite; what it accepts on SQLite has been synced.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import uvloop
from msgspec.structs import replace

from tidings import App
from tidings.kernel.transport import Inspectable

from ..harness import Figure, Scenario, Subject, timed_figures
from ..histogram import Timed, timed
from ..measure import bus_folder
from ..payload import body
from ..peers._shared import accepted
from .following import Events, Follower, WebSocket, followed, topics
from .posting import LINES, Connection, asked, connected, post
from .processes import OURS, Server, allow_files, running

T = TypeVar("T")

BARE, MEMORY, SQLITE = "bare Starlette", "Tidings, memory", "Tidings, SQLite"
TOPIC, BATCH, DIFFERENT = "orders.placed", 1000, 100
SINGLE, MANY = "single POSTs", "NDJSON, 1,000 a POST"
KINDS: dict[str, type[Follower]] = {"SSE": Events, "WebSocket": WebSocket}
LATE = 250.0  # milliseconds: 99 of 100 messages are there by then


class Size(NamedTuple):
    """Messages, how many requests are on their way at once, followers, and for how many seconds they follow."""

    single: int = 30_000
    many: int = 600_000
    posting: int = 64
    batches: int = 8
    followers: int = 5_000
    seconds: int = 6


def words(subject: str, folder: Path) -> tuple[str, ...]:
    """Of the command that serves it."""
    if subject == BARE:
        return ("-m", "bench.serving.bare_web")
    return (*OURS, "--url", "memory://" if subject == MEMORY else bus(folder))


def bus(folder: Path) -> str:
    return f"sqlite:///{folder / 'bench.db'}"


def on_uvloop(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


# -- publishing


def requests(messages: int, each: int) -> Iterator[bytes]:
    """So many messages, ``each`` a request."""
    if each == 1:
        some = [post(TOPIC, body(number)) for number in range(DIFFERENT)]
    else:
        lines = b"\n".join(body(number) for number in range(each))
        some = [post(TOPIC, lines, LINES)]
    return (some[number % len(some)] for number in range(messages // each))


async def posted(port: int, messages: int, each: int, at_once: int) -> float:
    """Messages a second, each accepted; after some that are not timed."""
    connections: list[Connection] = await connected(port, at_once)
    warm = at_once * each * 2
    accepted(await asked(connections, requests(warm, each)), warm)
    began = time.perf_counter()
    told = await asked(connections, requests(messages, each))
    took = time.perf_counter() - began
    accepted(told, messages)
    return messages / took


async def stored(folder: Path) -> int:
    """How many messages the file has."""
    async with (app := App("bench", bus(folder))).connect():
        found = app.bus()
        if not isinstance(found, Inspectable):
            raise TypeError(f"{type(found).__name__} cannot tell what it has")
        return sum(topic.messages for topic in await found.topics(TOPIC))


def publishing(subject: str, messages: int, each: int, at_once: int) -> Sequence[float]:
    with bus_folder() as folder:
        with running(*words(subject, folder), folder=folder) as server:
            rate = on_uvloop(posted(server.port, messages, each, at_once))
        if subject == SQLITE:
            accepted(asyncio.run(stored(folder)), messages + 2 * at_once * each)
    return (rate,)


# -- following


def following(subject: str, kind: type[Follower], clients: int, names: list[str], seconds: int) -> Timed:
    """Delays; then KiB of the server's memory for each client, and its processor in % of a core."""
    allow_files(clients)
    with bus_folder() as folder, running(*words(subject, folder), folder=folder) as server:
        return on_uvloop(_following(server, kind, clients, names, seconds))


async def _following(server: Server, kind: type[Follower], clients: int, names: list[str], seconds: int) -> Timed:
    began = list[float]()

    def ready() -> None:
        began.extend((time.perf_counter(), server.cpu()))

    await posted(server.port, DIFFERENT, 1, 1)
    before = server.memory()
    delays = await followed(server.port, kind, clients, names, seconds, ready)
    at, cpu = began
    used = (server.cpu() - cpu) / (time.perf_counter() - at)
    return timed(delays, (server.memory() - before) / 1024 / clients, used * 100)


# -- the scenario


def rates(work: str, size: Size, at_least: float) -> Iterator[Subject]:
    each, messages, at_once = (1, size.single, size.posting) if work == SINGLE else (BATCH, size.many, size.batches)
    rate = Figure("rate", "msg/s")
    for name in (BARE, MEMORY, SQLITE):
        bounded = rate if name == BARE else replace(rate, at_least=at_least, ratio_to=(f"{BARE}: {work}",))
        yield Subject(f"{name}: {work}", (bounded,), partial(publishing, name, messages, each, at_once), series=work)


def delays(kind: str, size: Size, of: int, names: Sequence[str]) -> Iterator[Subject]:
    """``of``: topics, whose messages are spread over the second."""
    work = f"{size.followers:,} by {kind}, {'one topic' if of == 1 else f'{of} topics'}"
    more = Figure("memory", "KiB/client"), Figure("CPU", "% of a core")
    for name in names:
        late = timed_figures(p99=None if name == BARE else LATE)
        beside = (f"{BARE}: {work}",) if name != BARE and BARE in names else ()
        figures = tuple(
            replace(one, ratio_to=beside) if one.name in ("p50", "p99", "memory", "CPU") else one
            for one in (*late, *more)
        )
        measured = partial(following, name, KINDS[kind], size.followers, topics(of), size.seconds)
        yield Subject(f"{name}: {work}", figures, measured, series=work)


def notes() -> str:
    """How the cores were shared, and how many files may be open."""
    many = f"{SINGLE}: {Size().posting} connections; {MANY}: {Size().batches}"
    shared = f"server and clients have one core each of {os.cpu_count()}; the soft limit of open files is raised"
    return f"{shared} to the hard one. {many}. One topic: every client's message is due at the same moment"


def scenario(quick: bool) -> Scenario:
    size = Size(1_000, 20_000, 16, 4, 100, 2) if quick else Size()
    subjects = (
        *rates(SINGLE, size, 3_000.0),
        *rates(MANY, size, 50_000.0),
        *(one for kind in KINDS for one in delays(kind, size, 1, (BARE, MEMORY, SQLITE))),
        *(one for kind in KINDS for one in delays(kind, size, 20, (BARE, MEMORY))),
    )
    return Scenario(subjects, rounds=3, notes=notes, patience=180.0)
