"""A queue in a table with asyncpg: rows of a batch in one statement, claims with SKIP LOCKED, LISTEN while it is empty.

A claim deletes its rows in the transaction that is committed when all of them were handled. NOTIFY is part of each
insert, as its manual has it; transactions that notify are committed one after the other. A row has what every queue
needs: a name to tell a message by, its topic, and when it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from itertools import count
from typing import Any

import asyncpg
from msgspec import Struct

from ..peers._shared import BATCH, encode
from .works import Settled, Sink, background

NAME = "asyncpg, SKIP LOCKED"
CREATE = """
CREATE TABLE {0} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, created timestamptz NOT NULL DEFAULT now(),
                  topic text NOT NULL, message text NOT NULL, body bytea NOT NULL)
"""
INSERT = """
WITH added AS (
    INSERT INTO {0} (topic, message, body) SELECT 'orders', * FROM unnest($1::text[], $2::bytea[]) RETURNING 1
)
SELECT pg_notify('{0}', '') FROM added LIMIT 1
"""
CLAIM = """
DELETE FROM {0} WHERE id = ANY (ARRAY(SELECT id FROM {0} ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED)) RETURNING body
"""

names = (f"order-{n}" for n in count())


async def versions(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        server = await connection.fetchval("SHOW server_version")
    finally:
        await connection.close()
    return f"asyncpg {version('asyncpg')}, PostgreSQL {server}"


class Publisher:
    def __init__(self, pool: asyncpg.Pool, insert: str) -> None:
        self.pool, self.insert = pool, insert

    async def many(self, items: Sequence[Struct]) -> None:
        await self.pool.execute(self.insert, [next(names) for _ in items], [encode(item) for item in items])

    async def one(self, item: Struct) -> None:
        await self.pool.execute(self.insert, [next(names)], [encode(item)])


class Raw:
    def __init__(self, url: str, place: str) -> None:
        self.url, self.place = url, place

    async def _run(self, sql: str) -> Any:
        connection = await asyncpg.connect(self.url)
        try:
            return await connection.fetchval(sql.format(self.place))
        finally:
            await connection.close()

    async def create(self) -> None:
        await self._run(CREATE)

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[Publisher]:
        async with asyncpg.create_pool(self.url, min_size=1) as pool:
            yield Publisher(pool, INSERT.format(self.place))

    @asynccontextmanager
    async def consuming(self, sink: Sink) -> AsyncIterator[Settled]:
        """Two connections: notifications come to one of them, and are not lost with it when it is given back."""
        arrived, told = asyncio.Event(), lambda *_: arrived.set()
        async with asyncpg.create_pool(self.url, min_size=2) as pool, pool.acquire() as listening:
            await listening.add_listener(self.place, told)
            async with background(self._consume(pool, sink, arrived)) as settled:
                yield settled
            await listening.remove_listener(self.place, told)

    async def _consume(self, pool: asyncpg.Pool, sink: Sink, arrived: asyncio.Event) -> None:
        claim = CLAIM.format(self.place)
        async with pool.acquire() as connection:
            while sink.more():
                arrived.clear()
                async with connection.transaction():
                    rows = await connection.fetch(claim, BATCH)
                    for row in rows:
                        await sink.handle(row["body"])
                if not rows:
                    await self._wait(arrived)

    async def _wait(self, arrived: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(1.0):
                await arrived.wait()
        except TimeoutError:
            pass

    async def left(self) -> int:
        return int(await self._run("SELECT count(*) FROM {0}"))

    async def remove(self) -> None:
        await self._run("DROP TABLE {0}")
