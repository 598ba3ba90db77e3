"""A bus of one's own on the session's server, or another; messages, and what comes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from tests.servers import server

from tidings.kernel.message import Message, new_id
from tidings.kernel.transport import Event, Subscription
from tidings.transports.kafka import Kafka
from tidings.transports.kafka.consumers import GroupConsumer
from tidings.transports.kafka.transport import KafkaTransport


@contextlib.asynccontextmanager
async def bus(
    *, url: str = "", told: list[Event] | None = None, client: dict[str, str] | None = None, **options: Any
) -> AsyncIterator[KafkaTransport]:
    """Open; its topics are deleted in the end."""
    options.setdefault("namespace", f"t{new_id().replace('-', '')[-14:]}")
    options = {"session": "1.5s", "refresh": "200ms", **options}
    query = "&".join(f"{name}={value}" for name, value in options.items())
    kafka = Kafka.from_url(f"{url or server('kafka').url}?{query}")
    transport = KafkaTransport(
        Kafka(**{n: getattr(kafka, n) for n in kafka.__struct_fields__} | {"client": client or {}})
    )
    await transport.open((told if told is not None else []).append)
    try:
        yield transport
    finally:
        with contextlib.suppress(Exception):  # awaited: a client must not be collected in a thread of its own
            gone = transport.admin.delete_topics(list(transport.partitions))
            await asyncio.gather(*map(asyncio.wrap_future, gone.values()), return_exceptions=True)
        await transport.close()


def message(topic: str = "orders.placed", body: bytes = b"{}", **fields: Any) -> Message[Any]:
    return Message(
        topic, body=body, **{"id": new_id(), "time": time.time(), "type": topic, "source": "tests", **fields}
    )


async def member(transport: KafkaTransport, group: str = "shop.bill", pattern: str = "orders.placed") -> GroupConsumer:
    consumer = await transport.subscribe(Subscription(app="tests", pattern=pattern, group=group))
    assert isinstance(consumer, GroupConsumer)
    return consumer
