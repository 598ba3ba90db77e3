"""JetStream with nats-py: publishes in flight together, pull consumer, an ack for each message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

import nats
from msgspec import Struct
from nats.errors import TimeoutError as NothingCame
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StorageType

from ..peers._shared import BATCH, encode
from .works import GROUP, PATIENCE, Settled, Sink, background

NAME = "nats-py"


async def versions(url: str) -> str:
    async with await nats.connect(url) as connection:
        found = connection.connected_server_version
        server = f"{found.major}.{found.minor}.{found.patch}"
    return f"nats-py {version('nats-py')}, nats-server {server}"


class Publisher:
    def __init__(self, js: JetStreamContext, subject: str) -> None:
        self.js, self.subject = js, subject

    async def many(self, items: Sequence[Struct]) -> None:
        """All of them on their way at once; each must be acknowledged."""
        await asyncio.gather(*[await self.js.publish_async(self.subject, encode(item)) for item in items])

    async def one(self, item: Struct) -> None:
        await self.js.publish(self.subject, encode(item), timeout=PATIENCE)


class Raw:
    def __init__(self, url: str, place: str) -> None:
        self.url, self.place = url, place

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[JetStreamContext]:
        async with await nats.connect(self.url) as connection:
            yield connection.jetstream()

    async def create(self) -> None:
        async with self._connected() as js:
            await js.add_stream(name=self.place, subjects=[self.place], storage=StorageType.FILE)
            await js.add_consumer(self.place, ConsumerConfig(durable_name=GROUP, max_ack_pending=2 * BATCH))

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[Publisher]:
        async with self._connected() as js:
            yield Publisher(js, self.place)

    @asynccontextmanager
    async def consuming(self, sink: Sink) -> AsyncIterator[Settled]:
        async with self._connected() as js:
            pull = await js.pull_subscribe_bind(GROUP, self.place)
            async with background(self._consume(pull, sink)) as settled:
                yield settled

    async def _consume(self, pull: JetStreamContext.PullSubscription, sink: Sink) -> None:
        """As many as are said to wait: a fetch of more would wait for them. Of a batch the last ack is answered."""
        waiting = 0
        while sink.more():
            try:
                messages = await pull.fetch(min(waiting, BATCH) or 1, timeout=1.0)
            except NothingCame:
                continue
            for message in messages:
                await sink.handle(message.data)
            for message in messages[:-1]:
                await message.ack()
            await messages[-1].ack_sync(timeout=PATIENCE)
            waiting = messages[-1].metadata.num_pending

    async def left(self) -> int:
        async with self._connected() as js:
            info = await js.consumer_info(self.place, GROUP)
            return (info.num_pending or 0) + (info.num_ack_pending or 0)

    async def remove(self) -> None:
        async with self._connected() as js:
            await js.delete_stream(self.place)
