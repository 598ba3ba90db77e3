"""A bus of one's own on the session's server, or another; messages, and conditions with deadlines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from tests.servers import server

from tidings.kernel.message import Message, new_id
from tidings.kernel.transport import Event, Subscription
from tidings.transports.nats import NATS
from tidings.transports.nats.transport import NATSTransport


def fresh_namespace() -> str:
    return f"t{new_id().replace('-', '')[-14:]}"


@contextlib.asynccontextmanager
async def bus(
    *, url: str = "", told: list[Event] | None = None, keep: bool = False, **options: Any
) -> AsyncIterator[NATSTransport]:
    """Open; its stream is deleted in the end, unless it shall be kept for others."""
    options.setdefault("namespace", fresh_namespace())
    query = "&".join(f"{name}={value}" for name, value in options.items())
    transport = NATS.from_url(f"{url or server('nats').url}?{query}").transport()
    await transport.open((told if told is not None else []).append)
    try:
        yield transport
    finally:
        if not keep:
            await transport.ask("delete_stream", transport.name, missing=None)
        await transport.close()


@contextlib.asynccontextmanager
async def raw(url: str = "") -> AsyncIterator[Any]:
    """The client alone, as its documentation says."""
    import nats

    client = await nats.connect(url or server("nats").url)
    try:
        yield client
    finally:
        await client.close()


def group(pattern: str = "orders.>", name: str | None = "shop.bill", **more: Any) -> Subscription:
    return Subscription(app="shop", pattern=pattern, group=name, **more)


def message(n: int = 0, topic: str = "orders.placed", **more: Any) -> Message[Any]:
    given = {"id": new_id(), "time": time.time(), "type": topic, "source": "test", **more}
    return Message(topic, body=b"%d" % n, **given)


async def in_flight(transport: NATSTransport, name: str = "shop~bill") -> int:
    return int((await transport.ask("consumer_info", transport.name, name)).num_ack_pending)
