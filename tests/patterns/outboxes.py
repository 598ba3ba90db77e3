"""Databases of a user's with an outbox, each way to write to them, and an app that relays: shared by its tests."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import aiosqlite
import apsw
import asyncpg
import psycopg
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from tests.servers import server

from tidings import App, Message, Topic
from tidings.kernel.message import new_id
from tidings.outbox import Outbox

placed = Topic("orders.placed", dict[str, Any])

Drafts = Sequence[Message[Any]]
Way = Callable[[str, Outbox, Drafts, bool], Awaitable[None]]

THING = "INSERT INTO things VALUES (1)"


# -- places


def in_sqlite(folder: Path) -> str:
    """A database with a table of the user's; its URL."""
    with sqlite3.connect(folder / "app.db") as con:
        con.execute("PRAGMA journal_mode = WAL")
        con.execute("CREATE TABLE things(n INTEGER)")
    con.close()
    return f"sqlite:///{folder / 'app.db'}"


@asynccontextmanager
async def in_postgres() -> AsyncIterator[str]:
    """A database of its own with a table of the user's; its URL."""
    url, name = server("postgres").url, f"t{new_id().replace('-', '')[-12:]}"
    con = await asyncpg.connect(url)
    await con.execute(f"CREATE DATABASE {name}")
    place = url.rpartition("/")[0] + f"/{name}"
    try:
        mine = await asyncpg.connect(place)
        await mine.execute("CREATE TABLE things(n INTEGER)")
        await mine.close()
        yield place
    finally:
        await con.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await con.close()


def connected(place: str) -> Any:
    """A connection to it, of the plainest kind; sqlite3's and psycopg's are much alike."""
    return sqlite3.connect(place.removeprefix("sqlite:///")) if place.startswith("sqlite") else psycopg.connect(place)


@asynccontextmanager
async def place_in(kind: str, folder: Path) -> AsyncIterator[str]:
    """``in_sqlite`` or ``in_postgres``."""
    if kind == "sqlite":
        yield in_sqlite(folder)
    else:
        async with in_postgres() as place:
            yield place


# -- ways: each writes to the user's own table and to the outbox, in one transaction


async def by_sqlite3(place: str, outbox: Outbox, drafts: Drafts, commit: bool) -> None:
    con = sqlite3.connect(place.removeprefix("sqlite:///"))
    con.execute(THING)
    outbox.add(con, *drafts)
    con.commit() if commit else con.rollback()
    con.close()


async def by_sqlite3_alone(place: str, outbox: Outbox, drafts: Drafts, commit: bool) -> None:
    """A transaction that the library does not begin, and that the first message does where it may."""
    con = sqlite3.connect(place.removeprefix("sqlite:///"), isolation_level=None)
    con.execute("BEGIN")
    outbox.add(con, *drafts)
    con.execute(THING)
    con.execute("COMMIT" if commit else "ROLLBACK")
    con.close()


async def by_aiosqlite(place: str, outbox: Outbox, drafts: Drafts, commit: bool) -> None:
    async with aiosqlite.connect(place.removeprefix("sqlite:///")) as con:
        await con.execute(THING)
        await outbox.add_async(con, *drafts)
        await (con.commit() if commit else con.rollback())


async def by_apsw(place: str, outbox: Outbox, drafts: Drafts, commit: bool) -> None:
    con = apsw.Connection(place.removeprefix("sqlite+apsw:///"))
    con.execute("BEGIN IMMEDIATE")
    con.execute(THING)
    outbox.add(con, *drafts)
    con.execute("COMMIT" if commit else "ROLLBACK")
    con.close()


async def by_asyncpg(place: str, outbox: Outbox, drafts: Drafts, commit: bool) -> None:
    async with asyncpg.create_pool(place, min_size=1, max_size=1) as pool, pool.acquire() as con:
        transaction = con.transaction()
        await transaction.start()
        await con.execute(THING)
        await outbox.add_async(con, *drafts)
        await (transaction.commit() if commit else transaction.rollback())


async def by_psycopg(place: str, outbox: Outbox, drafts: Drafts, commit: bool) -> None:
    def work() -> None:
        with psycopg.connect(place) as con:
            outbox.add(con, *drafts)
            con.execute(THING)
            con.commit() if commit else con.rollback()

    await asyncio.to_thread(work)


async def by_psycopg_async(place: str, outbox: Outbox, drafts: Drafts, commit: bool) -> None:
    async with await psycopg.AsyncConnection.connect(place) as con:
        await outbox.add_async(con, *drafts)
        await con.execute(THING)
        await (con.commit() if commit else con.rollback())


def dialect(place: str, driver: str) -> str:
    kind, _, rest = place.partition("://")
    return f"{kind}+{driver}://{rest}" if driver else place


def _driver(place: str) -> str:
    return "psycopg" if place.startswith("postgresql") else ""


async def by_sqlalchemy(place: str, outbox: Outbox, drafts: Drafts, commit: bool) -> None:
    def work() -> None:
        engine = sqlalchemy.create_engine(dialect(place, _driver(place)))
        with engine.connect() as con:
            outbox.add(con, *drafts)
            con.execute(sqlalchemy.text(THING))
            con.commit() if commit else con.rollback()
        engine.dispose()

    await asyncio.to_thread(work)


async def by_sqlalchemy_session(place: str, outbox: Outbox, drafts: Drafts, commit: bool) -> None:
    def work() -> None:
        engine = sqlalchemy.create_engine(dialect(place, _driver(place)))
        with Session(engine) as session:
            session.execute(sqlalchemy.text(THING))
            outbox.add(session, *drafts)
            session.commit() if commit else session.rollback()
        engine.dispose()

    await asyncio.to_thread(work)


def _drivers(place: str) -> tuple[str, ...]:
    return ("asyncpg", "psycopg") if place.startswith("postgresql") else ("aiosqlite",)


async def by_sqlalchemy_async(place: str, outbox: Outbox, drafts: Drafts, commit: bool) -> None:
    engine = create_async_engine(dialect(place, _drivers(place)[0]))
    async with engine.connect() as con:
        await outbox.add_async(con, *drafts)
        await con.execute(sqlalchemy.text(THING))
        await (con.commit() if commit else con.rollback())
    await engine.dispose()


async def by_sqlalchemy_async_session(place: str, outbox: Outbox, drafts: Drafts, commit: bool) -> None:
    engine = create_async_engine(dialect(place, _drivers(place)[-1]))
    async with AsyncSession(engine) as session:
        await session.execute(sqlalchemy.text(THING))
        await outbox.add_async(session, *drafts)
        await (session.commit() if commit else session.rollback())
    await engine.dispose()


class Stop(Exception):
    """Rolls a block back."""


@cache
def thing() -> Any:
    """A model of Django's, of the table ``things``."""
    from django.conf import settings

    settings.configure(DATABASES={})
    import django
    from django.db import models

    django.setup()
    meta = type("Meta", (), {"app_label": "shop", "db_table": "things", "managed": False})
    members = {"__module__": __name__, "Meta": meta, "n": models.IntegerField(primary_key=True)}
    return type("Thing", (models.Model,), members)


@asynccontextmanager
async def django_at(place: str) -> AsyncIterator[Any]:
    """Django's default database is the one at ``place``; what is yielded runs a function in a thread of Django's."""
    model = thing()
    from django.db import connections

    about = sqlalchemy.make_url(place)
    engine = "postgresql" if about.drivername.startswith("postgresql") else "sqlite3"
    more = {"USER": about.username, "PASSWORD": about.password, "HOST": about.host, "PORT": about.port}
    given: Any = {"ENGINE": f"django.db.backends.{engine}", "NAME": about.database}
    given |= {name: value for name, value in more.items() if value}
    connections.databases.update(connections.configure_settings({"default": given}))

    def run(work: Callable[[Any], None]) -> None:
        try:
            work(model)
        finally:
            connections["default"].close()
            del connections["default"]

    yield lambda work: asyncio.to_thread(run, work)


async def by_django(place: str, outbox: Outbox, drafts: Drafts, commit: bool) -> None:
    async with django_at(place) as run:
        from django.db import connection, transaction

        def work(model: Any) -> None:
            try:
                with transaction.atomic():
                    model.objects.create(n=1)
                    outbox.add(connection, *drafts)
                    if not commit:
                        raise Stop
            except Stop:
                pass

        await run(work)


ANY: list[Way] = [by_sqlalchemy, by_sqlalchemy_session, by_sqlalchemy_async, by_sqlalchemy_async_session, by_django]
SQLITE: list[Way] = [by_sqlite3, by_sqlite3_alone, by_aiosqlite, by_apsw, *ANY]
POSTGRES: list[Way] = [by_asyncpg, by_psycopg, by_psycopg_async, *ANY]


def named(way: Any) -> str:
    return str(way.__name__.removeprefix("by_"))


# -- what comes out


def shop(outbox: Outbox, url: Any = "memory://", **more: Any) -> tuple[App, list[Message[Any]]]:
    """An app that relays, and what it has received, in order."""
    app, seen = App("shop", url), list[Message[Any]]()

    @app.on(">", concurrency=1)
    async def see(data: Any, message: Message[Any]) -> None:
        seen.append(message)

    outbox.relay(app, **more)
    return app, seen
