"""A quorum queue with aio-pika: confirmed publishes in flight together, prefetch, one ack for all before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage, AbstractQueue
from msgspec import Struct

from ..peers._shared import encode
from .works import Settled, Sink, until

NAME = "aio-pika"
PREFETCH = 1000


async def versions(url: str) -> str:
    async with await aio_pika.connect(url) as connection:
        assert connection.transport is not None
        server = connection.transport.connection.server_properties["version"]
    assert isinstance(server, str)
    return f"aio-pika {version('aio-pika')}, aiormq {version('aiormq')}, RabbitMQ {server}"


class Publisher:
    def __init__(self, exchange: AbstractExchange, queue: str) -> None:
        self.exchange, self.queue = exchange, queue

    async def many(self, items: Sequence[Struct]) -> None:
        await asyncio.gather(*map(self.one, items))

    async def one(self, item: Struct) -> None:
        message = aio_pika.Message(encode(item), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await self.exchange.publish(message, self.queue)


class Consumer:
    """Handles messages in the order in which they came, and acknowledges once for all that a turn of the loop had."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.last: AbstractIncomingMessage | None = None
        self.settling = set[asyncio.Task[None]]()

    async def take(self, message: AbstractIncomingMessage) -> None:
        await self.sink.handle(message.body)
        if self.last is None:
            self.settling.add(task := asyncio.create_task(self.settle()))
            task.add_done_callback(self.settling.discard)
        self.last = message

    async def settle(self) -> None:
        message, self.last = self.last, None
        assert message is not None
        await message.ack(multiple=True)

    def done(self) -> bool:
        return not self.sink.more() and not self.settling


class Raw:
    def __init__(self, url: str, place: str) -> None:
        self.url, self.place = url, place

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[AbstractChannel]:
        async with await aio_pika.connect_robust(self.url) as connection:
            yield await connection.channel()

    async def _queue(self, channel: AbstractChannel, *, passive: bool = True) -> AbstractQueue:
        quorum: dict[str, Any] = {"x-queue-type": "quorum"}
        return await channel.declare_queue(self.place, durable=True, passive=passive, arguments=quorum)

    async def create(self) -> None:
        async with self._channel() as channel:
            await self._queue(channel, passive=False)

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[Publisher]:
        async with self._channel() as channel:
            yield Publisher(channel.default_exchange, self.place)

    @asynccontextmanager
    async def consuming(self, sink: Sink) -> AsyncIterator[Settled]:
        consumer = Consumer(sink)
        async with self._channel() as channel:
            await channel.set_qos(prefetch_count=PREFETCH)
            queue = await self._queue(channel)
            await queue.consume(consumer.take)
            yield lambda: until(consumer.done, sink)

    async def left(self) -> int:
        """Only what waits: who consumed must have gone, and what it left unsettled waits again."""
        async with self._channel() as channel:
            return (await self._queue(channel)).declaration_result.message_count or 0

    async def remove(self) -> None:
        async with self._channel() as channel:
            await channel.queue_delete(self.place)
