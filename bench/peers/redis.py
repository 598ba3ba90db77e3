"""Redis Streams with redis-py's asyncio client: a server in C, behind a socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from redis.asyncio import Redis

from .. import servers
from ..payload import Order
from ._shared import (
    BATCH,
    PATIENCE,
    Delays,
    Tally,
    accepted,
    batches,
    beside,
    encode,
    in_tasks,
    orders,
    publish_paced,
    served,
)

NAME = "Redis Streams"
DURABLE = (
    "appendonly yes, appendfsync always: the server syncs once for all that came in a turn of its loop, before it "
    "answers; XREADGROUP and XACK too"
)
STREAM, GROUP = "orders", "bench"


def VERSION() -> str:
    server = servers.version("redis-server").split()[2].removeprefix("v=")
    return f"redis-py {version('redis')} (hiredis {version('hiredis')}), redis-server {server}"


@asynccontextmanager
async def _client(url: str, connections: int = 10) -> AsyncIterator[Redis]:
    """With a group that has read nothing yet."""
    client = Redis.from_url(url, max_connections=connections, protocol=2)
    try:
        if not await client.exists(STREAM):
            await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        yield client
    finally:
        await client.aclose()


async def _add(client: Redis, body: bytes) -> None:
    await client.xadd(STREAM, {"body": body})


async def _publish_all(client: Redis, whole: Sequence[Order]) -> None:
    """A pipeline for each batch: one round trip, one sync."""
    for batch in batches(whole):
        async with client.pipeline(transaction=False) as pipe:
            for order in batch:
                pipe.xadd(STREAM, {"body": encode(order)})
            await pipe.execute()


async def _read(client: Redis) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Some, or none within a second."""
    found: Any = await client.xreadgroup(GROUP, "one", {STREAM: ">"}, count=BATCH, block=1000)
    return found[0][1] if found else []


async def _consume(client: Redis, handle: Callable[[bytes], Awaitable[None]], more: Callable[[], bool]) -> None:
    while more():
        if entries := await _read(client):
            for _, fields in entries:
                await handle(fields[b"body"])
            await client.xack(STREAM, GROUP, *(entry for entry, _ in entries))


async def _counted(client: Redis, tally: Tally) -> float:
    """Consumes all of them; when the last was settled."""
    async with asyncio.timeout(PATIENCE):
        await _consume(client, tally.handle, tally.more)
    ended = time.perf_counter()
    group = (await client.xinfo_groups(STREAM))[0]
    tally.check(left=group["pending"] + group["lag"])
    return ended


@served(servers.redis)
async def concurrent(url: str, messages: int, publishers: int) -> float:
    """Tasks over one client, whose pool gives each a connection while it waits."""
    async with _client(url, publishers) as client:
        rate = await in_tasks(partial(_add, client), messages, publishers)
        accepted(await client.xlen(STREAM), messages // publishers * publishers)
        return rate


@served(servers.redis)
async def publish(url: str, messages: int) -> float:
    async with _client(url) as client:
        whole = orders(messages)
        began = time.perf_counter()
        await _publish_all(client, whole)
        took = time.perf_counter() - began
        accepted(await client.xlen(STREAM), messages)
        return messages / took


@served(servers.redis)
async def backlog(url: str, messages: int) -> float:
    async with _client(url) as client:
        await _publish_all(client, orders(messages))
    began = time.perf_counter()
    async with _client(url) as client:
        return messages / (await _counted(client, Tally(messages)) - began)


@served(servers.redis)
async def end_to_end(url: str, messages: int) -> float:
    async with _client(url) as client:
        consuming = asyncio.create_task(_counted(client, Tally(messages)))
        whole = orders(messages)
        began = time.perf_counter()
        await _publish_all(client, whole)
        return messages / (await consuming - began)


async def _pace(url: str, rate: float, seconds: float) -> None:
    async with _client(url, connections=1000) as client:
        await publish_paced(partial(_add, client), rate, seconds)


def _publisher(url: str, rate: float, seconds: float) -> None:
    asyncio.run(_pace(url, rate, seconds))


@served(servers.redis)
async def latency(url: str, rate: float, seconds: float) -> list[float]:
    """Two processes and the server."""
    delays = Delays(rate, seconds)
    async with _client(url) as client:
        with beside(_publisher, url, rate, seconds):
            await _consume(client, delays.handle, delays.more)
    return delays.values
