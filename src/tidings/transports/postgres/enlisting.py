"""Publishing inside a transaction of the user's own: the outbox without an outbox.

One statement with one text parameter, so that it is the same for every driver: ``enlist`` (``wire.sql``) writes the
messages beside the log and rings, both with the commit; whoever hears it gives them their numbers.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from tidings.kernel.bus import MARGIN
from tidings.kernel.codec import refuse_large, seal
from tidings.kernel.errors import InvalidOption
from tidings.kernel.message import Message

from .hands import rows_of

ASYNC, SYNC = (
    "asyncpg, psycopg AsyncConnection, SQLAlchemy AsyncConnection or AsyncSession",
    "psycopg Connection, SQLAlchemy Connection or Session",
)


def _statement(namespace: str, messages: Sequence[Message[Any]], source: str) -> tuple[str, str]:
    """SQL with ``{}`` for the parameter, and the parameter."""
    from .transport import MAX_PAYLOAD, too_large

    now = time.time()
    sealed = [seal(message, now=now, source=source or namespace) for message in messages]
    for message in sealed:
        refuse_large(message, MAX_PAYLOAD - MARGIN)
    rows, _ = rows_of(sealed, now)
    if error := too_large(sealed, rows):
        raise error
    text = [(*where, due, hash, base64.b64encode(record).decode()) for where, due, hash, record in rows]
    return f'SELECT "{namespace}".enlist({{}})', msgspec.json.encode(text).decode()


async def publish_in(namespace: str, connection: Any, messages: Sequence[Message[Any]], source: str) -> None:
    query, rows = _statement(namespace, messages, source)
    library, kind = _kind(connection)
    if library == "asyncpg":
        if not connection.is_in_transaction():
            _outside()
        await connection.execute(query.format("$1::text"), rows)
    elif library == "psycopg" and kind.startswith("Async"):
        await connection.execute(query.format("%s::text"), (rows,))
    elif library == "sqlalchemy" and hasattr(connection, "run_sync"):
        from sqlalchemy import text

        await connection.execute(text(query.format("CAST(:rows AS text)")), {"rows": rows})
    else:
        _refuse(connection, ASYNC, "publish_in_sync")


def publish_in_sync(namespace: str, connection: Any, messages: Sequence[Message[Any]], source: str) -> None:
    query, rows = _statement(namespace, messages, source)
    library, kind = _kind(connection)
    if library == "psycopg" and not kind.startswith("Async"):
        connection.execute(query.format("%s::text"), (rows,))
    elif library == "sqlalchemy" and not hasattr(connection, "run_sync"):
        from sqlalchemy import text

        connection.execute(text(query.format("CAST(:rows AS text)")), {"rows": rows})
    else:
        _refuse(connection, SYNC, "publish_in")


def _kind(connection: Any) -> tuple[str, str]:
    """The library a connection is of, also when its class was derived from the library's, and its class there."""
    for kind in type(connection).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in ("asyncpg", "psycopg", "sqlalchemy"):
            return library, kind.__name__
    return "", ""


def _outside() -> NoReturn:
    mend = "async with connection.transaction(): …"
    raise InvalidOption("publish_in needs an open transaction on this connection", mend=mend)


def _refuse(connection: Any, known: str, other: str) -> NoReturn:
    what = f"cannot publish in a {type(connection).__module__}.{type(connection).__qualname__}"
    raise InvalidOption(what, why=f"it knows {known}", mend=f"for the other kind of connection there is {other}")
