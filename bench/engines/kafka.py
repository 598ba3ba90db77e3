"""confluent-kafka in its own synchronous way: produce and flush, poll what is there, handle, one commit for it.

Theory of operation. Its asyncio clients do less (headers, batches), so this is the classic one: the producer in the
calling thread, the consumer's loop in a thread of its own, with handlers called in it and no event loop between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from itertools import count
from threading import Event
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from msgspec import Struct
from tests.servers.java import Kafka

from ..peers._shared import BATCH, encode
from .works import GROUP, PATIENCE, Settled, Sink, background

NAME = "confluent-kafka"
PARTITIONS = 4
names = (f"order-{n}" for n in count())
COORDINATOR_AWAY = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)


async def versions(url: str) -> str:
    broker = next(Kafka.jars().glob("kafka_*.jar"), None)
    return f"confluent-kafka {version('confluent-kafka')}, {broker.stem if broker else 'a broker that runs already'}"


def address(url: str) -> str:
    return url.partition("://")[2]


class Publisher:
    """Messages alone leave at once; those of a batch wait for one another, which is the default (``linger.ms``)."""

    def __init__(self, at: dict[str, str | int | float | bool], topic: str) -> None:
        self.at, self.topic = at, topic
        self.error: Any = None

    @cached_property
    def together(self) -> Producer:
        return Producer({**self.at, "enable.idempotence": True})

    @cached_property
    def alone(self) -> Producer:
        return Producer({**self.at, "enable.idempotence": True, "linger.ms": 0})

    def _told(self, error: Any, message: Message) -> None:
        self.error = self.error or error

    async def many(self, items: Sequence[Struct]) -> None:
        for item in items:
            self.together.produce(self.topic, encode(item), on_delivery=self._told)
        self.flush(self.together)

    async def one(self, item: Struct) -> None:
        """What became of it shows when the publisher is closed."""
        self.alone.produce(self.topic, encode(item), on_delivery=self._told)
        self.alone.poll(0)

    def flush(self, producer: Producer) -> None:
        if producer.flush(PATIENCE) or self.error:
            raise RuntimeError(f"not every message was accepted: {self.error}")


class EventPublisher(Publisher):
    """Its records are CloudEvents of the binary mode, as Tidings' are."""

    def _headers(self) -> list[tuple[str, str | bytes | None]]:
        return [
            ("ce_specversion", b"1.0"),
            ("ce_id", next(names).encode()),
            ("ce_source", b"bench"),
            ("ce_type", b"orders.placed"),
            ("ce_time", datetime.now(UTC).isoformat().encode()),
            ("content-type", b"application/json"),
        ]

    async def many(self, items: Sequence[Struct]) -> None:
        for item in items:
            self.together.produce(self.topic, encode(item), headers=self._headers(), on_delivery=self._told)
        self.flush(self.together)

    async def one(self, item: Struct) -> None:
        self.alone.produce(self.topic, encode(item), headers=self._headers(), on_delivery=self._told)
        self.alone.poll(0)


class Raw:
    publisher: type[Publisher] = Publisher

    def __init__(self, url: str, place: str) -> None:
        self.url, self.place = url, place
        self.at: dict[str, str | int | float | bool] = {"bootstrap.servers": address(url)}

    async def create(self) -> None:
        admin = AdminClient(self.at)  # must outlive its futures
        admin.create_topics([NewTopic(self.place, PARTITIONS)])[self.place].result(PATIENCE)

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[Publisher]:
        publisher = self.publisher(self.at, self.place)
        yield publisher
        if "alone" in vars(publisher):
            publisher.flush(publisher.alone)

    def _consumer(self) -> Consumer:
        from_first = {"auto.offset.reset": "earliest", "enable.auto.commit": False}
        return Consumer({**self.at, **from_first, "group.id": f"{self.place}.{GROUP}"})

    @asynccontextmanager
    async def consuming(self, sink: Sink) -> AsyncIterator[Settled]:
        """Ready when it has its partitions."""
        consumer, assigned, over = self._consumer(), Event(), Event()
        consumer.subscribe([self.place], on_assign=lambda *_: assigned.set())
        try:
            async with background(asyncio.to_thread(self._consume, consumer, sink, over)) as settled:
                if not await asyncio.to_thread(assigned.wait, PATIENCE):
                    raise TimeoutError("no partition was assigned")
                try:
                    yield settled
                finally:
                    over.set()
        finally:
            consumer.close()

    def _consume(self, consumer: Consumer, sink: Sink, over: Event) -> None:
        """A first message is waited for, and what has come with it is taken without waiting: ``consume`` alone waits
        until it has as many as it may take. The last commit is answered.
        """
        while sink.more() and not over.is_set():
            if (first := consumer.poll(0.1)) is None:
                continue
            for message in (first, *consumer.consume(BATCH - 1, 0)):
                if error := message.error():
                    raise KafkaException(error)
                sink.take(message.value() or b"")
            if sink.more():
                consumer.commit()
            else:
                with suppress(KafkaException):  # the commits before it had all, which ``left`` will tell
                    consumer.commit(asynchronous=False)

    async def left(self) -> int:
        consumer = self._consumer()
        try:
            committed = await self._committed(consumer)
            ends = [consumer.get_watermark_offsets(part, PATIENCE)[1] for part in committed]
        finally:
            consumer.close()
        return sum(end - max(0, part.offset) for end, part in zip(ends, committed, strict=True))

    async def _committed(self, consumer: Consumer) -> list[TopicPartition]:
        """A group's coordinator may have to be found first, and that of the first group of a broker to be made."""
        partitions = [TopicPartition(self.place, number) for number in range(PARTITIONS)]
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return consumer.committed(partitions, PATIENCE)
                except KafkaException as error:
                    if error.args[0].code() not in COORDINATOR_AWAY:
                        raise
                await asyncio.sleep(0.1)

    async def remove(self) -> None:
        admin = AdminClient(self.at)
        admin.delete_topics([self.place])[self.place].result(PATIENCE)


class RawEvents(Raw):
    """The same, with the attributes that make a record a CloudEvent."""

    publisher = EventPublisher
