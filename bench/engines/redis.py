"""Streams with redis-py's asyncio client: a pipeline for a batch, a group, one XACK for what was read at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from msgspec import Struct
from redis.asyncio import BlockingConnectionPool, Redis

from ..peers._shared import BATCH, encode
from .works import GROUP, PATIENCE, Settled, Sink, background

NAME = "redis-py"
CONNECTIONS = 50  # each of those who publish at once has one, others wait


async def versions(url: str) -> str:
    async with Redis.from_url(url) as client:
        server = (await client.info("server"))["redis_version"]
    return f"redis-py {version('redis')}, hiredis {version('hiredis')}, redis-server {server}"


class Publisher:
    def __init__(self, client: Redis, stream: str) -> None:
        self.client, self.stream = client, stream

    async def many(self, items: Sequence[Struct]) -> None:
        """One round trip."""
        async with self.client.pipeline(transaction=False) as pipe:
            for item in items:
                pipe.xadd(self.stream, {"body": encode(item)})
            await pipe.execute()

    async def one(self, item: Struct) -> None:
        await self.client.xadd(self.stream, {"body": encode(item)})


class Raw:
    def __init__(self, url: str, place: str) -> None:
        self.url, self.place = url, place

    def _client(self) -> Redis:
        pool = BlockingConnectionPool.from_url(self.url, max_connections=CONNECTIONS, timeout=PATIENCE, protocol=2)
        return Redis.from_pool(pool)

    async def create(self) -> None:
        async with self._client() as client:
            await client.xgroup_create(self.place, GROUP, id="0", mkstream=True)

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[Publisher]:
        async with self._client() as client:
            yield Publisher(client, self.place)

    @asynccontextmanager
    async def consuming(self, sink: Sink) -> AsyncIterator[Settled]:
        async with self._client() as client, background(self._consume(client, sink)) as settled:
            yield settled

    async def _consume(self, client: Redis, sink: Sink) -> None:
        while sink.more():
            found: Any = await client.xreadgroup(GROUP, "one", {self.place: ">"}, count=BATCH, block=1000)
            entries: list[tuple[bytes, dict[bytes, bytes]]] = found[0][1] if found else []
            for _, fields in entries:
                await sink.handle(fields[b"body"])
            if entries:
                await client.xack(self.place, GROUP, *(entry for entry, _ in entries))

    async def left(self) -> int:
        async with self._client() as client:
            (group,) = await client.xinfo_groups(self.place)
            return int(group["pending"] + group["lag"])

    async def remove(self) -> None:
        async with self._client() as client:
            await client.delete(self.place)
