"""EIP: Channel Adapter, for a database: rows that a query finds become messages, each once, by a watermark."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, TypeVar

from msgspec import convert
from msgspec.structs import replace

from tidings.app import App
from tidings.channels import Topic
from tidings.kernel.codec import encode
from tidings.kernel.errors import Duration, InvalidOption, text_of
from tidings.kernel.message import Message, derived_id
from tidings.kernel.topics import token
from tidings.router import Router
from tidings.state import State, Table

from ._patience import Patience
from ._pattern import describe

log = logging.getLogger("tidings")

T = TypeVar("T")

Row = dict[str, Any]
MARKS: Table[Any] = Table("tidings.poll_sql", Any)
BATCH = 1000  # rows a look


def poll_sql(
    app: Router,
    to: Topic[T],
    /,
    *,
    connect: Callable[[], Any],
    query: str,
    start: Any = 0,
    row: Callable[[Row], Message[T]] | None = None,
    every: Duration = "1s",
    group: str = "",
) -> None:
    """Publish the rows that a query finds, as they come. EIP: Channel Adapter::

        poll_sql(app, placed, connect=lambda: sqlite3.connect("shop.db"),
                 query="SELECT id, article, cents FROM orders WHERE id > ? ORDER BY id")

    ``connect`` makes a DB-API connection (sqlite3, psycopg, …), for each look one, in a thread. ``query`` takes one
    parameter, the *watermark*: the first column of the last row that was published, ``start`` in the beginning. It must
    be unique, the rows in its order, and none may appear later with a smaller one. Of a look up to 1,000 are taken.
    ``row``: the message of a row, by default its columns as the topic's type; its id comes from the watermark, unless
    it has one.

    ``every``: one replica looks. The watermark is a record of the app's store, written with the messages: each row is
    published exactly once where the bus is the store, at least once and with the same id elsewhere. While the database
    cannot be reached it waits, up to a minute. A row that does not fit stops it there, and the log says so.
    ``group``: default ``"<app>.poll-<topic>"``.

    Raises ``InvalidOption``; a bus without a store is refused at start-up.
    """
    if not callable(connect) or (row is None and not to.publishable):
        raise InvalidOption(f"rows cannot be published to {to!r}", mend="connect=lambda: ..., row=lambda row: message")
    name = group or f"poll-{to.name}"
    patience = Patience(name)
    made = row or (lambda found: to(convert(found, to.type, strict=not to.lax)))

    async def poll(state: State, app: App) -> list[Message[T]]:
        place = group or f"{app.name}.{name}"  # apps share a store
        if patience.waits:
            return []
        mark = await state.get(MARKS, place)
        try:
            rows = await asyncio.to_thread(_fetch, connect, query, start if mark is None else mark)
        except Exception as error:
            patience.failed(error)
            return []
        patience.answered()
        messages: list[Message[T]] = []
        for last, message in _messages(place, rows, made):
            messages.append(message)
            mark = last
        if messages:
            state.put(MARKS, place, mark)
        return messages

    poll.__name__ = name
    app.every(every, group=group)(describe(poll, "channel adapter", publishes=(to,)))


def _fetch(connect: Callable[[], Any], query: str, mark: Any) -> list[tuple[Any, Row]]:
    """The next rows with their watermarks."""
    with closing(connect()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(query, (mark,))
        names: Sequence[str] = [column[0] for column in cursor.description]
        return [(found[0], dict(zip(names, found, strict=True))) for found in cursor.fetchmany(BATCH)]


def _messages(
    name: str, rows: Sequence[tuple[Any, Row]], made: Callable[[Row], Message[T]]
) -> Iterator[tuple[Any, Message[T]]]:
    """Watermark and message of each row, up to the first that does not fit."""
    for mark, found in rows:
        try:
            message = made(found)
            encode(message.data)
            yield mark, message if message.id else replace(message, id=derived_id(str(mark), name, message.topic, 0))
        except Exception as error:
            log.error("%s stops at %s: %s: %s", name, token(str(mark)), type(error).__name__, text_of(error))
            return
