"""``amqp://`` passes the suite."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests.servers import server
from tests.transports.rabbitmq.helpers import bus_at, cleared

from tidings.testing.conformance import Bus, Conformance, Faults


@pytest.fixture
def bus() -> Iterator[Bus]:
    fresh = bus_at(server("rabbitmq").url)
    yield fresh
    asyncio.run(cleared(fresh))


class TestRabbitMQ(Conformance):
    """With quorum queues: everything but priorities."""


@pytest.mark.slow
class TestRabbitMQClassic(Conformance):
    """With classic queues, which have priorities."""

    @pytest.fixture
    def bus(self) -> Iterator[Bus]:
        fresh = bus_at(server("rabbitmq").url, kind="classic")
        yield fresh
        asyncio.run(cleared(fresh))


@pytest.mark.slow
@pytest.mark.timeout(120)
class TestRabbitMQFaults(Faults):
    """Members are lost when the broker misses their heartbeats, which come once a second at most."""

    lease = 2.0
