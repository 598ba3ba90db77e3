"""The table in an SQLite file of the user's, read with the SQLite build that the user has.

One relay is at work at a time: it holds a lock on a file beside the database, which the system frees with its process.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from tidings.kernel.errors import NotFound

from .adding import refuse_bus
from .rows import COLUMNS, MOST, Table, Taken, taken

T = TypeVar("T")

PATIENCE = 30_000  # ms that it waits for another writer
FIRST = f"""
SELECT position, id, topic, key, CAST(body AS BLOB), attributes FROM (
    SELECT *, sum(length(body)) OVER (ORDER BY position) - length(body) AS before FROM (
        SELECT position, {", ".join(COLUMNS)} FROM {{0}}
        WHERE refused IS NULL AND coalesce(key, id) NOT IN (SELECT value FROM json_each(?)) ORDER BY position LIMIT ?
    )
) WHERE before < {MOST} ORDER BY position
"""


class SQLiteRows:
    """``Rows`` in a file; all work on it is done in one thread, one piece after the other."""

    def __init__(self, table: Table, create: bool) -> None:
        self.table, self.path, self.new = table, Path(table.place.dsn), create
        self.thread = ThreadPoolExecutor(1, "tidings outbox")
        self.connection: Any = None

    async def __aenter__(self) -> SQLiteRows:
        try:
            await self._do(self._open)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._do(self._close)
        self.thread.shutdown(wait=False)

    async def _do(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.thread, function, *args)

    def _open(self) -> None:
        if not self.new and not self.path.exists():
            raise NotFound(f"there is no file {self.path}", mend="await outbox.create(), or see where your database is")
        uri = f"file:{quote(str(self.path))}?mode={'rwc' if self.new else 'rw'}"
        if self.table.place.driver == "apsw":
            import apsw

            flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
            self.connection = apsw.Connection(uri, flags=flags)
        else:
            import sqlite3

            self.connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        self._ask(f"PRAGMA busy_timeout = {PATIENCE}")
        refuse_bus(self._ask("PRAGMA application_id")[0][0])

    def _close(self) -> None:
        if self.connection is not None:
            self.connection.close()

    def _ask(self, query: str, *args: Any) -> list[Any]:
        try:
            return self.connection.execute(query, args).fetchall()  # type: ignore[no-any-return]
        except Exception as error:
            if "no such table" not in str(error):
                raise
            what, mend = f"{self.path} has no table {self.table.name}", "await outbox.create(), or migrate outbox.ddl()"
            raise NotFound(what, mend=mend) from None

    # -- what a relay asks

    async def create(self) -> None:
        await self._do(self._write, self._create)

    def _create(self) -> None:
        if not self._ask("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", self.table.name):
            self._ask(self.table.ddl())

    async def count(self, *, refused: bool) -> int:
        where = "IS NOT NULL" if refused else "IS NULL"
        return int((await self._do(self._ask, f"SELECT count(*) FROM {self.table.quoted} WHERE refused {where}"))[0][0])

    async def retry(self) -> int:
        await self._do(self._ask, f"UPDATE {self.table.quoted} SET refused = NULL WHERE refused IS NOT NULL")
        return int((await self._do(self._ask, "SELECT changes()"))[0][0])

    async def news(self, patience: float) -> None:
        await asyncio.sleep(patience)

    @asynccontextmanager
    async def turn(self, limit: int, held: Collection[str]) -> AsyncIterator[SQLiteTurn | None]:
        lock = os.open(f"{self.path}-{self.table.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if _locked(lock):
                found = await self._do(self._ask, FIRST.format(self.table.quoted), json.dumps([*held]), limit)
                yield SQLiteTurn(self, [taken(*row) for row in found])
            else:
                yield None
        finally:
            os.close(lock)

    async def finish(self, accepted: Sequence[int], refused: Sequence[tuple[int, str]]) -> None:
        await self._do(self._write, self._finish, accepted, refused)

    def _finish(self, accepted: Sequence[int], refused: Sequence[tuple[int, str]]) -> None:
        gone, aside = [(position,) for position in accepted], [(why, position) for position, why in refused]
        self.connection.executemany(f"DELETE FROM {self.table.quoted} WHERE position = ?", gone)
        self.connection.executemany(f"UPDATE {self.table.quoted} SET refused = ? WHERE position = ?", aside)

    def _write(self, function: Callable[..., None], *args: Any) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            function(*args)
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")


class SQLiteTurn:
    """``Turn`` while the lock is held."""

    def __init__(self, table: SQLiteRows, rows: Sequence[Taken]) -> None:
        self.rows, self.finish = rows, table.finish


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
