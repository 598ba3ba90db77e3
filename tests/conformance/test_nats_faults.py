"""``nats://`` under faults."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests.conformance.test_nats import drop
from tests.servers import server

from tidings.testing.conformance import Bus, Faults
from tidings.testing.conformance.buses import served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


class TestNATSFaults(Faults):
    @pytest.fixture
    def bus(self) -> Iterator[Bus]:
        bus = served(server("nats").url)
        yield bus
        asyncio.run(drop(bus))
