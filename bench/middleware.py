"""What observing costs on the memory bus: the whole loop with each middleware, beside the same loop without.

Processor time, and both in one process, one after the other, for what is added is small beside what a process differs
from the next. Nothing is exported.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

from tidings import App, Topic
from tidings.middleware import Observer, instrument

from .harness import Figure, Scenario, Subject
from .payload import Order, order

UNSAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
PAIRS = 5  # of loops without and with it; the least of each counts


async def loop(messages: int, headers: dict[str, str], *observers: Observer) -> float:
    """Processor time per message from a backlog, in microseconds."""
    app, topic = App("bench", "memory://"), Topic("orders.placed", Order)

    @app.on(topic)
    async def noop(order: Order) -> None:
        return None

    instrument(app, *observers)
    async with app:
        stats = app.stats()["bench.noop"]
        app.pause("bench.noop")
        for _ in range(0, messages, 1000):
            await app.publish_many([topic(order(), headers=headers) for _ in range(1000)])
        gc.collect()
        began = time.process_time()
        app.pause("bench.noop", False)
        while stats.handled < messages:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        return (time.process_time() - began) / messages * 1e6


async def added(messages: int, headers: dict[str, str], observer: Callable[[], Observer]) -> Sequence[float]:
    without, observed = [], []
    for _ in range(PAIRS):
        without.append(await loop(messages, headers))
        observed.append(await loop(messages, headers, observer()))
    return min(observed), min(observed) - min(without)


def metrics() -> Observer:
    from tidings.middleware.metrics import Metrics

    return Metrics(None)


def log() -> Observer:
    from tidings.middleware.log import Log

    return Log()


def trace(sdk: bool = True, sample: float = 1.0, sampler: float | None = None) -> Observer:
    """``sampler``: the SDK decides, by a ratio."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    from tidings.middleware.trace import Trace

    chosen = None if sampler is None else ParentBasedTraceIdRatio(sampler)
    return Trace(TracerProvider(chosen) if sdk else None, sample=sample)


def scenario(quick: bool) -> Scenario:
    messages = 5_000 if quick else 60_000

    def subject(
        name: str, observer: Callable[[], Observer], headers: Any = None, budget: float | None = 1.0
    ) -> Subject:
        figures = Figure("per message", "µs"), Figure("added", "µs", at_most=budget)
        return Subject(name, figures, lambda: asyncio.run(added(messages, headers or {}, observer)))

    return Scenario(
        (
            subject("metrics", metrics),
            subject("log", log),
            subject("trace, no SDK", lambda: trace(sdk=False)),
            subject("trace, no SDK, a context came", lambda: trace(sdk=False), UNSAMPLED),
            subject("trace, sample=0", lambda: trace(sample=0.0)),
            subject("trace, came unsampled", trace, UNSAMPLED),
            subject("trace, dropped by the SDK's sampler", lambda: trace(sampler=0.0), budget=None),
            subject("trace, recorded", trace, budget=None),
        ),
        rounds=5,
    )
