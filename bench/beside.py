"""The scenario ``peers``: Tidings beside other libraries that do the same work (``bench/peers/``).

How many messages a subject gets depends on it: runs are repeated with more until one takes long enough, and that one
counts. Rates are comparable, and the slow take seconds too.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from . import sqlite
from .fanout import deliveries
from .harness import Figure, Scenario, Subject, timed_figures
from .histogram import Timed, timed
from .latency import stopped, two_processes
from .measure import bus_folder
from .pacer import RUNNING_INTERVAL

PEERS = Path(__file__).with_name("peers")
UNSYNCED = ("kombu", "faststream")  # nothing they accept has reached a disk: shown, and no part of the bar
SERVERS = ("nats", "redis")  # in Go and C: the bar is also shown without them
WORKS = {
    "concurrent": "100 concurrent publishes",
    "publish": "publish in batches",
    "backlog": "consume a backlog",
    "end_to_end": "end to end",
    "latency": "latency at 200/s",
}
BAR = {"concurrent": 3.0, "backlog": 3.0}  # times each of the synced ones
RATE, FIRST, RETAINED = 200.0, 1000, 90_000  # of the memory bus

SQLITE, OUTPUT, MEMORY = "Tidings, SQLite", "Tidings, SQLite, with an output", "Tidings, memory"
BACKLOG = (
    "the clock starts when the consumer starts to open (on the memory bus: when its paused group goes on), and ends "
    "when the last was settled"
)
DURABLE = {
    SQLITE: "SQLite WAL: publishes that wait together share a commit, synced before any of them returns. Claims and "
    "settlements are committed at once and synced up to 10 ms later while there are others, 0.5 s when idle: a power "
    "loss may deliver what was settled in that time again; the death of a process does not",
    OUTPUT: "the same, but each handler returns a message, stored with its settlement: such commits are synced before "
    "they are answered. That is more work than the others do for a backlog, and what is settled is as safe as theirs; "
    "a claim is synced with its settlement at the latest",
    MEMORY: "nothing: it dies with its process",
}
PLAIN = (Figure("rate", "msg/s"),)
Work = Callable[[Path, int], float]  # messages a second


class Size(NamedTuple):
    """How long a rate takes at least, how many messages at most, and how long messages are paced."""

    seconds: float
    most: int
    paced: float


class Peer(NamedTuple):
    """A module of ``bench/peers``, read and not imported: a measurement must not carry the weight of all of them."""

    module: str
    name: str
    works: frozenset[str]

    def run(self, work: str, folder: Path, *given: float) -> float | list[float]:
        found = importlib.import_module(f"bench.peers.{self.module}")
        found.VERSION()  # raises when its server is missing
        result: float | list[float] = getattr(found, work)(folder, *given)
        return result


def peers() -> list[Peer]:
    return [_read(path) for path in sorted(PEERS.glob("[!_]*.py"))]


def _read(path: Path) -> Peer:
    text = path.read_text()
    works = WORKS.keys() & set(re.findall(r"^(?:async )?def (\w+)\(", text, re.MULTILINE))
    name = re.search(r'^NAME\b.*?= "(.*)"$', text, re.MULTILINE)
    return Peer(path.stem, name[1] if name else path.stem, frozenset(works))


def notes() -> str:
    """Which versions these were, and what reaches the disk when."""
    lines = [f"backlog: {BACKLOG}", *(f"{name}: {durable}" for name, durable in DURABLE.items())]
    for peer in peers():
        try:
            found = importlib.import_module(f"bench.peers.{peer.module}")
            lines.append(f"{peer.name}: {found.VERSION()}; {found.DURABLE}")
        except Exception as error:
            lines.append(f"{peer.name}: {type(error).__name__}: {error}")
    return "\n".join(lines)


def scaled(work: Work, seconds: float, most: int) -> float:
    """The rate of the first run that takes ``seconds``, or has ``most`` messages."""
    messages = FIRST
    while True:
        began = time.perf_counter()
        with bus_folder() as folder:
            rate = work(folder, messages)
        took = time.perf_counter() - began
        if took >= seconds or messages >= most:
            return rate
        more = min(10, max(2, int(1.5 * seconds / took)))
        messages = min(most, messages * more)


def ours() -> dict[tuple[str, str], Work]:
    """What Tidings does for each work."""
    run = asyncio.run
    return {
        (SQLITE, "concurrent"): lambda f, n: run(sqlite.concurrent(sqlite.url(f), n)),
        (SQLITE, "publish"): lambda f, n: run(sqlite.publish(sqlite.url(f), n)),
        (SQLITE, "backlog"): lambda f, n: run(sqlite.backlog(sqlite.url(f), n)),
        (SQLITE, "end_to_end"): lambda f, n: run(sqlite.end_to_end(sqlite.url(f), n)),
        (OUTPUT, "backlog"): lambda f, n: run(sqlite.answered(sqlite.url(f), n)),
        (MEMORY, "concurrent"): lambda _, n: run(sqlite.concurrent("memory://", n)),
        (MEMORY, "publish"): lambda _, n: run(sqlite.publish("memory://", n)),
        (MEMORY, "backlog"): lambda _, n: run(deliveries("memory://", 1, min(n, RETAINED))),
        (MEMORY, "end_to_end"): lambda _, n: run(sqlite.end_to_end("memory://", min(n, RETAINED))),
    }


def theirs(peer: Peer, work: str) -> Work:
    publishers = (sqlite.PUBLISHERS,) if work == "concurrent" else ()

    def run(folder: Path, messages: int) -> float:
        rate = peer.run(work, folder, messages, *publishers)
        assert isinstance(rate, float)
        return rate

    return run


def circles(found: Sequence[Peer]) -> dict[str, list[Peer]]:
    """Those whom the embedded bus is to beat: all that sync what they accept, and of these the libraries."""
    synced = [peer for peer in found if peer.module not in UNSYNCED]
    libraries = [peer for peer in synced if peer.module not in SERVERS]
    return {"beside all that sync": synced, "beside Python libraries that sync": libraries}


def judged(work: str, found: Sequence[Peer], bar: float | None) -> tuple[Figure, ...]:
    """The rate, once for each circle."""
    return tuple(
        Figure("rate", "msg/s", ratio_to=_named(circle, work), ratio_at_least=bar, among=among)
        for among, circle in circles(found).items()
    )


def _named(of: Sequence[Peer], work: str) -> tuple[str, ...]:
    return tuple(f"{peer.name}: {work}" for peer in of if work in peer.works)


def rate_of(name: str, work: str, run: Work, size: Size, figures: tuple[Figure, ...] = PLAIN) -> Subject:
    def measured() -> tuple[float, ...]:
        return (scaled(run, size.seconds, size.most),) * len(figures)

    return Subject(f"{name}: {work}", figures, measured, series=WORKS[work])


def latency_of(name: str, delays: Callable[[Path], Sequence[float]]) -> Subject:
    def measured() -> Timed:
        sys.setswitchinterval(RUNNING_INTERVAL)
        with bus_folder() as folder:
            return timed(delays(folder))

    return Subject(f"{name}: latency", timed_figures(), measured, series=WORKS["latency"])


def their_latency(peer: Peer, seconds: float) -> Subject:
    def delays(folder: Path) -> Sequence[float]:
        found = peer.run("latency", folder, RATE, seconds)
        assert isinstance(found, list)
        return found

    return latency_of(peer.name, delays)


def scenario(quick: bool) -> Scenario:
    size = Size(0.3, 10_000, 2.0) if quick else Size(2.0, 400_000, 10.0)
    found, subjects = peers(), list[Subject]()
    figures = {(SQLITE, work): judged(work, found, BAR.get(work)) for work in WORKS}
    figures[OUTPUT, "backlog"] = judged("backlog", found, None)  # shown beside them; the bar is for the same work
    for work in WORKS:
        for (name, of), run in ours().items():
            if of == work:
                subjects.append(rate_of(name, work, run, size, figures.get((name, work), PLAIN)))
        if work != "latency":
            subjects += [rate_of(p.name, work, theirs(p, work), size) for p in found if work in p.works]
    subjects.append(latency_of(SQLITE, lambda folder: stopped(two_processes(folder, RATE, size.paced))))
    subjects += [their_latency(peer, size.paced) for peer in found if "latency" in peer.works]
    return Scenario(tuple(subjects), rounds=3, notes=notes)
