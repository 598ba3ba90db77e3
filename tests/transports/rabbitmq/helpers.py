"""What tests of RabbitMQ share: a fresh bus, the raw client, and the end of a namespace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiormq
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic, Exchange, Queue

from tidings.kernel.errors import TidingsError
from tidings.kernel.message import new_id
from tidings.kernel.transport import Event
from tidings.testing.conformance import Bus
from tidings.transports.rabbitmq import RabbitMQ
from tidings.transports.rabbitmq.transport import RabbitMQTransport
from tidings.urls import options_for


def bus_at(url: str, **more: Any) -> Bus:
    """A bus in a namespace of its own; ``more``: options of its URL."""
    given = "".join(f"&{name}={value}" for name, value in more.items())
    fresh = f"{url}?namespace=t{new_id().replace('-', '')[-12:]}{given}"
    leased: Callable[[float], str] = lambda lease: f"{fresh}&lease={lease}s"  # noqa: E731
    return Bus(options=lambda lease: options_for(leased(lease)), url=leased, foreign=foreign, lose=lose)


async def foreign(transport: Any, topic: str, body: bytes) -> None:
    """Publish as a stranger would."""
    async with raw(transport.options) as channel:
        await channel.basic_publish(body, exchange=transport.exchange, routing_key=topic)


async def lose(transport: Any) -> None:
    """End the connection that consumes."""
    await transport.client.close()


@asynccontextmanager
async def raw(options: RabbitMQ) -> AsyncIterator[aiormq.Channel]:
    """A channel of the plain client."""
    connection = await aiormq.connect(options.urls()[0])
    try:
        yield await connection.channel()  # type: ignore[misc]
    finally:
        await connection.close()


async def got(channel: aiormq.Channel, queue: str) -> DeliveredMessage:
    """The next message of a queue, acknowledged; fails when there is none."""
    message = await channel.basic_get(queue, no_ack=True)
    assert not isinstance(message.delivery, Basic.GetEmpty), f"{queue} is empty"
    return message


async def opened(
    bus: Bus, lease: float = 30.0, note: Callable[[Event], None] = lambda event: None
) -> RabbitMQTransport:
    transport: Any = bus.options(lease).transport()
    await transport.open(note)
    found: RabbitMQTransport = transport
    return found


async def cleared(bus: Bus) -> None:
    """Delete all that a namespace has on the server."""
    transport = await opened(bus)
    link, prefix = transport.link, transport.prefix
    with_groups = ["_dead", "_groups", "_sink", *(f"_delay.{n}" for n in range(link.levels))]
    await transport.registry.news(transport._note)
    for group in (name.replace("%", "+") for name in transport.known):
        with_groups += [group, f"_again.{group}", f"_suspect.{group}", f"_ticks.{group}", f"_ticks.{group}.born"]
    for name in [*with_groups, "_ticks.daily"]:
        await link.ask(Queue.Delete(0, prefix + name))
    levels = [f"_delay.{n}" for n in range(link.levels)]
    for name in [*(prefix + level for level in [*levels, "_due", "_late"]), link.reserved, link.exchange]:
        await link.ask(Exchange.Delete(0, name))
    await transport.close()


__all__ = ["TidingsError", "bus_at", "cleared", "foreign", "got", "opened", "raw"]
