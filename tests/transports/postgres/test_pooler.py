"""Behind PgBouncer in transaction mode, which shares sessions: found out by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from tests.servers import server
from tests.transports.consuming import nothing, settle, take
from tests.transports.postgres.helpers import bus, group, message, raw

from tidings import App, Service
from tidings.kernel.transport import Retry, Settlement
from tidings.transports.postgres import Postgres
from tidings.transports.postgres.connections import Connections


@pytest.fixture
def pooled(place: str) -> str:
    """The same place, through the pooler. ``place`` drops the schema."""
    pooler = server("pgbouncer")
    return f"{pooler.url}?namespace={place.partition('namespace=')[2]}"


@pytest.fixture
def straight(pooled: str) -> str:
    """The server that this pooler is in front of."""
    behind: Any = server("pgbouncer")
    return f"{behind.behind['postgres'].url}?{pooled.partition('?')[2]}"


async def test_it_is_found_out(pooled: str) -> None:
    async with bus(pooled) as end:
        assert end.connections.pooled
        assert end.listening is None


async def test_everything_works(pooled: str) -> None:
    async with bus(pooled) as end, bus(pooled) as other:
        consumer = await end.subscribe(group(ordered=True))
        live = await other.subscribe(group(name=None))  # type: ignore[arg-type]
        await asyncio.gather(*(other.publish([message(n, key=f"k{n % 5}")]) for n in range(200)))
        came = await take(consumer, 200)
        assert len(await take(live, 200)) == 200
        assert not await consumer.settle([Settlement(came[0], Retry(0.2, 1)), *map(Settlement, came[1:])])
        (again,) = await take(consumer, 1)
        assert (again.message.id, again.failures) == (came[0].message.id, 1)
        await settle(consumer, [again])
        await other.publish([message(999, deliver_at=end.clock.now() + 0.3)])
        await settle(consumer, await take(consumer, 1))
        assert [info.lag for info in await end.groups()] == [0]
        await nothing(consumer)
        await live.close()


def test_prepared_statements_may_not_be_kept_there() -> None:
    """Asked for all the same, they fail sooner or later; and the error says what to do."""
    connections = Connections(Postgres.from_url("postgresql://h/db"), lambda event: None)
    for error in (asyncpg.InvalidSQLStatementNameError("x"), asyncpg.DuplicatePreparedStatementError("x")):
        assert "statement_cache_size=0" in str(connections.translate(error))


async def test_with_the_server_beside_it(pooled: str, straight: str) -> None:
    """``direct``: NOTIFY wakes up, and the process is present."""
    async with (
        bus(pooled, direct=straight.partition("?")[0], poll="60s") as end,
        bus(straight) as other,
        raw(straight) as con,
    ):
        assert end.listening is not None
        consumer = await end.subscribe(group())
        began = asyncio.get_running_loop().time()
        for n in range(5):
            await other.publish([message(n)])
            await settle(consumer, await take(consumer, 1))
        assert asyncio.get_running_loop().time() - began < 3
        assert await con.fetchval("SELECT bool_and(present) FROM member")


LOCKS = """
SELECT count(*) FROM pg_locks JOIN pg_class c ON c.oid = classid
WHERE locktype = 'advisory' AND relnamespace = current_schema()::regnamespace
"""
"""Of this bus: others have theirs on the same server."""


async def test_no_session_lock_is_left_in_it(pooled: str, straight: str) -> None:
    """It would make a dead process look alive, and others wait for it."""
    async with bus(pooled) as end, raw(straight) as con:
        consumer = await end.subscribe(group())
        await end.publish([message(n) for n in range(20)])
        await settle(consumer, await take(consumer, 20))
        for _ in range(100):  # those of a transaction are gone with it
            if not await con.fetchval(LOCKS):
                break
            await asyncio.sleep(0.01)
        assert not await con.fetchval(LOCKS)
        assert not await con.fetchval("SELECT bool_or(present) FROM member")


async def test_requests(pooled: str) -> None:
    app = App("shop", pooled)
    quotes = Service("quotes.get", int, int)

    @app.answer(quotes)
    async def quote(n: int) -> int:
        return 2 * n

    async with app:
        assert await asyncio.gather(*(app.request(quotes, n) for n in range(20))) == [2 * n for n in range(20)]
