"""Messages that belong to a database transaction of the user's own (EIP: Transactional Client; Transactional Outbox).

Theory of operation. ``add`` writes each message as a row of one table, in the transaction that is open: with its
commit the message exists, without it there never was one. A *relay* in a running app takes the rows in order, publishes
them to any bus, and removes what was accepted; what a crash interrupts happens again, with the same ids. Rows are found
by being there and not by counting on, so a transaction that stays open for long is not skipped and holds back nobody.

``adding.py`` knows the users' connections, ``rows.py`` what a row is; ``sqlite.py`` and ``postgres.py`` are a table as
its relay sees it, ``relay.py`` is when rows go, ``publishing.py`` how.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tidings.kernel.codec import seal
from tidings.kernel.errors import Duration, InvalidOption
from tidings.kernel.message import Message, seconds

from . import adding
from .relay import Relay, Rows
from .rows import Place, Table, place_of, row_of

if TYPE_CHECKING:
    from tidings.app import App

__all__ = ["Outbox"]


class Outbox:
    """A table for messages in the user's own database, and the relay that publishes them.

    ``url``: the database, as SQLAlchemy has it: ``sqlite:///app.db`` (``sqlite+apsw:///app.db`` for who uses apsw),
    ``postgresql://user@host/database``. ``table``: its name, with a schema or without. Raises ``InvalidURL``,
    ``InvalidOption``.
    """

    def __init__(self, url: str, *, table: str = "tidings_outbox") -> None:
        self._place: Place = place_of(url)
        self._table = Table(table, self._place)

    def __repr__(self) -> str:
        return f"Outbox({self._place.shown!r}, table={self._table.name!r})"

    def add(self, connection: Any, /, *messages: Message[Any]) -> None:
        """Publish when the transaction that is open on ``connection`` commits, and never if it does not.

        ``connection``: of sqlite3, apsw, psycopg; SQLAlchemy's ``Connection`` or ``Session``; ``django.db.connection``.
        ``messages``: drafts, made by ``topic(payload, key=…)``; delays count from now. Raises ``PayloadRefused``,
        ``InvalidOption`` for another connection, or one without a transaction; and what the driver raises.
        """
        adding.add(self._table, connection, self._rows(messages))

    async def add_async(self, connection: Any, /, *messages: Message[Any]) -> None:
        """``add`` for asyncpg, psycopg's ``AsyncConnection``, aiosqlite, SQLAlchemy's ``AsyncConnection`` and
        ``AsyncSession``."""
        await adding.add_async(self._table, connection, self._rows(messages))

    @staticmethod
    def _rows(messages: tuple[Message[Any], ...]) -> list[tuple[Any, ...]]:
        now = time.time()
        return [row_of(seal(message, now=now, source="")) for message in messages]

    def ddl(self) -> str:
        """The SQL that makes the table, for a migration."""
        return self._table.ddl()

    async def create(self) -> None:
        """Make the table unless it is there. Raises ``InvalidOption`` for a file that is a bus; ``MissingExtra``."""
        async with self._opened(create=True) as rows:
            await rows.create()

    async def pending(self) -> int:
        """How many messages are committed and not published yet. Raises ``NotFound`` where there is no such table."""
        async with self._opened() as rows:
            return await rows.count(refused=False)

    async def refused(self) -> int:
        """How many messages were set aside, for no bus will take them as they are; column ``refused`` says why."""
        async with self._opened() as rows:
            return await rows.count(refused=True)

    async def retry(self) -> int:
        """Let the relay try again what was refused; how many there were."""
        async with self._opened() as rows:
            return await rows.retry()

    def relay(self, app: App, /, *, bus: str = "", batch: int = 500, poll: Duration = "100ms") -> None:
        """Publish what is committed while ``app`` runs, in the order of the commits, and at least once.

        Each replica may have it: one is at work at a time. ``bus``: the app's bus for topics that name none. ``batch``:
        messages published at once. ``poll``: how often to look at an empty table, at most; PostgreSQL also tells of
        commits. A message that cannot be published now holds back those of its key.

        Raises ``InvalidOption``, ``InvalidName`` for an unknown bus, ``DuplicateGroup`` for a second relay of this
        table, ``MissingExtra``.
        """
        if not isinstance(batch, int) or batch < 1:
            raise InvalidOption(f"batch cannot be {batch!r}", mend="a number, at least 1")
        Relay(self._table, self._opened, app, bus, batch, seconds(poll, "poll")).attach()

    def _opened(self, *, create: bool = False) -> Rows:
        if self._place.kind == "sqlite":
            from .sqlite import SQLiteRows

            return SQLiteRows(self._table, create)
        from .postgres import PostgresRows

        return PostgresRows(self._table)
