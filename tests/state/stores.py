"""Buses that keep records, each by its URL: a fresh one every time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from tests.servers import server

from tidings.kernel.message import Message
from tidings.kernel.transport import Subscription
from tidings.testing.conformance.buses import served
from tidings.urls import options_for

STORES = ("memory", "sqlite", "postgres")
_fresh = count()


def url_of(kind: str, folder: Path) -> Any:
    """A URL or options; every process that opens it sees the same (memory: every transport of this one)."""
    if kind == "memory":
        return f"memory://store-{next(_fresh)}"
    if kind == "sqlite":
        return f"sqlite:///{folder / 'bus.db'}?lease=2s"
    return served(server("postgres").url).options(2.0)


@asynccontextmanager
async def opened(url: Any, notify: Callable[[Any], None] = lambda event: None) -> AsyncIterator[Any]:
    transport: Any = (options_for(url) if isinstance(url, str) else url).transport()
    await transport.open(notify)
    try:
        yield transport
    finally:
        await transport.close()


def message(topic: str, n: int, **more: Any) -> Message[Any]:
    return Message(topic, str(n).encode(), f"id-{topic}-{n}", time=1.0, source="test", **more)


async def consumer_of(transport: Any, topic: str = "things", group: str = "app.group") -> Any:
    return await transport.subscribe(Subscription(app="app", pattern=topic, group=group))
