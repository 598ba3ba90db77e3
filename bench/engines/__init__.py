"""The scenario ``engines``: on each broker Tidings by URL, the broker's own client doing the same work, and FastStream.

The servers are started once, with what they do by default about disks, and everybody uses the same ones. A rate counts
from the first message handled to the last settled; how many messages there are depends on the library, so that each
takes about two seconds.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Coroutine
from functools import partial
from typing import Any, NamedTuple

from msgspec.structs import replace

from .. import servers
from ..harness import Figure, Scenario, Subject, timed_figures
from ..histogram import Timed, timed
from ..pacer import RUNNING_INTERVAL
from . import works

RATE = 1000.0  # messages a second while delays are measured
PATIENCE = 90.0  # seconds a measurement may take: more than that of the works, which tell more
WORKS = {
    "publish": "publish in batches",
    "backlog": "consume a backlog",
    "end_to_end": "end to end",
    "latency": f"latency at {RATE:,.0f}/s",
}
OURS, RAW, EVENTS, FASTSTREAM = "Tidings", "raw", "raw, CloudEvents", "FastStream"


class Size(NamedTuple):
    """Thousands of messages for each work."""

    publish: int
    backlog: int
    end_to_end: int


class Engine(NamedTuple):
    """``bar``: of the raw client's rate, at least. ``consuming``: times FastStream's, at least. ``events``: the raw
    client is measured once more, with the attributes that ours sends: where they cost more than the message.
    """

    title: str
    client: str
    size: Size
    faststream: Size | None = None
    bar: float = 0.9
    consuming: float = 3.0
    events: bool = False


ENGINES = {
    "postgres": Engine("PostgreSQL", "asyncpg", Size(400, 400, 200)),
    "nats": Engine("NATS", "nats-py", Size(50, 60, 40), Size(25, 15, 10)),
    "rabbitmq": Engine("RabbitMQ", "aio-pika", Size(20, 20, 10), Size(9, 8, 5), consuming=1.7),
    "redis": Engine("Redis", "redis-py", Size(150, 300, 100), Size(30, 8, 6)),
    "kafka": Engine("Kafka", "confluent-kafka", Size(400, 600, 200), Size(10, 15, 7), bar=0.7, events=True),
}
DURABLE = {
    "postgres": "synchronous_commit on. The raw queue deletes a claim's rows and commits when they were handled",
    "nats": "file storage, synced every 2 minutes: what is accepted survives the process, not a power loss",
    "rabbitmq": "a quorum queue of one node, persistent, confirmed after its sync",
    "redis": "appendonly, appendfsync always: a sync for all that came in a turn of the server's loop",
    "kafka": "acks all of one replica, not synced: what is accepted survives the process, not a power loss. Offsets "
    "are committed for each batch; FastStream's by a timer, before its handlers are done",
}


def library(engine: str, name: str) -> type[works.Library]:
    """Imports the client; a missing one is an ``ImportError``."""
    if name == OURS:
        return importlib.import_module("bench.engines.ours").Tidings  # type: ignore[no-any-return]
    if name == FASTSTREAM:
        return importlib.import_module("bench.engines.faststream").BY_ENGINE[engine]  # type: ignore[no-any-return]
    client = importlib.import_module(f"bench.engines.{engine}")
    return client.RawEvents if name == EVENTS else client.Raw  # type: ignore[no-any-return]


def libraries(engine: str) -> tuple[str, ...]:
    found = ENGINES[engine]
    return (RAW, *((EVENTS,) if found.events else ()), OURS, *((FASTSTREAM,) if found.faststream else ()))


def titled(engine: str, name: str) -> str:
    """A library as it is called in the tables."""
    client = ENGINES[engine].client
    return {RAW: client, EVENTS: f"{client} with CloudEvents"}.get(name, name)


def size(engine: str, name: str, work: str) -> int:
    """Messages."""
    found = ENGINES[engine]
    of = found.faststream if name == FASTSTREAM and found.faststream else found.size
    thousands: int = getattr(of, work)
    return thousands * 1000


def named(engine: str, name: str, work: str) -> str:
    return f"{ENGINES[engine].title}, {titled(engine, name)}: {work}"


# -- measuring


def measured(engine: str, name: str, work: str, messages: int, figures: int) -> tuple[float, ...]:
    with servers.engine(engine) as url:
        at = library(engine, name)(url, works.place())
        return (asyncio.run(works.rate(work, at, messages)),) * figures


def delayed(engine: str, name: str, seconds: float) -> Timed:
    sys.setswitchinterval(RUNNING_INTERVAL)
    with servers.engine(engine) as url:
        at = library(engine, name)(url, works.place())
        return timed(asyncio.run(works.latency(at, RATE, seconds)))


# -- judging


def figures(engine: str, name: str, work: str) -> tuple[Figure, ...]:
    """The rate; ours twice, as it is judged beside two others."""
    if work == "latency":
        others = tuple(named(engine, other, work) for other in libraries(engine) if other != OURS and name == OURS)
        p50, p99, *rest = timed_figures()
        return replace(p50, ratio_to=others), replace(p99, ratio_to=others), *rest
    if name != OURS:
        return (Figure("rate", "msg/s"),)
    found = ENGINES[engine]
    bars = {RAW: found.bar, FASTSTREAM: found.consuming if work == "backlog" else None}
    return tuple(
        Figure(
            "rate",
            "msg/s",
            ratio_to=(named(engine, other, work),),
            ratio_at_least=bars.get(other),
            among=f"beside {titled(engine, other)}",
        )
        for other in libraries(engine)
        if other != OURS
    )


def subject(engine: str, name: str, work: str, quick: bool) -> Subject:
    of = figures(engine, name, work)
    if work == "latency":
        measure: Any = partial(delayed, engine, name, 0.5 if quick else 2.0)
    else:
        messages = size(engine, name, work) // (20 if quick else 1)
        measure = partial(measured, engine, name, work, messages, len(of))
    return Subject(named(engine, name, work), of, measure, series=f"{ENGINES[engine].title}, {WORKS[work]}")


def notes() -> str:
    """Which versions these were, and what is durable."""
    return "\n".join(f"{found.title}: {_versions(engine)}; {DURABLE[engine]}" for engine, found in ENGINES.items())


def _versions(engine: str) -> str:
    try:
        with servers.engine(engine) as url:
            asked: Coroutine[Any, Any, str] = importlib.import_module(f"bench.engines.{engine}").versions(url)
            return asyncio.run(asked)
    except Exception as error:
        return f"{type(error).__name__}: {error}".partition("\n")[0]


def scenario(quick: bool) -> Scenario:
    subjects = (
        subject(engine, name, work, quick) for engine in ENGINES for work in WORKS for name in libraries(engine)
    )
    around = partial(servers.shared, tuple(ENGINES))
    return Scenario(tuple(subjects), rounds=3, notes=notes, around=around, patience=PATIENCE)
