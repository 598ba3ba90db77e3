"""``kafka://`` passes the suite, and holds under faults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from confluent_kafka.admin import AdminClient
from msgspec.structs import replace
from tests.servers import server

from tidings.testing.conformance import Bus, Conformance, Faults
from tidings.testing.conformance.buses import served

QUICK = "?session=1.5s&refresh=200ms&join=2s"  # a dead member is noticed soon, a new topic too; members have partitions


async def foreign(transport: Any, topic: str, body: bytes) -> None:
    """With the native client, as a stranger would."""
    transport.client.produce(transport.names.topic(topic), body)
    transport.client.flush(10)


@pytest.fixture
def kafka() -> Iterator[Bus]:
    """A bus in a namespace of its own, whose topics are deleted in the end."""
    bus = replace(served(server("kafka").url + QUICK), foreign=foreign, patience=2.0, lease=3.0)
    yield bus
    options: Any = bus.options(1.0)
    admin = AdminClient({"bootstrap.servers": options.servers})
    mine = [name for name in admin.list_topics(timeout=10).topics if name.startswith(f"{options.namespace}.")]
    for future in admin.delete_topics(mine).values() if mine else ():
        future.exception(10)


class TestKafka(Conformance):
    opt_outs: ClassVar[dict[str, str]] = {
        "test_only_what_is_not_extended_is_lost": "a partition is given up as a whole: a lost message of it reaches "
        "another member only when nothing of it is extended any more",
    }

    @pytest.fixture
    def bus(self, kafka: Bus) -> Bus:
        return kafka


@pytest.mark.slow
@pytest.mark.timeout(180)
class TestKafkaFaults(Faults):
    @pytest.fixture
    def bus(self, kafka: Bus) -> Bus:
        return kafka
