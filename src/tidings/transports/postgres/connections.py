"""Connections to the server: a few for calls, opened when needed, replaced when they break; errors as ours.

A call is one statement, one transaction. It waits while the server cannot be reached, and never repeats what may have
been done: ``Unanswered`` says so. No call is left to a connection that answers no more.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.resources import files
from ssl import SSLError
from typing import TYPE_CHECKING, Any, cast

import asyncpg

from tidings.kernel import errors
from tidings.kernel.errors import BusError, BusUnavailable
from tidings.kernel.message import seconds
from tidings.kernel.transport import Event

from . import Postgres

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

CONNECT = 10.0  # seconds a connection may take
ANSWER = 5.0, 20.0  # seconds a call may take before its connection is given up: a lease, within these
BACKOFF, MOST = 0.05, 2.0  # seconds between tries, at first and at most
FILES = re.compile("[?&]ssl(rootcert|cert|key|crl)=")  # of TLS, in a DSN

BROKEN = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shut down, crashed, starting up
    asyncpg.ReadOnlySQLTransactionError,  # it is no primary any more
    asyncpg.IdleInTransactionSessionTimeoutError,
)
AGAIN = (  # rolled back: nothing was done
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InvalidCachedStatementError,
)
REFUSED = (  # trying again would not help
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ClientConfigurationError,
    ValueError,
)


class Unanswered(BusUnavailable):
    """The connection broke while the server was at it: perhaps it was done."""


class Connections:
    """Up to ``options.connections`` connections, and the news of losing and finding the server."""

    def __init__(self, options: Postgres, notify: Callable[[Event], None]) -> None:
        self.options, self.notify = options, notify
        self.idle: deque[Connection] = deque()
        self.turns: deque[asyncio.Future[None]] = deque()
        self.count, self.closed, self.up = 0, False, True
        self.pids: dict[Connection, int] = {}  # of the server's processes
        self.pooled = False  # behind a pooler: no session is ours
        self.wait = seconds(options.publish_wait)
        self.answer = max(ANSWER[0], min(ANSWER[1], options.lease_seconds))

    async def open(self) -> None:
        """The first connection. Raises ``BusUnavailable`` at once."""
        try:
            con = await self._connect(self.options.dsn, 0)
            async with con.transaction():
                self.pooled = await con.fetchval("SELECT pg_backend_pid()") != con.get_server_pid()
        except (*BROKEN, *REFUSED, asyncpg.PostgresError) as error:
            raise self.translate(error) from error
        await con.close()

    async def _connect(self, dsn: str, cache: int) -> Connection:
        attributes = "any" if "target_session_attrs" in dsn else "read-write" if "," in dsn else "any"
        more: dict[str, Any] = {} if "target_session_attrs" in dsn else {"target_session_attrs": attributes}
        made = asyncpg.connect(dsn, timeout=CONNECT, statement_cache_size=cache, **more)
        return cast("Connection", await made)

    async def connect(self, dsn: str = "") -> Connection:
        """A connection of its own to the same server, or directly to ``dsn``."""
        given = self.options.statement_cache_size
        return await self._connect(dsn or self.options.dsn, (0 if self.pooled else 100) if given is None else given)

    # -- calls

    async def call(
        self, query: str, *args: Any, wait: float | None = None, repeat: bool = False, rows: bool = False
    ) -> Any:
        """The one row a statement answers, or all ``rows``. ``repeat``: doing it twice does no harm.

        Raises ``BusUnavailable`` when the server was not reached within ``wait`` seconds, and ``Unanswered``.
        """
        deadline = asyncio.get_running_loop().time() + (self.wait if wait is None else wait)
        while True:
            con = await self._acquire(deadline)
            try:
                async with asyncio.timeout(self.answer):
                    fetch = con.fetch if rows else con.fetchrow
                    if self.pooled:
                        async with con.transaction():
                            found = await fetch(query, *args)
                    else:
                        found = await fetch(query, *args)
            except AGAIN as error:
                self._release(con)
                if asyncio.get_running_loop().time() > deadline:
                    raise self.translate(error) from error
            except BROKEN as error:
                self._broke(con, error)
                if not repeat or asyncio.get_running_loop().time() > deadline:
                    raise Unanswered(
                        f"{self.options.shown()} did not answer", why=str(error) or type(error).__name__
                    ) from error
            except asyncpg.PostgresError as error:
                self._release(con)
                raise self.translate(error) from error
            except BaseException:
                self._drop(con)
                raise
            else:
                self._release(con)
                return found

    async def _acquire(self, deadline: float) -> Connection:
        loop, pause, last = asyncio.get_running_loop(), BACKOFF, OSError("no connection is free")
        while not self.closed:
            while self.idle:
                con = self.idle.pop()
                if not con.is_closed():
                    return con
                self._drop(con)
                self.lost(ConnectionError("the server closed the connection"))
            if self.count >= self.options.connections:
                self.turns.append(turn := loop.create_future())
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(max(deadline, loop.time() + self.answer)):
                        await turn
                    continue
                raise self.translate(last)
            self.count += 1
            try:
                con = await self.connect()
            except BaseException as error:
                self.count -= 1
                self._turn()
                if not isinstance(error, (*BROKEN, asyncpg.PostgresError)) or isinstance(error, REFUSED):
                    raise self.translate(error) if isinstance(error, Exception) else error from error
                self.lost(error)
                if loop.time() + pause > deadline:
                    raise self.translate(error) from error
                await asyncio.sleep(pause * (0.5 + random.random() / 2))
                pause = min(pause * 2, MOST)
            else:
                self.pids[con] = con.get_server_pid()
                self.found()
                return con
        raise errors.NotOpen(f"the bus {self.options.shown()} is not open")

    def _release(self, con: Connection) -> None:
        if self.closed or con.is_closed():
            self._drop(con)
        else:
            self.idle.append(con)
            self._turn()

    def _drop(self, con: Connection) -> None:
        con.terminate()
        self.pids.pop(con, None)
        self.count -= 1
        self._turn()

    def _turn(self) -> None:
        while self.turns:
            if not (turn := self.turns.popleft()).done():
                turn.set_result(None)
                return

    def _broke(self, con: Connection, error: BaseException) -> None:
        """One is broken; the idle ones have probably gone the same way."""
        self._drop(con)
        while self.idle:
            self._drop(self.idle.pop())
        self.lost(error)

    def lost(self, error: BaseException) -> None:
        if self.up and not self.closed:
            self.up = False
            self.notify(Event("lost", 1, f"{self.options.shown()}: {error or type(error).__name__}"))

    def found(self) -> None:
        if not self.up:
            self.up = True
            self.notify(Event("connected", 1, self.options.shown()))

    async def close(self) -> None:
        self.closed = True
        while self.idle:
            con = self.idle.pop()
            with suppress(*BROKEN, asyncpg.PostgresError):
                await con.close(timeout=2)
        while self.turns:
            self._turn()

    # -- errors

    def translate(self, error: BaseException) -> errors.TidingsError:
        """A driver's error as ours."""
        where, why = self.options.shown(), str(error) or type(error).__name__
        state = getattr(error, "sqlstate", None) or ""
        if isinstance(error, errors.TidingsError):
            return error
        if state in ("28P01", "28000"):
            mend = "check user and password in the URL, and pg_hba.conf on the server"
            return BusUnavailable(f"{where} refused the login", why=why, mend=mend)
        if state == "3D000":
            return BusUnavailable(f"{where}: there is no such database", why=why, mend="createdb, or name another one")
        if state in ("42501", "25006"):
            schema = self.options.namespace
            mend = f"connect to the primary, as owner, or GRANT USAGE ON SCHEMA {schema} and SELECT ON {schema}.meta"
            if "for database" in why:  # it is not there yet
                mend = "let its owner open the bus once, or GRANT CREATE ON DATABASE"
            return errors.BusReadOnly(f"{where} cannot be written by this user", why=why, mend=mend)
        if state in ("53100", "53200"):
            return errors.BusFull(
                f"{where} has no room", why=f"{why}; what was accepted is safe", mend="make room there"
            )
        if state in ("26000", "42P05"):
            mend = "add statement_cache_size=0 to the URL"
            return BusUnavailable(f"{where} is behind a pooler that keeps no prepared statements", why=why, mend=mend)
        if state in ("42883", "42P01", "3F000", "XX001", "XX002"):
            mend = "was the schema dropped or changed? restore it from a backup, or name another namespace"
            if ".keep(" in why or ".records_" in why:  # it is of an earlier release
                mend = "let the schema's owner open the bus once with this release"
            return errors.BusCorrupt(f"{where} is damaged, or is no bus any more", why=why, mend=mend)
        if isinstance(error, asyncpg.PostgresError) and state[:2] not in ("08", "57", "53"):
            return BusError(f"{where} failed", why=f"{state}: {why}")
        mend = "is the server there, and this its address?"
        files = FILES.search(self.options.dsn + self.options.direct)  # else it is a socket that is not there
        tls = isinstance(error, (SSLError, asyncpg.ClientConfigurationError))
        if tls or (files and isinstance(error, FileNotFoundError)):
            mend = "sslrootcert=, sslcert= and sslkey= name PEM files, the first that of who signed its certificate"
        return BusUnavailable(f"{where} cannot be reached", why=why, mend=mend)


# -- the schema: made once, by whoever comes first, and checked by everybody

SCHEMA = 2
PARTS = ("schema", "publish", "claim", "groups", "retain", "inspect", "wire", "entries", "records")


@cache
def sql(name: str) -> str:
    """The text of ``<name>.sql``."""
    return files(__package__).joinpath(f"{name}.sql").read_text()


async def prepare(connections: Connections) -> str:
    """Make or check the schema; what a commit survives: the server's ``synchronous_commit``, or ``off`` without fsync.

    Raises ``BusUnavailable`` or the subclass that says why.
    """
    options = connections.options
    try:
        con = await connections.connect()
        try:
            return await _prepare(con, options)
        finally:
            await con.close()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise connections.translate(error) from error


async def _prepare(con: Connection, options: Postgres) -> str:
    async with con.transaction():
        await con.execute("SET LOCAL synchronous_commit = on")
        found = await _version(con, options)
        if found is None or (found == SCHEMA and not await _there(con, options, "records")):
            await con.execute(f"SELECT pg_advisory_xact_lock(hashtext('tidings {options.namespace}'))")
            found = await _version(con, options)  # unless another process was first
        if found is None:
            await _make(con, options)
        elif found > SCHEMA:
            what, why = f"{options.shown()} was made by a newer Tidings", f"its schema is {found}, this knows {SCHEMA}"
            raise errors.BusTooNew(what, why=why, mend="pip install --upgrade tidings")
        elif found < SCHEMA:
            what, why = f"{options.shown()} was made by an older Tidings", f"its schema is {found}, this reads {SCHEMA}"
            mend = "let its groups catch up with the version that made it, then name another namespace"
            raise errors.BusUnavailable(what, why=why, mend=mend)
        elif not await _there(con, options, "records"):
            with suppress(asyncpg.InsufficientPrivilegeError):  # its owner's next process will
                async with con.transaction():
                    await _run(con, options, "records")
    async with con.transaction():
        query = "SELECT current_setting('{}')"
        isolation = await con.fetchval(query.format("transaction_isolation"))
        if isolation != "read committed":
            mend = "ALTER ROLE … SET default_transaction_isolation = 'read committed'"
            raise errors.BusUnavailable(f"{options.shown()} is set to isolation {isolation!r}", mend=mend)
        if sys.byteorder != "little":
            raise errors.Unsupported("this bus needs a little-endian machine", mend="use another transport")
        if await con.fetchval(query.format("fsync")) == "off":
            return "off"
        return options.synchronous_commit or str(await con.fetchval(query.format("synchronous_commit")))


async def _there(con: Connection, options: Postgres, table: str) -> bool:
    """Looked up so that what came since this transaction began is seen: to_regclass would not."""
    query = "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = $1 AND relname = $2"
    return await con.fetchval(query, options.namespace, table) is not None


async def _version(con: Connection, options: Postgres) -> int | None:
    if not await _there(con, options, "meta"):
        return None
    try:
        found: int = await con.fetchval(f'SELECT version FROM "{options.namespace}".meta')
    except (asyncpg.UndefinedColumnError, asyncpg.InvalidTableDefinitionError) as error:
        mend = "name another namespace"
        raise errors.BusCorrupt(f"{options.shown()} is no bus", why="its `meta` is another's", mend=mend) from error
    return found


async def _make(con: Connection, options: Postgres) -> None:
    if not await con.fetchval("SELECT 1 FROM pg_namespace WHERE nspname = $1", options.namespace):
        await con.execute(f'CREATE SCHEMA "{options.namespace}"')
    try:
        await _run(con, options, *PARTS)
    except (asyncpg.DuplicateTableError, asyncpg.DuplicateFunctionError, asyncpg.DuplicateObjectError) as error:
        mend = "name another namespace"
        raise errors.BusCorrupt(f"{options.shown()} is another program's schema", why=str(error), mend=mend) from error
    await con.execute(f"SELECT grow({options.segment_rows})")


async def _run(con: Connection, options: Postgres, *parts: str) -> None:
    await con.execute(f'SET LOCAL search_path = "{options.namespace}"; SET LOCAL check_function_bodies = off')
    for part in parts:
        await con.execute(sql(part))
