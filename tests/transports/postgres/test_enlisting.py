"""Publishing in a transaction of the user's own: delivered after its commit, or never; and it holds back nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.orm import Session
from tests.transports.consuming import nothing, take, until
from tests.transports.postgres.helpers import bus, group, message

from tidings import App, Topic
from tidings.kernel.errors import InvalidOption, PayloadRefused, TooLarge
from tidings.kernel.transport import Settlement

placed = Topic("orders.placed", dict[str, Any])


def url(place: str) -> str:
    return place.partition("?")[0]


async def with_asyncpg(place: str, publish: Any, bus: Any, commit: bool) -> None:
    con = await asyncpg.connect(url(place))
    transaction = con.transaction()
    await transaction.start()
    await bus.publish_in(con, *publish)
    await (transaction.commit() if commit else transaction.rollback())
    await con.close()


async def with_pool(place: str, publish: Any, bus: Any, commit: bool) -> None:
    """A connection of a pool is a proxy."""
    async with asyncpg.create_pool(url(place), min_size=1, max_size=1) as pool, pool.acquire() as con:
        transaction = con.transaction()
        await transaction.start()
        await bus.publish_in(con, *publish)
        await (transaction.commit() if commit else transaction.rollback())


async def with_psycopg(place: str, publish: Any, bus: Any, commit: bool) -> None:
    async with await psycopg.AsyncConnection.connect(url(place)) as con:
        await bus.publish_in(con, *publish)
        await (con.commit() if commit else con.rollback())


async def with_psycopg_sync(place: str, publish: Any, bus: Any, commit: bool) -> None:
    def work() -> None:
        with psycopg.connect(url(place)) as con:
            bus.publish_in_sync(con, *publish)
            con.commit() if commit else con.rollback()

    await asyncio.to_thread(work)


def dialect(place: str, driver: str) -> str:
    return url(place).replace("postgresql://", f"postgresql+{driver}://")


async def with_connection(place: str, publish: Any, bus: Any, commit: bool) -> None:
    def work() -> None:
        engine = sqlalchemy.create_engine(dialect(place, "psycopg"))
        with engine.connect() as con:
            bus.publish_in_sync(con, *publish)
            con.commit() if commit else con.rollback()
        engine.dispose()

    await asyncio.to_thread(work)


async def with_session(place: str, publish: Any, bus: Any, commit: bool) -> None:
    def work() -> None:
        engine = sqlalchemy.create_engine(dialect(place, "psycopg"))
        with Session(engine) as session:
            bus.publish_in_sync(session, *publish)
            session.commit() if commit else session.rollback()
        engine.dispose()

    await asyncio.to_thread(work)


async def with_async_connection(place: str, publish: Any, bus: Any, commit: bool, driver: str = "psycopg") -> None:
    pytest.importorskip("greenlet", reason="SQLAlchemy's asyncio needs greenlet")
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(dialect(place, driver))
    async with engine.connect() as con:
        await bus.publish_in(con, *publish)
        await (con.commit() if commit else con.rollback())
    await engine.dispose()


async def with_async_connection_of_asyncpg(place: str, publish: Any, bus: Any, commit: bool) -> None:
    await with_async_connection(place, publish, bus, commit, "asyncpg")


async def with_async_session(place: str, publish: Any, bus: Any, commit: bool) -> None:
    pytest.importorskip("greenlet", reason="SQLAlchemy's asyncio needs greenlet")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    engine = create_async_engine(dialect(place, "asyncpg"))
    async with AsyncSession(engine) as session:
        await bus.publish_in(session, *publish)
        await (session.commit() if commit else session.rollback())
    await engine.dispose()


WAYS: list[Callable[..., Any]] = [
    with_asyncpg, with_pool, with_psycopg, with_psycopg_sync, with_connection, with_session,
    with_async_connection, with_async_connection_of_asyncpg, with_async_session,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.removeprefix("with_"))
async def test_with_the_commit_or_never(place: str, way: Any) -> None:
    drafts = [placed({"n": 7, "text": "☃ %s :x $1"}, key="k", headers={"a": "ü"}), message(8, "orders.paid")]
    async with bus(place) as end:
        consumer = await end.subscribe(group())
        await way(place, [placed({"n": 1})], end, False)
        await way(place, drafts, end, True)
        first, second = await take(consumer, 2)
        assert first.message.body == b'{"n":7,"text":"\xe2\x98\x83 %s :x $1"}'
        assert (first.message.key, first.message.header("a"), first.message.topic) == ("k", "ü", "orders.placed")
        assert first.message.id
        assert first.message.source == end.options.namespace
        assert second.message.id == "m8"
        await consumer.settle([Settlement(first), Settlement(second)])
        await nothing(consumer)


async def test_through_an_app(place: str) -> None:
    app, seen = App("shop", place), list[Any]()

    @app.on(placed)
    async def bill(order: dict[str, Any]) -> None:
        seen.append(order)

    async with app:
        con = await asyncpg.connect(url(place))
        async with con.transaction():
            await con.execute("CREATE TEMP TABLE orders(id int)")
            await con.execute("INSERT INTO orders VALUES (7)")
            await app.publish_in(con, placed({"id": 7}))
        await con.close()
        await until(lambda: bool(seen))
    assert seen == [{"id": 7}]


async def test_a_long_transaction_holds_back_nobody(place: str) -> None:
    """Not even one that has published before everybody else; and what it published is not skipped."""
    async with bus(place) as end:
        consumer = await end.subscribe(group())
        con = await asyncpg.connect(url(place))
        transaction = con.transaction()
        await transaction.start()
        await end.publish_in(con, message(1))
        for n in range(2, 5):
            await end.publish([message(n)])
        early = await take(consumer, 3, within=2)
        assert [delivery.message.id for delivery in early] == ["m2", "m3", "m4"]
        await end.publish([message(5, "orders.new")])  # a new channel, too
        await take(consumer, 1, within=2)
        await transaction.commit()
        (late,) = await take(consumer, 1, within=2)
        assert late.message.id == "m1"
        await con.close()


async def test_its_own_order_is_kept(place: str) -> None:
    async with bus(place) as end:
        consumer = await end.subscribe(group())
        con = await asyncpg.connect(url(place))
        for start in (0, 50):
            async with con.transaction():
                for n in range(start, start + 50):
                    await end.publish_in(con, message(n))
        came = await take(consumer, 100)
        assert [delivery.message.id for delivery in came] == [f"m{n}" for n in range(100)]
        await con.close()


async def test_delays_and_many(place: str) -> None:
    async with bus(place) as end:
        consumer = await end.subscribe(group())
        con = await asyncpg.connect(url(place))
        async with con.transaction():
            await end.publish_in(con, placed({"n": 1}, delay=0.5), *(message(n) for n in range(2500)))
        came = await take(consumer, 2501)
        assert came[-1].message.body == b'{"n":1}'
        assert [delivery.message.id for delivery in came[:-1]] == [f"m{n}" for n in range(2500)]
        await con.close()


async def test_what_is_refused(place: str) -> None:
    async with bus(place) as end:
        con = await asyncpg.connect(url(place))
        with pytest.raises(InvalidOption, match="needs an open transaction"):
            await end.publish_in(con, message())
        async with con.transaction():
            with pytest.raises(TooLarge):
                await end.publish_in(con, message(), _large())
            with pytest.raises(PayloadRefused):
                await end.publish_in(con, placed({"x": float("nan")}))
        with pytest.raises(InvalidOption, match="publish_in"):
            end.publish_in_sync(con, message())
        with pytest.raises(InvalidOption, match="publish_in_sync"):
            await end.publish_in(object(), message())
        await con.close()


def _large() -> Any:
    from msgspec.structs import replace

    return replace(message(), body=b"x" * (16 * 2**20 - 16 * 1024 + 1))
