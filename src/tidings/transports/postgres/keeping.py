"""PostgreSQL as a store: records are read in a query, and written with what is settled and published (``records.sql``).

Units are jobs of the writer, among those of plain publishing and settling: what has gathered is one call of ``keep``,
one transaction. Units of a batch follow each other here, before anything is sent: of a record that several write, the
database sees what the first expects and what the last leaves. When one of them cannot happen, nothing has: it is
remembered why, and all is put together anew and sent again without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from tidings.kernel.errors import BusError, InvalidOption, NotOpen, TooLarge
from tidings.kernel.message import Message
from tidings.kernel.transport import Failure, Settlement
from tidings.store import Record, TableInfo, Unit, Write, conflict, spread

from .connections import Unanswered
from .hands import Held, Outgoing, fenced, literal

if TYPE_CHECKING:
    from .transport import PostgresTransport
    from .writer import Batch

MAX_KEY, MAX_VALUE, MAX_UNIT = 2_000, 2**24, 2**28  # bytes: of a table's name and a key; of a value; of a unit
MOST_KEYS, MOST_BYTES = 5_000, 2**25  # of a query; of a call, if it is not for one unit

Place = tuple[str, str]
Failed = tuple[int, Failure]
"""Why a unit did not happen, and the index of the settlement that could not; -1: something else."""


def refuse(table: str, *keys: str) -> None:
    """Raise ``InvalidOption`` for text that cannot be stored."""
    for key in keys:
        try:
            fits = "\0" not in table and "\0" not in key and len(f"{table}{key}".encode()) <= MAX_KEY
        except UnicodeEncodeError:
            fits = False
        if not fits:
            mend = f"Unicode without NUL, up to {MAX_KEY:,} bytes with the table's name"
            raise InvalidOption(f"no key of a record in {table[:80]!r}: {key[:80]!r}", mend=mend)


class Ready(Struct):
    """A unit, the rows of what it publishes by settlement (-1: of its own), and why it cannot be, if that is known."""

    unit: Unit
    outgoing: dict[int, Outgoing]
    size: int
    refused: Failed | None = None


def _refused(unit: Unit, outgoing: dict[int, Outgoing], size: int) -> Failed | None:
    for index, goes in outgoing.items():
        if goes.refused is not None:
            return index, Failure(0, "rejected", goes.refused)
    try:
        for write in unit.writes:
            refuse(write.table, write.key)
            if write.value is not None and len(write.value) > MAX_VALUE:
                what = f"the record {write.key!r} in {write.table!r} has {len(write.value):,} bytes"
                raise TooLarge(what, why=f"this bus keeps {MAX_VALUE:,}", mend="keep where the data can be found")
        if size > MAX_UNIT:
            what = f"{size:,} bytes are to be kept and published at once"
            raise TooLarge(what, why=f"this bus does {MAX_UNIT:,}", mend="handle fewer messages at once")
    except (InvalidOption, TooLarge) as error:
        return -1, Failure(0, "rejected", error)
    return None


class Writes:
    """What a batch does to records: what the first write of each expects, and the last."""

    def __init__(self, before: Writes | None = None) -> None:
        self.known: dict[Place, int] = before.known if before else {}  # versions, as they were when nothing happened
        self.lost: list[Held] = before.lost if before else []
        self.expects: dict[Place, int | None] = {}
        self.latest: dict[Place, Write] = {}
        self.places: list[Place] = []
        self.units = False  # whether there are any

    def stale(self, unit: Unit) -> Write | None:
        """The first write that expects what cannot be there, for all that is known here."""
        mine: dict[Place, Write] = {}
        for write in unit.writes:
            place = write.table, write.key
            if write.expect is not None:
                last = mine.get(place) or self.latest.get(place)
                if (last.leaves if last else self.known.get(place, write.expect)) != write.expect:
                    return write
            mine[place] = write
        return None

    def add(self, unit: Unit) -> None:
        self.units = True
        for write in unit.writes:
            place = write.table, write.key
            if place not in self.latest:
                self.expects[place] = write.expect
            self.latest[place] = write

    def arguments(self) -> list[Any]:
        """Of ``keep``, after those of ``apply``."""
        self.places = places = sorted(self.latest)  # by code points: as the database does by bytes
        tables = {table: n for n, table in enumerate({table: None for table, _ in places}, 1)}
        writes = [self.latest[place] for place in places]
        values = [write.value for write in writes]
        sizes = [-1 if value is None else len(value) for value in values]
        return [
            list(tables),
            literal([tables[table] for table, _ in places]),
            [key for _, key in places],
            literal([self.expects[place] for place in places]),
            literal([write.version for write in writes]),
            literal([None if write.due is None else float(write.due) for write in writes]),
            literal(list(accumulate((max(size, 0) for size in sizes[:-1]), initial=1)) if sizes else []),
            literal(sizes),
            b"".join(value for value in values if value is not None),
        ]

    def learned(self, batch: Batch, row: Any) -> Writes:
        """Nothing of the batch has happened: what the next one has to know."""
        batch.undo()
        held = *batch.claims.values(), *(held for held, _ in batch.taken)
        for each, mine in zip(held, row["ok"], strict=True):
            if not mine:
                batch.hands.drop(each)
                self.lost.append(each)
        for place, version in zip(row["stale"] or (), row["versions"] or (), strict=True):
            self.known[self.places[place - 1]] = version
        return Writes(self)


class Units:
    """A job of the writer: units, each whole or not at all. Answers why each did not happen that did not."""

    def __init__(self, units: Sequence[Ready], future: asyncio.Future[dict[int, Failed]]) -> None:
        self.units, self.future = units, future
        self.why: dict[int, Failed] = {}
        self.rows = sum(len(goes.rows) for ready in units for goes in ready.outgoing.values())
        self.bytes = sum(ready.size for ready in units)

    def stage(self, batch: Batch) -> None:
        self.why = {}
        settlements, outgoing, seen = list[Settlement](), dict[int, Outgoing](), set[tuple[Any, Any]]()
        for number, ready in enumerate(self.units):
            if failed := ready.refused or _unwanted(ready.unit, batch, seen):
                self.why[number] = failed
                continue
            batch.writes.add(ready.unit)
            for index, goes in ready.outgoing.items():
                if index < 0:
                    batch.publish(goes.rows)
                else:
                    outgoing[len(settlements) + index] = goes
            settlements += ready.unit.settlements
        batch.settle(settlements, outgoing)  # each was looked at: it is ours

    def done(self, refused: set[int]) -> None:
        if not self.future.done():
            self.future.set_result(self.why)

    def failed(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _unwanted(unit: Unit, batch: Batch, seen: set[tuple[Any, Any]]) -> Failed | None:
    """Why a unit cannot happen after those before it, for all that is known here. ``seen``: what those settle."""
    mine = set[tuple[Any, Any]]()
    for index, settlement in enumerate(unit.settlements):
        its = settlement.delivery.session, settlement.delivery.token
        if its in seen or its in mine or not batch.hands.mine(*its):
            return index, Failure(0, "fenced", fenced())
        mine.add(its)
    if write := batch.writes.stale(unit):
        return -1, Failure(0, "rejected", conflict(write))
    seen |= mine
    return None


class Reader:
    """Reads records. What is asked for in one turn of the loop, or while a query is under way, is one query."""

    def __init__(self, transport: PostgresTransport) -> None:
        self.transport, self.busy = transport, False
        self.asked: list[tuple[str, Sequence[str], asyncio.Future[Sequence[Record]]]] = []

    def ask(self, table: str, keys: Sequence[str]) -> asyncio.Future[Sequence[Record]]:
        loop = self.transport.loop
        self.asked.append((table, keys, future := loop.create_future()))
        if not self.busy:
            self.busy = True
            loop.create_task(self._read())
        return future

    async def _read(self) -> None:
        try:
            while asked := self.asked:
                self.asked = []
                try:
                    found = await self._found({(table, key) for table, keys, _ in asked for key in keys})
                except Exception as error:
                    for *_, future in asked:
                        if not future.done():
                            future.set_exception(error)
                else:
                    for table, keys, future in asked:
                        if not future.done():
                            places = ((table, key) for key in dict.fromkeys(keys))
                            future.set_result([found[place] for place in places if place in found])
        finally:
            self.busy = False

    async def _found(self, wanted: set[Place]) -> dict[Place, Record]:
        places, found = list(wanted), dict[Place, Record]()
        for start in range(0, len(places), MOST_KEYS):
            some = places[start : start + MOST_KEYS]
            tables = {table: n for n, table in enumerate({table for table, _ in some}, 1)}
            asked = list(tables), literal([tables[table] for table, _ in some]), [key for _, key in some]
            for n, *row in await self.transport.rows("records_of($1, $2::text::int[], $3)", *asked):
                found[some[n - 1]] = Record(*row)
        return found


class Keeping:
    """What the transport offers as a store."""

    def _opened(self: PostgresTransport) -> None:  # type: ignore[misc]
        if self.client is None:
            raise NotOpen(f"the bus {self.options.shown()} is not open")

    async def rows(self: PostgresTransport, function: str, *args: Any) -> Any:  # type: ignore[misc]
        self._opened()
        query = f'SELECT * FROM "{self.options.namespace}".{function}'
        return await self.connections.call(query, *args, repeat=True, rows=True)

    async def records(self: PostgresTransport, table: str, keys: Sequence[str]) -> Sequence[Record]:  # type: ignore[misc]
        self._opened()
        refuse(table, *keys)
        return await self.reader.ask(table, keys)

    async def scan(  # type: ignore[misc]
        self: PostgresTransport, table: str, prefix: str = "", after: str = "", limit: int = 1000
    ) -> Sequence[Record]:
        refuse(table, prefix, after)
        rows = await self.rows("records_from($1, $2, $3, $4, $5)", table, prefix, _below(prefix), after, limit)
        return [Record(*row) for row in rows]

    async def due(self: PostgresTransport, table: str, until: float, limit: int = 1000) -> Sequence[Record]:  # type: ignore[misc]
        refuse(table, "")
        return [Record(*row) for row in await self.rows("records_due($1, $2, $3)", table, until, limit)]

    async def commit(self: PostgresTransport, units: Sequence[Unit]) -> Sequence[Failure]:  # type: ignore[misc]
        self._opened()
        failures = list[Failure]()
        for first, some in _parts(units):
            try:
                failed = await _commit(self, some)
            except BusError as error:
                kind: Any = "unknown" if isinstance(error, Unanswered) else "rejected"
                failures += (Failure(first + number, kind, error) for number in range(len(some)))
            else:
                failures += (Failure(first + number, why.kind, why.error) for number, (_, why) in failed.items())
        return failures

    async def tables(self: PostgresTransport) -> Sequence[TableInfo]:  # type: ignore[misc]
        return [TableInfo(*row) for row in await self.rows("records_info()")]

    async def purge(  # type: ignore[misc]
        self: PostgresTransport, table: str, until: float | None = None, limit: int = 10_000
    ) -> int:
        self._opened()
        refuse(table, "")
        return int(await self.value("records_purge", table, until, limit))


def _below(prefix: str) -> str | None:
    """The first text after all that begin with a prefix; None: there is none."""
    head = prefix.rstrip(chr(0x10FFFF))
    if not head:
        return None
    last = ord(head[-1]) + 1
    return head[:-1] + chr(0xE000 if last == 0xD800 else last)  # no surrogates


async def prepared(transport: PostgresTransport, each: Sequence[Sequence[Message[Any]]]) -> list[Outgoing]:
    """``transport.prepare`` of each, in one go unless one is refused."""
    if not each:
        return []
    whole = await transport.prepare([message for messages in each for message in messages])
    if whole.refused is not None:
        return [await transport.prepare(messages) for messages in each]
    rows = iter(whole.rows)
    return [Outgoing(some := list(islice(rows, len(messages))), sum(len(row[3]) for row in some)) for messages in each]


def _parts(units: Sequence[Unit]) -> Iterator[tuple[int, list[Unit]]]:
    """Units as the database takes them at once, and the number of the first."""
    first, some, size = 0, list[Unit](), 0
    for unit in units:
        its = sum(len(message.body) for messages in (unit.messages, *_outgoing(unit).values()) for message in messages)
        its += sum(len(write.value) for write in unit.writes if write.value is not None)
        if some and size + its > MOST_BYTES:
            yield first, some
            first, some, size = first + len(some), [], 0
        some.append(unit)
        size += its
    if some:
        yield first, some


def _outgoing(unit: Unit) -> dict[int, Sequence[Message[Any]]]:
    return {index: settlement.outgoing for index, settlement in enumerate(unit.settlements) if settlement.outgoing}


async def _commit(transport: PostgresTransport, units: Sequence[Unit]) -> dict[int, Failed]:
    """Why each unit did not happen that did not, by number."""
    wanted = [_outgoing(unit) | ({-1: unit.messages} if unit.messages else {}) for unit in units]
    goes = iter(await prepared(transport, [messages for each in wanted for messages in each.values()]))
    outgoing = [{index: next(goes) for index in each} for each in wanted]
    return await transport.writer.commit([_ready(unit, its) for unit, its in zip(units, outgoing, strict=True)])


def _ready(unit: Unit, outgoing: dict[int, Outgoing]) -> Ready:
    size = sum(goes.size for goes in outgoing.values()) + sum(len(w.value) for w in unit.writes if w.value is not None)
    ready = Ready(unit, outgoing, size, _refused(unit, outgoing, size))
    if ready.refused is None and unit.messages and unit.settlements:  # in this order, in one place
        first, more = outgoing.pop(-1), outgoing.get(0, Outgoing())
        outgoing[0] = Outgoing([*first.rows, *more.rows])
    return ready


async def settle(transport: PostgresTransport, units: Sequence[Unit]) -> list[Failure]:
    """Commit units of settlements; a failure's index counts those of all units through."""
    failures, first = list[Failure](), 0
    for _, some in _parts(units):
        failed = await _commit(transport, some)
        for number, unit in enumerate(some):
            if number in failed:
                failures += spread(unit, first, *failed[number])
            first += len(unit.settlements)
    return failures
