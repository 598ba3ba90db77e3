"""Small helpers: a bus in a schema of its own, messages, deliveries with deadlines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg

from tidings.kernel.message import Message
from tidings.kernel.transport import Event, Subscription
from tidings.transports.postgres import Postgres
from tidings.transports.postgres.transport import PostgresTransport

STORE = """
SELECT store(ARRAY[$1::int], NULL, NULL, NULL,
    array_fill(1, ARRAY[$3::int]), array_fill(octet_length($2::bytea), ARRAY[$3::int]), $2, '{}')
"""
"""A channel gets a record, several times over."""


@contextlib.asynccontextmanager
async def bus(place: str, told: list[Event] | None = None, **options: Any) -> AsyncIterator[PostgresTransport]:
    """One more end of the bus at ``place``, a URL with its namespace."""
    extra = "".join(f"&{name}={value}" for name, value in options.items())
    transport = Postgres.from_url(place + extra).transport()
    await transport.open((told if told is not None else []).append)
    try:
        yield transport
    finally:
        await transport.close()


@contextlib.asynccontextmanager
async def raw(place: str) -> AsyncIterator[Any]:
    """A connection of the raw client, in the schema of the bus."""
    url, _, query = place.partition("?")
    con = await asyncpg.connect(url)
    await con.execute(f"SET search_path = {query.partition('namespace=')[2].partition('&')[0]}")
    try:
        yield con
    finally:
        await con.close()


def group(pattern: str = "orders.>", name: str = "shop.bill", **more: Any) -> Subscription:
    return Subscription(app="shop", pattern=pattern, group=name, **more)


def message(n: int = 0, topic: str = "orders.placed", **more: Any) -> Message[Any]:
    return Message(topic, body=b"%d" % n, id=f"m{n}", time=time.time(), **more)
