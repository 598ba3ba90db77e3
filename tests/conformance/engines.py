"""The engines on servers: a fresh bus on each, with settings that let a test be quick."""

from __future__ import annotations

import asyncio
from functools import cache

from msgspec.structs import replace
from tests.servers import server

from tidings.kernel.transport import Capabilities
from tidings.testing.conformance import Bus
from tidings.testing.conformance.buses import served

ENGINES = ("postgres", "nats", "rabbitmq", "redis", "kafka")
QUICK = {"kafka": "?session=1.5s&refresh=200ms&join=2s"}  # a dead member is noticed soon, a new topic too


def engine_bus(engine: str, url: str = "") -> Bus:
    """A bus in a namespace of its own, on the session's server or another."""
    bus = served((url or server(engine).url) + QUICK.get(engine, ""))
    return replace(bus, lease=3.0) if engine == "kafka" else bus


@cache
def capabilities(engine: str) -> Capabilities:
    """What it says of itself once it is open."""

    async def ask() -> Capabilities:
        transport = engine_bus(engine).options(30.0).transport()
        await transport.open(lambda event: None)
        try:
            return transport.capabilities
        finally:
            await transport.close()

    return asyncio.run(ask())
