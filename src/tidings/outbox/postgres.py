"""The table in a PostgreSQL database of the user's.

A turn is one transaction: it takes the relay's lock, reads, and deletes what was accepted meanwhile. If it breaks, all
of it is as it was, and another relay begins. Nothing of it is the session's, so a pooler may stand between; without one
it is told of commits at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from tidings.kernel.errors import MissingExtra, NotFound

from .rows import COLUMNS, MOST, Table, Taken, taken

try:
    import asyncpg
except ImportError as error:
    mend = "pip install 'tidings[postgres]'"
    raise MissingExtra("the relay of an outbox in PostgreSQL needs asyncpg", why=str(error), mend=mend) from error

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

CONNECT, ANSWER = 10.0, 60.0  # seconds
LOCK = """
SELECT pg_try_advisory_xact_lock(1413762632, ('{0}'::regclass::oid::bigint & 2147483647)::int)
FROM set_config('idle_in_transaction_session_timeout', '90s', true) -- of a relay that froze, or whose host is gone
"""
FIRST = f"""
SELECT position, {", ".join(COLUMNS)} FROM (
    SELECT *, sum(octet_length(body)) OVER (ORDER BY position) - octet_length(body) AS before FROM (
        SELECT position, {", ".join(COLUMNS)} FROM {{0}}
        WHERE refused IS NULL AND coalesce(key, id) <> ALL($1::text[]) ORDER BY position LIMIT $2
    ) first
) summed WHERE before < {MOST} ORDER BY position
"""


class PostgresRows:
    """``Rows`` on a server, by a connection of its own."""

    def __init__(self, table: Table) -> None:
        self.table, self.told = table, asyncio.Event()

    async def __aenter__(self) -> PostgresRows:
        place = self.table.place.dsn
        connecting = asyncpg.connect(place, timeout=CONNECT, command_timeout=ANSWER, statement_cache_size=0)
        self.connection: Connection = await connecting
        return self

    async def __aexit__(self, *exc: object) -> None:
        with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await self.connection.close(timeout=2)

    async def _value(self, query: str, *args: Any) -> Any:
        try:
            return await self.connection.fetchval(query, *args)
        except asyncpg.UndefinedTableError as error:
            mend = "await outbox.create(), or migrate outbox.ddl()"
            raise NotFound(f"{self.table.place.shown}: {error}", mend=mend) from None

    # -- what a relay asks

    async def create(self) -> None:
        async with self.connection.transaction():
            await self.connection.execute("SELECT pg_advisory_xact_lock(1413762631)")  # several may come at once
            if await self._value("SELECT to_regclass($1)::text", self.table.quoted) is None:
                await self.connection.execute(self.table.ddl())

    async def count(self, *, refused: bool) -> int:
        where = "IS NOT NULL" if refused else "IS NULL"
        return int(await self._value(f"SELECT count(*) FROM {self.table.quoted} WHERE refused {where}"))

    async def retry(self) -> int:
        query = f"UPDATE {self.table.quoted} SET refused = NULL WHERE refused IS NOT NULL RETURNING 1"
        return int(await self._value(f"WITH again AS ({query}) SELECT count(*) FROM again"))

    async def news(self, patience: float) -> None:
        if not self.connection.is_closed():  # then the next question says so
            await self.connection.add_listener(self.table.name, self._tell)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self.told.wait()
        self.told.clear()

    def _tell(self, *_: object) -> None:
        self.told.set()

    @asynccontextmanager
    async def turn(self, limit: int, held: Collection[str]) -> AsyncIterator[PostgresTurn | None]:
        name = self.table.quoted
        if not await self._value(f"SELECT EXISTS (SELECT FROM {name} WHERE refused IS NULL)"):
            yield None
            return
        async with self.connection.transaction(isolation="read_committed"):  # what it reads is newer than its lock
            if await self._value(LOCK.format(name)):
                found = await self.connection.fetch(FIRST.format(name), [*held], limit)
                yield PostgresTurn(self, [taken(*row) for row in found])
            else:
                yield None

    async def finish(self, accepted: Sequence[int], refused: Sequence[tuple[int, str]]) -> None:
        name = self.table.quoted
        await self.connection.execute(f"DELETE FROM {name} WHERE position = ANY($1::bigint[])", accepted)
        for position, why in refused:
            await self.connection.execute(f"UPDATE {name} SET refused = $1 WHERE position = $2", why, position)


class PostgresTurn:
    """``Turn`` inside its transaction."""

    def __init__(self, table: PostgresRows, rows: Sequence[Taken]) -> None:
        self.rows, self.finish = rows, table.finish
