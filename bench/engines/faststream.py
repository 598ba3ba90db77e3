"""FastStream on the same brokers: its documented subscribers, an acknowledgement for each message, logging off.

The places are those of the raw clients, which also tell what is left. Its handlers get the same msgspec types.
"""

from __future__ import annotations

import asyncio
import importlib
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, ClassVar

from fast_depends.msgspec import MsgSpecSerializer
from msgspec import Struct

from ..peers._shared import BATCH
from .works import GROUP, Library, Settled, Sink, until

NAME = "FastStream"
WORKERS = 16


async def versions(url: str) -> str:
    return f"faststream {version('faststream')}, fast-depends {version('fast-depends')}"


class FastStream:
    """With one broker. Also its own publisher."""

    engine: ClassVar[str]

    def __init__(self, url: str, place: str) -> None:
        self.url, self.place = url, place
        self.native: Library = importlib.import_module(f"bench.engines.{self.engine}").Raw(url, place)
        self.broker = self.connected()

    @abstractmethod
    def connected(self) -> Any:
        """The broker, not yet open."""

    @abstractmethod
    def subscriber(self) -> Any:
        """What a handler is decorated with."""

    async def create(self) -> None:
        await self.native.create()

    async def left(self) -> int:
        return await self.native.left()

    async def remove(self) -> None:
        await self.native.remove()

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[FastStream]:
        """With a broker of its own, as a process that only publishes has."""
        publisher = type(self)(self.url, self.place)
        async with publisher.broker:
            yield publisher

    async def many(self, items: Sequence[Struct]) -> None:
        await asyncio.gather(*map(self.one, items))

    @abstractmethod
    async def one(self, item: Struct) -> None: ...

    @asynccontextmanager
    async def consuming(self, sink: Sink) -> AsyncIterator[Settled]:
        async def handle(item: Any) -> None:
            sink.see(item)

        handle.__annotations__["item"] = sink.payload
        self.subscriber()(handle)
        async with self.broker:
            await self.broker.start()
            yield lambda: until(lambda: not sink.more(), sink)
        self.broker = self.connected()


class NATS(FastStream):
    """A pull subscriber, whose batch of messages is handled by a task each. A push subscriber does half as much again
    or more, but FastStream itself advises against a durable one.
    """

    engine = "nats"

    def connected(self) -> Any:
        from faststream.nats import NatsBroker

        return NatsBroker(self.url, serializer=MsgSpecSerializer(), logger=None)

    def subscriber(self) -> Any:
        from faststream.nats import JStream, PullSub

        stream, pull = JStream(self.place, declare=False), PullSub(batch_size=BATCH, timeout=1.0)
        return self.broker.subscriber(self.place, stream=stream, durable=GROUP, pull_sub=pull)

    async def one(self, item: Struct) -> None:
        await self.broker.publish(item, self.place, stream=self.place)


class RabbitMQ(FastStream):
    """A consumer with prefetch."""

    engine = "rabbitmq"

    def connected(self) -> Any:
        from faststream.rabbit import Channel, RabbitBroker

        channel = Channel(prefetch_count=BATCH)
        return RabbitBroker(self.url, serializer=MsgSpecSerializer(), logger=None, default_channel=channel)

    def subscriber(self) -> Any:
        from faststream.rabbit import RabbitQueue

        return self.broker.subscriber(RabbitQueue(self.place, declare=False))

    async def one(self, item: Struct) -> None:
        await self.broker.publish(item, self.place, persist=True)


class Redis(FastStream):
    """A stream with a group, read up to 1,000 at a time, by as many workers as Tidings has by default: each waits for
    its XACK. Its messages are in an envelope of its own.
    """

    engine = "redis"

    def connected(self) -> Any:
        from faststream.redis import RedisBroker

        return RedisBroker(self.url, serializer=MsgSpecSerializer(), logger=None, max_connections=50)  # type: ignore[arg-type]

    def subscriber(self) -> Any:
        from faststream.redis import StreamSub

        stream = StreamSub(self.place, group=GROUP, consumer="one", max_records=BATCH, polling_interval=1000)
        return self.broker.subscriber(stream=stream, max_workers=WORKERS)

    async def many(self, items: Sequence[Struct]) -> None:
        client = await self.broker.connect()
        async with client.pipeline(transaction=False) as pipe:
            for item in items:
                await self.broker.publish(item, stream=self.place, pipeline=pipe)
            await pipe.execute()

    async def one(self, item: Struct) -> None:
        await self.broker.publish(item, stream=self.place)


class Kafka(FastStream):
    """Confluent's client; its default, ACK_FIRST, is the fastest: offsets are committed by a timer, whatever became of
    the messages.
    """

    engine = "kafka"

    def connected(self) -> Any:
        from faststream.confluent import KafkaBroker

        from .kafka import address

        return KafkaBroker(address(self.url), serializer=MsgSpecSerializer(), logger=None)

    def subscriber(self) -> Any:
        group = f"{self.place}.{GROUP}"
        return self.broker.subscriber(self.place, group_id=group, auto_offset_reset="earliest")

    async def many(self, items: Sequence[Struct]) -> None:
        await self.broker.publish_batch(*items, topic=self.place)

    async def one(self, item: Struct) -> None:
        await self.broker.publish(item, self.place)


BY_ENGINE: dict[str, type[FastStream]] = {kind.engine: kind for kind in (NATS, RabbitMQ, Redis, Kafka)}
