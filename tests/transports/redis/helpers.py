"""A bus of one's own on the session's server, or another; messages, and conditions with deadlines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import redis
from tests.servers import server

from tidings.kernel.message import Message, new_id
from tidings.kernel.transport import Event, Subscription
from tidings.transports.redis import Redis
from tidings.transports.redis.transport import RedisTransport


def namespace() -> str:
    return f"t{new_id().replace('-', '')[-12:]}"


@contextlib.asynccontextmanager
async def bus(url: str = "", told: list[Event] | None = None, **options: Any) -> AsyncIterator[RedisTransport]:
    """Open. ``url``: of another server than the session's."""
    options.setdefault("namespace", namespace())
    transport = Redis(server=url or server("redis").url, **options).transport()
    await transport.open((told if told is not None else []).append)
    try:
        yield transport
    finally:
        await transport.close()


def raw(url: str = "") -> Any:
    """A plain client: what a stranger has."""
    return redis.Redis.from_url(url or server("redis").url)


def group(pattern: str = "orders.placed", name: str = "shop.bill", **more: Any) -> Subscription:
    return Subscription(app="shop", pattern=pattern, group=name, **more)


def message(n: int = 0, topic: str = "orders.placed", **more: Any) -> Message[Any]:
    return Message(topic, body=b"%d" % n, id=f"m{n}", time=time.time(), source="shop", type=topic, **more)


def kinds(told: Sequence[Event]) -> list[str]:
    return [event.kind for event in told]
