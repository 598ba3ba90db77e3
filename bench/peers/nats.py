"""NATS JetStream with nats-py: a server in Go, behind a socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

import nats
from nats.errors import TimeoutError as NothingCame
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StorageType

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

NAME = "NATS JetStream"
DURABLE = (
    "file storage, sync_interval always: each message is synced by itself before its publish is acknowledged. Acks: "
    "the last of a batch waits for the server (ack_sync), which syncs the consumer's state up to 0.1 s later"
)
STREAM, SUBJECT = "bench", "orders"
Pull = JetStreamContext.PullSubscription


def VERSION() -> str:
    return f"nats-py {version('nats-py')}, nats-server {servers.version('nats-server').removeprefix('nats-server: v')}"


@asynccontextmanager
async def _stream(url: str) -> AsyncIterator[JetStreamContext]:
    async with await nats.connect(url) as connection:
        js = connection.jetstream()
        await js.add_stream(name=STREAM, subjects=[SUBJECT], storage=StorageType.FILE)
        yield js


async def _stored(js: JetStreamContext) -> int:
    return (await js.stream_info(STREAM)).state.messages


async def _subscribe(js: JetStreamContext) -> Pull:
    return await js.pull_subscribe(SUBJECT, durable="bench", config=ConsumerConfig(max_ack_pending=2 * BATCH))


async def _publish_all(js: JetStreamContext, whole: Sequence[Order]) -> None:
    """A batch at once on its way; each of its messages must be acknowledged."""
    for batch in batches(whole):
        acknowledged = [await js.publish_async(SUBJECT, encode(order)) for order in batch]
        await asyncio.gather(*acknowledged)


async def _consume(pull: Pull, handle: Callable[[bytes], Awaitable[None]], more: Callable[[], bool]) -> None:
    """What is there is fetched at once, up to a batch; else the first that comes."""
    while more():
        try:
            messages = await pull.fetch(BATCH, timeout=1.0)
        except NothingCame:
            continue
        for message in messages:
            await handle(message.data)
        for message in messages[:-1]:
            await message.ack()
        await messages[-1].ack_sync(timeout=PATIENCE)


async def _counted(pull: Pull, tally: Tally) -> float:
    """Consumes all of them; when the last was settled."""
    async with asyncio.timeout(PATIENCE):
        await _consume(pull, tally.handle, tally.more)
    ended = time.perf_counter()
    info = await pull.consumer_info()
    tally.check(left=(info.num_pending or 0) + (info.num_ack_pending or 0))
    return ended


@served(servers.nats)
async def concurrent(url: str, messages: int, publishers: int) -> float:
    """Tasks over one connection, each waiting for the acknowledgement of its message."""
    async with _stream(url) as js:
        rate = await in_tasks(partial(js.publish, SUBJECT, timeout=PATIENCE), messages, publishers)
        accepted(await _stored(js), messages // publishers * publishers)
        return rate


@served(servers.nats)
async def publish(url: str, messages: int) -> float:
    async with _stream(url) as js:
        whole = orders(messages)
        began = time.perf_counter()
        await _publish_all(js, whole)
        took = time.perf_counter() - began
        accepted(await _stored(js), messages)
        return messages / took


@served(servers.nats)
async def backlog(url: str, messages: int) -> float:
    async with _stream(url) as js:
        await _publish_all(js, orders(messages))
    began = time.perf_counter()
    async with _stream(url) as js:
        return messages / (await _counted(await _subscribe(js), Tally(messages)) - began)


@served(servers.nats)
async def end_to_end(url: str, messages: int) -> float:
    async with _stream(url) as js:
        consuming = asyncio.create_task(_counted(await _subscribe(js), Tally(messages)))
        whole = orders(messages)
        began = time.perf_counter()
        await _publish_all(js, whole)
        return messages / (await consuming - began)


async def _pace(url: str, rate: float, seconds: float) -> None:
    async with _stream(url) as js:
        await publish_paced(partial(js.publish, SUBJECT, timeout=PATIENCE), rate, seconds)


def _publisher(url: str, rate: float, seconds: float) -> None:
    asyncio.run(_pace(url, rate, seconds))


@served(servers.nats)
async def latency(url: str, rate: float, seconds: float) -> list[float]:
    """Two processes and the server."""
    delays = Delays(rate, seconds)
    async with _stream(url) as js:
        pull = await _subscribe(js)
        with beside(_publisher, url, rate, seconds):
            await _consume(pull, delays.handle, delays.more)
    return delays.values
