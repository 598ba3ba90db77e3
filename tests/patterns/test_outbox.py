"""Messages in a transaction of the user's: of every kind of connection, with its commit or never."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import apsw
import asyncpg
import psycopg
import pytest
import sqlalchemy
from tests.patterns.outboxes import (
    POSTGRES,
    SQLITE,
    Way,
    by_apsw,
    django_at,
    in_postgres,
    in_sqlite,
    named,
    placed,
    shop,
)
from tests.transports.consuming import until

from tidings import App, Topic
from tidings.kernel.errors import InvalidOption, InvalidURL, NotFound, PayloadRefused
from tidings.outbox import Outbox

PAID = Topic("orders.paid", bytes)
DRAFTS = [
    placed({"n": 7, "text": "☃ %s :x $1 ?"}, key="k", headers={"a": "ü"}, id="m1"),
    PAID(b"\x00\xff", priority=3, expires="1h"),
    placed({"n": 8}),
]


async def comes_out(place: str, way: Way) -> None:
    outbox = Outbox(place)
    await outbox.create()
    await outbox.create()  # it is there
    await way(place, outbox, [placed({"n": 0})], False)
    assert await outbox.pending() == 0
    await way(place, outbox, DRAFTS, True)
    assert await outbox.pending() == 3
    app, seen = shop(outbox)
    async with app:
        await until(lambda: len(seen) == 3)
    second, first, third = sorted(seen, key=lambda message: message.body)
    assert first.body == b'{"n":7,"text":"\xe2\x98\x83 %s :x $1 ?"}'
    assert (first.id, first.key, first.header("a"), first.topic, first.source) == ("m1", "k", "ü", placed.name, "shop")
    assert (second.body, second.priority, second.content_type) == (b"\x00\xff", 3, "application/octet-stream")
    assert second.expires_at == pytest.approx(second.time + 3600)
    assert len({first.id, second.id, third.id}) == 3
    assert await outbox.pending() == 0


@pytest.mark.parametrize("way", SQLITE, ids=named)
async def test_with_the_commit_or_never_in_sqlite(way: Way, tmp_path: Path) -> None:
    place = in_sqlite(tmp_path)
    await comes_out(place.replace("sqlite", "sqlite+apsw") if way is by_apsw else place, way)
    with closing(sqlite3.connect(tmp_path / "app.db")) as con:
        assert con.execute("SELECT n FROM things").fetchall() == [(1,)]


@pytest.mark.parametrize("way", POSTGRES, ids=named)
async def test_with_the_commit_or_never_in_postgres(way: Way) -> None:
    async with in_postgres() as place:
        await comes_out(place, way)
        with psycopg.connect(place) as con:
            assert con.execute("SELECT n FROM things").fetchall() == [(1,)]


async def test_a_table_by_migration_and_in_a_schema() -> None:
    async with in_postgres() as place:
        outbox = Outbox(place.replace("postgresql://", "postgresql+psycopg://"), table="audit.messages")
        with psycopg.connect(place) as con:
            con.execute("CREATE SCHEMA audit")
            con.execute(outbox.ddl())
        with psycopg.connect(place) as con:
            outbox.add(con, placed({"n": 1}, key="k"))
        app, seen = shop(outbox)
        async with app:
            await until(lambda: bool(seen))
    assert [message.data for message in seen] == [{"n": 1}]


async def test_other_languages_write_plain_rows(tmp_path: Path) -> None:
    place = in_sqlite(tmp_path)
    outbox = Outbox(place)
    with closing(sqlite3.connect(tmp_path / "app.db")) as con, con:
        con.execute(outbox.ddl())
        plain = "INSERT INTO tidings_outbox(id, topic, key, body) VALUES (?, ?, ?, ?)"
        con.execute(plain, ("x1", "orders.placed", "k", '{"n": 1}'))
        con.execute(plain, ("x2", "_dead.shop.see", None, b"{}"))  # no topic of theirs
        con.execute("INSERT INTO tidings_outbox(id, topic, body, attributes) VALUES ('x3', 'a', '', '{')")
        con.execute(
            "INSERT INTO tidings_outbox(id, topic, body, attributes) VALUES ('x4', 'a', '', '{\"time\": \"now\"}')"
        )
    app, seen = shop(outbox)
    async with app:
        await until(lambda: bool(seen))
    assert [(message.id, message.key, message.data) for message in seen] == [("x1", "k", {"n": 1})]
    assert (await outbox.pending(), await outbox.refused()) == (0, 3)


async def test_whatever_rows_are_made_into(tmp_path: Path) -> None:
    """A row factory of the user's; and nothing to add is nothing."""
    outbox = Outbox(in_sqlite(tmp_path))
    await outbox.create()
    with closing(sqlite3.connect(tmp_path / "app.db")) as con, con:
        con.row_factory = lambda cursor, row: {"n": row}
        outbox.add(con)
        outbox.add(con, placed({"n": 1}))
    async with aiosqlite.connect(tmp_path / "app.db") as other:
        other.row_factory = lambda cursor, row: {"n": row}  # type: ignore[assignment]
        await outbox.add_async(other, placed({"n": 2}))
        await other.commit()
    assert await outbox.pending() == 2


def test_ids_and_times_are_of_the_transaction(tmp_path: Path) -> None:
    """A relay that publishes a row twice publishes one id."""
    place = in_sqlite(tmp_path)
    outbox = Outbox(place)
    with closing(sqlite3.connect(tmp_path / "app.db")) as con, con:
        con.execute(outbox.ddl())
        outbox.add(con, placed({"n": 1}), placed({"n": 2}, delay="1h"))
        rows = con.execute("SELECT id, attributes FROM tidings_outbox").fetchall()
    assert len({id for id, _ in rows if id}) == 2
    assert '"time":' in rows[0][1]
    assert '"deliver_at":' in rows[1][1]


# -- what is refused


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "mysql://x/y", "app.db", "postgre://x"]
)
def test_places_that_cannot_be(url: str) -> None:
    with pytest.raises(InvalidURL) as refused:
        Outbox(url)
    assert refused.value.mend


def test_passwords_are_not_shown() -> None:
    assert "secret" not in repr(Outbox("postgresql://me:secret@host/db"))


@pytest.mark.parametrize("name", ["", "Outbox", 'a"b', "a.b.c", "x" * 32, "a b", 7])
def test_names_that_cannot_be(name: Any) -> None:
    with pytest.raises(InvalidOption, match="a table cannot be called"):
        Outbox("sqlite:///app.db", table=name)


def refused(outbox: Outbox, connection: Any, *, says: str) -> None:
    with pytest.raises(InvalidOption, match=says) as error:
        outbox.add(connection, placed({"n": 1}))
    assert error.value.mend
    assert __file__ in error.value.where


async def refused_async(outbox: Outbox, connection: Any, *, says: str) -> None:
    with pytest.raises(InvalidOption, match=says) as error:
        await outbox.add_async(connection, placed({"n": 1}))
    assert error.value.mend


async def test_without_a_transaction_in_sqlite(tmp_path: Path) -> None:
    place = in_sqlite(tmp_path)
    ours, path = Outbox(place), str(tmp_path / "app.db")
    await ours.create()
    with closing(sqlite3.connect(path, isolation_level=None)) as con:
        refused(ours, con, says="open transaction")
    with closing(apsw.Connection(path)) as theirs:
        refused(Outbox(place.replace("sqlite", "sqlite+apsw")), theirs, says="open transaction")
    async with aiosqlite.connect(path, isolation_level=None) as alone:
        await refused_async(ours, alone, says="open transaction")
    engine = sqlalchemy.create_engine(place, isolation_level="AUTOCOMMIT")
    with engine.connect() as connected:
        refused(ours, connected, says="open transaction")
    engine.dispose()
    async with django_at(place) as run:
        from django.db import connection

        await run(lambda _: refused(ours, connection, says="open transaction"))
    assert await ours.pending() == 0


async def test_without_a_transaction_in_postgres() -> None:
    async with in_postgres() as place:
        outbox = Outbox(place)
        await outbox.create()
        con = await asyncpg.connect(place)
        await refused_async(outbox, con, says="open transaction")
        await con.close()
        with psycopg.connect(place, autocommit=True) as alone:
            refused(outbox, alone, says="open transaction")
        engine = sqlalchemy.create_engine(place.replace("://", "+psycopg://")).execution_options(
            isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connected:
            refused(outbox, connected, says="open transaction")
        engine.dispose()
        assert await outbox.pending() == 0


async def test_connections_that_are_of_another_kind(tmp_path: Path) -> None:
    outbox, elsewhere = Outbox(in_sqlite(tmp_path)), Outbox("postgresql://host/db")
    with closing(sqlite3.connect(tmp_path / "app.db")) as con:
        refused(elsewhere, con, says="is to sqlite")
        refused(Outbox(f"sqlite+apsw:///{tmp_path}/app.db"), con, says="is of sqlite3")
        await refused_async(outbox, con, says="cannot add by a sqlite3.Connection")
        with pytest.raises(PayloadRefused):
            outbox.add(con, placed({"n": float("nan")}))
    with closing(apsw.Connection(str(tmp_path / "app.db"))) as theirs:
        refused(outbox, theirs, says="two|is of apsw")
    async with aiosqlite.connect(tmp_path / "app.db") as alone:
        refused(outbox, alone, says="cannot add by a aiosqlite")
    refused(outbox, object(), says="cannot add by a builtins.object")


async def test_a_bus_is_no_place_for_tables(tmp_path: Path) -> None:
    """A second build of SQLite on a bus's file could damage it."""
    url = f"sqlite:///{tmp_path / 'bus.db'}"
    app = App("shop", url)
    async with app.connect():
        pass
    outbox = Outbox(url)
    with pytest.raises(InvalidOption, match=r"is a bus of 'shop'"):
        outbox.relay(app)
    with pytest.raises(InvalidOption, match="a file that is a bus"):
        await outbox.create()
    with closing(sqlite3.connect(tmp_path / "bus.db")) as con:
        refused(outbox, con, says="a file that is a bus")


async def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no file"):
        await Outbox(f"sqlite:///{tmp_path / 'none.db'}").pending()
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(NotFound, match="no table tidings_outbox"):
        await Outbox(in_sqlite(tmp_path)).pending()
    async with in_postgres() as place:
        with pytest.raises(NotFound, match="tidings_outbox"):
            await Outbox(place).pending()
        await asyncio.gather(*(Outbox(place).create() for _ in range(5)))  # all at once
        assert await Outbox(place).pending() == 0
