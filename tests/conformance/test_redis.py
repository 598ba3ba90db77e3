"""``redis://`` passes the suite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis as raw
from msgspec.structs import replace
from tests.servers import server

from tidings.testing.conformance import Bus, Conformance, Faults
from tidings.testing.conformance.buses import served


async def foreign(transport: Any, topic: str, body: bytes) -> None:
    await transport.client.xadd(transport.key(topic), {"body": body})


@pytest.fixture
def bus() -> Iterator[Bus]:
    """A namespace of its own, gone when the test is."""
    made = replace(served(server("redis").url), foreign=foreign)
    yield made
    options: Any = made.options(1.0)
    with raw.Redis.from_url(server("redis").url) as client:
        for key in client.scan_iter(match=f"{{{options.namespace}}}:*", count=1000):
            client.delete(key)


class TestRedis(Conformance):
    """Its server is on this machine, so no test needs more time than usual."""


@pytest.mark.slow
@pytest.mark.timeout(240)
class TestRedisFaults(Faults):
    """Processes on one server."""
