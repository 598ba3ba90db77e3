"""Rows in a transaction of the user's: the connections that are known, and how each is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from tidings.kernel.errors import InvalidOption

from .rows import COLUMNS, Table

BUS = 0x54444E47  # the application id of a bus file: "TDNG"

LIBRARIES = ("sqlite3", "apsw", "aiosqlite", "psycopg", "asyncpg", "sqlalchemy", "django")
ASYNC = "asyncpg, psycopg AsyncConnection, aiosqlite, SQLAlchemy AsyncConnection or AsyncSession"
SYNC = "sqlite3, apsw, psycopg Connection, SQLAlchemy Connection or Session, django.db.connection"

QUESTIONS, PERCENTS = ("?",) * 5, ("%s",) * 5
NUMBERS, NAMES = tuple(f"${n}" for n in range(1, 6)), tuple(f":{name}" for name in COLUMNS)

Rows = Sequence[tuple[Any, ...]]


def add(table: Table, connection: Any, rows: Rows) -> None:
    """Insert rows by a synchronous connection. Raises ``InvalidOption`` for one that will not do."""
    library, kind = _kind(connection)
    if library in ("sqlite3", "apsw"):
        _same(table, "sqlite", library)
        _in_transaction(connection)
        cursor = connection.cursor()
        if library == "sqlite3":
            cursor.row_factory = None  # the user's may make anything of a row
        refuse_bus(cursor.execute("PRAGMA application_id").fetchone()[0])
        cursor.executemany(table.insert(QUESTIONS), rows)
    elif library == "psycopg" and not kind.startswith("Async"):
        _same(table, "postgresql")
        _in_transaction(connection)
        with connection.cursor() as cursor:
            cursor.executemany(table.insert(PERCENTS), rows)
    elif library == "sqlalchemy" and not hasattr(connection, "run_sync"):
        _add_by_sqlalchemy(table, connection, rows)
    elif library == "django":
        _add_by_django(table, connection, rows)
    else:
        _refuse(connection, SYNC, "add_async")


async def add_async(table: Table, connection: Any, rows: Rows) -> None:
    """Insert rows by an asynchronous connection. Raises ``InvalidOption`` for one that will not do."""
    library, kind = _kind(connection)
    if library == "asyncpg":
        _same(table, "postgresql")
        if not connection.is_in_transaction():
            _outside("async with connection.transaction(): …")
        await connection.executemany(table.insert(NUMBERS), rows)
    elif library == "psycopg" and kind.startswith("Async"):
        _same(table, "postgresql")
        _in_transaction(connection)
        async with connection.cursor() as cursor:
            await cursor.executemany(table.insert(PERCENTS), rows)
    elif library == "aiosqlite":
        _same(table, "sqlite", "sqlite3")
        _in_transaction(connection)
        async with connection.cursor() as cursor:
            cursor.row_factory = None
            await cursor.execute("PRAGMA application_id")
            refuse_bus((await cursor.fetchone())[0])
            await cursor.executemany(table.insert(QUESTIONS), rows)
    elif library == "sqlalchemy" and hasattr(connection, "run_sync"):
        await connection.run_sync(lambda sync: _add_by_sqlalchemy(table, sync, rows))
    else:
        _refuse(connection, ASYNC, "add")


def _add_by_sqlalchemy(table: Table, connection: Any, rows: Rows) -> None:
    from sqlalchemy import Connection, text

    con = connection if isinstance(connection, Connection) else connection.connection()  # of a session
    _same(table, con.dialect.name, "sqlite3")
    if con.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        _outside("a connection without AUTOCOMMIT")
    _in_transaction(con.connection.dbapi_connection)
    if con.dialect.name == "sqlite":
        refuse_bus(con.exec_driver_sql("PRAGMA application_id").scalar_one())
    if rows:
        con.execute(text(table.insert(NAMES)), [dict(zip(COLUMNS, row, strict=True)) for row in rows])


def _add_by_django(table: Table, connection: Any, rows: Rows) -> None:
    _same(table, connection.vendor, "sqlite3")
    if not connection.in_atomic_block and connection.get_autocommit():
        _outside("with transaction.atomic(): …")
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            refuse_bus(cursor.execute("PRAGMA application_id").fetchone()[0])
        cursor.executemany(table.insert(PERCENTS), rows)


def _kind(connection: Any) -> tuple[str, str]:
    """The library a connection is of, also when its class was derived from the library's, and its class there."""
    for kind in type(connection).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in LIBRARIES:
            return library, kind.__name__
    return "", ""


def _same(table: Table, kind: str, driver: str = "") -> None:
    """The connection is to a database of the outbox's kind, by the driver that its relay has."""
    place = table.place
    if place.kind != kind:
        mend = "give add() a connection to that database"
        raise InvalidOption(f"this connection is to {kind}, and the outbox is in {place.shown}", mend=mend)
    if place.kind == "sqlite" and place.driver != driver:
        scheme = "sqlite+apsw" if driver == "apsw" else "sqlite"
        raise InvalidOption(
            f"this connection is of {driver}, and the outbox's relay uses {place.driver}",
            why="two builds of SQLite in one process undo each other's locks, and damage the file",
            mend=f'Outbox("{scheme}://…")',
        )


def _in_transaction(connection: Any) -> None:
    """A transaction is open, or the next statement opens one. What is not known, as beneath SQLAlchemy, may pass."""
    library, _ = _kind(connection)
    if library == "psycopg" and connection.autocommit and not connection.info.transaction_status:
        _outside("with connection.transaction(): …")
    if library == "apsw" and not connection.in_transaction:
        _outside("with connection: …")
    if library in ("sqlite3", "aiosqlite") and not connection.in_transaction:
        alone = getattr(connection, "autocommit", -1)  # since Python 3.12; -1: what isolation_level says
        if alone is True or (alone == -1 and connection.isolation_level is None):
            _outside('connection.execute("BEGIN")')


def refuse_bus(application: int) -> None:
    """Raises ``InvalidOption`` for the application id of a bus file."""
    if application == BUS:
        raise InvalidOption(
            "this connection is to a file that is a bus",
            why="a second SQLite build on it may damage it; your tables belong in a file of your own",
            mend='Outbox("sqlite:///app.db"), beside App("shop", "sqlite:///shop.db")',
        )


def _outside(mend: str) -> NoReturn:
    raise InvalidOption("an outbox needs an open transaction on this connection", mend=mend)


def _refuse(connection: Any, known: str, other: str) -> NoReturn:
    what = f"an outbox cannot add by a {type(connection).__module__}.{type(connection).__qualname__}"
    raise InvalidOption(what, why=f"this knows {known}", mend=f"for the other kind of connection there is {other}")
