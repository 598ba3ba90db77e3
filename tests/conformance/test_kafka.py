"""``kafka://`` passes the suite, and holds under faults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from msgspec.structs import replace
from tests.conformance.engines import engine_bus

from tidings.testing.conformance import Bus, Conformance, Faults


async def foreign(transport: Any, topic: str, body: bytes) -> None:
    """With the native client, as a stranger would."""
    transport.client.produce(transport.names.topic(topic), body)
    transport.client.flush(10)


@pytest.fixture
def kafka() -> Iterator[Bus]:
    """A bus in a namespace of its own, whose topics are deleted in the end."""
    bus = replace(engine_bus("kafka"), foreign=foreign)
    yield bus
    options: Any = bus.options(1.0)
    admin = AdminClient({"bootstrap.servers": options.servers})
    mine = [name for name in admin.list_topics(timeout=10).topics if name.startswith(f"{options.namespace}.")]
    for future in admin.delete_topics(mine).values() if mine else ():
        future.exception(10)


class TestKafka(Conformance):
    @pytest.fixture
    def bus(self, kafka: Bus) -> Bus:
        return kafka


@pytest.mark.slow
@pytest.mark.timeout(180)
class TestKafkaFaults(Faults):
    @pytest.fixture
    def bus(self, kafka: Bus) -> Bus:
        return kafka
