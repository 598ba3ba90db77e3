"""A fresh namespace for each test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests.servers import server
from tests.transports.rabbitmq.helpers import bus_at, cleared

from tidings.testing.conformance import Bus


@pytest.fixture
def bus() -> Iterator[Bus]:
    fresh = bus_at(server("rabbitmq").url)
    yield fresh
    asyncio.run(cleared(fresh))
