"""Records in the bus file, and units: what is written, published and settled in one transaction.

A unit is looked at whole before anything of it is done: is every record as expected, is every delivery still ours,
would every message be taken? So it never has to be undone, and its neighbours in the transaction are not touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import apsw
import msgspec
from msgspec import Struct

from tidings.kernel.errors import BusFull, TooLarge
from tidings.kernel.transport import Failure, Settlement
from tidings.store import ABSENT, Record, TableInfo, Unit, Write, conflict, spread

from . import translate
from .claims import Claims, Outgoing, fenced
from .log import CHUNK, Steps, sql

if TYPE_CHECKING:
    from .transport import SQLiteTransport

Place = tuple[str, str]

_COLUMNS = "SELECT key, value, version, due FROM record WHERE tbl = ?"
_AMONG = "key IN (SELECT value FROM json_each(?))"
_about = msgspec.json.Decoder(list[tuple[str, int, str | None, int]]).decode


@lru_cache(16)
def _upsert(rows: int) -> str:
    return "INSERT OR REPLACE INTO record VALUES " + ",".join(["(?,?,?,?,?)"] * rows)


class Ready(Struct):
    """A unit and, prepared on the loop, the rows of what it publishes: its own, and those of each settlement."""

    unit: Unit
    messages: Outgoing | TooLarge | None = None
    outgoing: dict[int, Outgoing | TooLarge] = {}


class Records(Steps):
    """The steps."""

    def __init__(self, claims: Claims) -> None:
        super().__init__(claims.con)
        self.claims = claims

    def commit(self, units: Sequence[Ready]) -> list[tuple[int, int, Failure]]:
        """Each unit whole or not at all. A failure comes with its unit's index and that of the settlement, -1: none."""
        known = self._versions(units)
        latest: dict[Place, Write] = {}
        failures: list[tuple[int, int, Failure]] = []
        settlements: list[Settlement] = []
        outgoing: dict[int, Outgoing | Failure] = {}
        for number, ready in enumerate(units):
            unit = ready.unit
            failed = self._stale(unit, known) or self._unwanted(ready) or self._full(ready.messages)
            if failed is not None:
                failures.append((number, *failed))
                continue
            for write in unit.writes:
                known[write.table, write.key] = write.leaves
                latest[write.table, write.key] = write
            outgoing.update({len(settlements) + i: rows for i, rows in ready.outgoing.items()})  # type: ignore[misc]
            settlements += unit.settlements
        self._write(latest)
        if settlements:
            self.claims.settle(settlements, outgoing)  # none of it can fail: it was looked at
        return failures

    def _versions(self, units: Sequence[Ready]) -> dict[Place, int]:
        """The versions that somebody expects something of, as they are."""
        keys: dict[str, set[str]] = {}
        for ready in units:
            for write in ready.unit.writes:
                if write.expect is not None:
                    keys.setdefault(write.table, set()).add(write.key)
        query = f"SELECT key, version FROM record WHERE tbl = ? AND {_AMONG}"
        rows = ((table, row) for table, some in keys.items() for row in self.rows(query, (table, json.dumps([*some]))))
        return {(table, key): version for table, (key, version) in rows}

    @staticmethod
    def _stale(unit: Unit, known: dict[Place, int]) -> tuple[int, Failure] | None:
        for write in unit.writes:
            if write.expect is not None and known.get((write.table, write.key), ABSENT) != write.expect:
                return -1, Failure(0, "rejected", conflict(write))
        return None

    def _unwanted(self, ready: Ready) -> tuple[int, Failure] | None:
        """The first of its settlements and messages that cannot be done."""
        claims = self.claims
        for index, settlement in enumerate(ready.unit.settlements):
            held, seq = settlement.delivery.session, settlement.delivery.token
            if not claims.holds(held, seq):
                return index, Failure(0, "fenced", fenced())
            rows = ready.outgoing.get(index)
            if rows is not None and (error := rows if isinstance(rows, TooLarge) else claims.refused(rows)):
                return index, Failure(0, "rejected", error)
        rows = ready.messages
        if rows is not None and (error := rows if isinstance(rows, TooLarge) else claims.refused(rows)):
            return -1, Failure(0, "rejected", error)
        return None

    def _full(self, messages: Outgoing | TooLarge | None) -> tuple[int, Failure] | None:
        """Append the unit's own messages, after everything else was looked at: why not, if there is no room."""
        try:
            if isinstance(messages, tuple):
                self.claims.log.append(messages[0], messages[1])
        except BusFull as error:
            return -1, Failure(0, "rejected", error)
        return None

    def _write(self, latest: dict[Place, Write]) -> None:
        gone = [place for place, write in latest.items() if write.value is None]
        if gone:
            self.con.executemany("DELETE FROM record WHERE tbl = ? AND key = ?", gone)
        kept: Iterator[Write] = (write for write in latest.values() if write.value is not None)
        while some := list(islice(kept, CHUNK)):
            self.run(_upsert(len(some)), [v for w in some for v in (w.table, w.key, w.version, w.due, w.value)])

    def purge(self, table: str, until: float | None, limit: int) -> int:
        """Remove records; how many."""
        chosen = "SELECT key FROM record WHERE tbl = :table" + (" AND due <= :until" if until is not None else "")
        query = f"DELETE FROM record WHERE tbl = :table AND key IN ({chosen} LIMIT :limit)"
        return self.run(query, {"table": table, "until": until, "limit": limit})


class Keeping:
    """What the transport offers as a store. Reading is done on the event loop: a look into the page cache."""

    def _select(self: SQLiteTransport, query: str, bindings: Sequence[Any]) -> list[Record]:  # type: ignore[misc]
        _ = self.writer
        try:
            return [Record(*row) for row in self.client.execute(query, bindings)]  # type: ignore[union-attr]
        except apsw.Error as error:
            raise translate(error, self.path) from error

    async def records(self: SQLiteTransport, table: str, keys: Sequence[str]) -> Sequence[Record]:  # type: ignore[misc]
        if len(keys) == 1:
            return self._select(f"{_COLUMNS} AND key = ?", (table, keys[0]))
        bindings, con = (table, json.dumps([*keys])), self.client
        _ = self.writer
        try:
            about, values = con.execute(sql("lookup"), bindings).get  # type: ignore[union-attr]
        except apsw.TooBigError:  # together; one by one they are not
            return self._select(f"{_COLUMNS} AND {_AMONG}", bindings)
        except apsw.Error as error:
            raise translate(error, self.path) from error
        found, at = [], 0
        for key, version, due, length in _about(about):
            found.append(Record(key, values[at : at + length], version, None if due is None else float(due)))
            at += length
        return found

    async def scan(  # type: ignore[misc]
        self: SQLiteTransport, table: str, prefix: str = "", after: str = "", limit: int = 1000
    ) -> Sequence[Record]:
        bounds = (table, prefix, prefix + chr(0x10FFFF), after, after, limit)
        where = "key >= ? AND key < ? AND (key > ? OR ? = '')"
        return self._select(f"{_COLUMNS} AND {where} ORDER BY key LIMIT ?", bounds)

    async def due(self: SQLiteTransport, table: str, until: float, limit: int = 1000) -> Sequence[Record]:  # type: ignore[misc]
        return self._select(f"{_COLUMNS} AND due <= ? ORDER BY due, key LIMIT ?", (table, until, limit))

    async def commit(self: SQLiteTransport, units: Sequence[Unit]) -> Sequence[Failure]:  # type: ignore[misc]
        failed = await commit(self, units)
        return [Failure(number, failure.kind, failure.error) for number, _, failure in failed]

    async def tables(self: SQLiteTransport) -> Sequence[TableInfo]:  # type: ignore[misc]
        query = (
            "SELECT tbl, count(*), sum(length(CAST(key AS BLOB)) + length(value)) FROM record GROUP BY tbl ORDER BY tbl"
        )
        return await self._look(lambda steps: [TableInfo(*row) for row in steps.rows(query)])

    async def purge(  # type: ignore[misc]
        self: SQLiteTransport, table: str, until: float | None = None, limit: int = 10_000
    ) -> int:
        return await self.writer.submit(partial(self.kept.purge, table, until, limit))


async def commit(transport: SQLiteTransport, units: Sequence[Unit]) -> list[tuple[int, int, Failure]]:
    """Prepare and commit; failures by unit and settlement."""
    ready = [
        Ready(
            unit,
            transport.prepare(unit.messages) if unit.messages else None,
            {i: transport.prepare(s.outgoing) for i, s in enumerate(unit.settlements) if s.outgoing},
        )
        for unit in units
    ]
    return await transport.writer.submit(partial(transport.kept.commit, ready))


async def settle(transport: SQLiteTransport, units: Sequence[Unit]) -> list[Failure]:
    """Commit units of settlements; a failure's index counts those of all units through."""
    failed = {number: (index, failure) for number, index, failure in await commit(transport, units)}
    failures: list[Failure] = []
    first = 0
    for number, unit in enumerate(units):
        if number in failed:
            failures += spread(unit, first, *failed[number])
        first += len(unit.settlements)
    return failures
