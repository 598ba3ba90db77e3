"""What the tests share: OpenTelemetry's own SDK, and buses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler

from tidings import App

PATIENCE = 30  # seconds

each_bus = pytest.mark.parametrize("scheme", ["memory", "sqlite"])


def url(scheme: str, folder: Path, name: str = "bus") -> str:
    return "memory://" if scheme == "memory" else f"sqlite:///{folder / name}.db"


class Spans:
    """A provider, and what was recorded by it."""

    def __init__(self, sampler: Sampler = DEFAULT_ON) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("tests")

    @property
    def ended(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.ended if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


async def until(true: Callable[[], Any]) -> None:
    """Wait for what must come."""
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def settled(app: App, group: str, **numbers: int) -> None:
    """Until these of the group's ``stats()`` are reached."""
    stats = app.stats()[group]
    await until(lambda: all(getattr(stats, name) >= number for name, number in numbers.items()))
