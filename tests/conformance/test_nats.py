"""``nats://`` passes the suite, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from tests.servers import server

from tidings.kernel.transport import Transport
from tidings.testing.conformance import Bus, Conformance
from tidings.testing.conformance.buses import served


async def foreign(transport: Transport, topic: str, body: bytes) -> None:
    """As a stranger would: no headers, no acknowledgement."""
    found: Any = transport
    await found.client.publish(found.prefix + topic, body)
    await found.client.flush()


async def drop(bus: Bus) -> None:
    """Its stream, and so all of it."""
    transport: Any = bus.options(30.0).transport()
    await transport.open(lambda event: None)
    await transport.ask("delete_stream", transport.name, missing=None)
    await transport.close()


@pytest.fixture
def nats_bus() -> Iterator[Bus]:
    bus = replace(served(server("nats").url), foreign=foreign)
    yield bus
    asyncio.run(drop(bus))


class TestNATS(Conformance):
    @pytest.fixture
    def bus(self, nats_bus: Bus) -> Bus:
        return nats_bus
