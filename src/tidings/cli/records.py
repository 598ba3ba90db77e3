"""``tidings records``."""

from __future__ import annotations

import asyncio
import json as jsons
import time
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter
from msgspec.structs import asdict

from tidings.kernel.errors import NotFound, Unsupported, nearest
from tidings.store import Record, Store

from . import show
from ._asking import agreed
from ._bus import Source, find_source, opened
from ._options import DryRun, Json, Url, Yes, flag

app = cyclopts.App(name="records", help="Records that handlers keep: list, show, purge.")

PAGE = 1000  # records read at once


@app.default
def ls(*, url: Url = None, json: Json = False) -> None:
    """List the tables that handlers keep records in, and how large they are.

    size: bytes of keys and values. What begins with _ is kept by Tidings itself.
    """
    asyncio.run(_list(find_source(url), json))


async def _list(source: Source, json: bool) -> None:
    async with opened(source) as app:
        tables = await _store(app.bus()).tables()
    if json:
        show.document([asdict(table) for table in tables])
    elif tables:
        rows = [(table.name, f"{table.records:,}", f"{table.size:,}") for table in tables]
        show.table(("table", "records", "size"), rows, right=("records", "size"))
    else:
        show.note("no records: handlers that take `state: State` keep some")


@app.command(name="show")
def show_some(
    table: Annotated[str, Parameter(help="The table.")],
    prefix: Annotated[str, Parameter(help="Keys that begin so.")] = "",
    /,
    *,
    limit: Annotated[int, Parameter(help="At most so many.")] = 20,
    url: Url = None,
    json: Json = False,
) -> None:
    """Show records of a table, by key: their values, and when they are due."""
    asyncio.run(_show(find_source(url), table, prefix, max(1, limit), json))


async def _show(source: Source, table: str, prefix: str, limit: int, json: bool) -> None:
    async with opened(source) as app:
        store = _store(app.bus())
        await _known(store, table)
        found = await store.scan(table, prefix, "", limit)
    if json:
        show.document([{"key": record.key, "value": _value(record), "due": record.due} for record in found])
        return
    for record in found:
        due = "" if record.due is None else f"  due {show.stamp(record.due)}"
        show.say(f"{record.key}{due}  {show.clean(record.value.decode(errors='replace'))}")


def _value(record: Record) -> Any:
    """JSON as what it is, text as text, other bytes in hex."""
    try:
        return jsons.loads(record.value)
    except ValueError:
        try:
            return record.value.decode()
        except UnicodeDecodeError:
            return record.value.hex()


@app.command
def purge(
    table: Annotated[str, Parameter(help="The table.")],
    /,
    *,
    due: Annotated[bool, flag("Only records whose time has passed.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Remove the records of a table. Handlers that look for them begin anew, as if there had never been any."""
    asyncio.run(_purge(find_source(url), table, time.time() if due else None, yes, dry_run, json))


async def _purge(source: Source, table: str, until: float | None, yes: bool, dry_run: bool, json: bool) -> None:
    async with opened(source) as app:
        store = _store(app.bus())
        count = await _known(store, table)
        which = "records that are due" if until is not None else f"{count:,} records"
        purged = 0
        if not dry_run and (yes or agreed(f"remove the {which} of {table}?")):
            while some := await store.purge(table, until, PAGE):
                purged += some
    if json:
        show.document({"table": table, "records": count, "purged": purged, "dry_run": dry_run})
    elif dry_run:
        show.say(f"would remove the {which} of {table}")
    else:
        show.say(f"removed {purged:,} record{'s' * (purged != 1)} of {table}")


async def _known(store: Store, table: str) -> int:
    """How many records a table has. Raises ``NotFound``."""
    sizes = {info.name: info.records for info in await store.tables()}
    if table not in sizes:
        raise NotFound(f"no table {table!r}", mend=nearest(table, sizes) or "`tidings records` lists what there is")
    return sizes[table]


def _store(bus: Any) -> Store:
    if not isinstance(bus, Store):
        kind = type(bus).__name__.removesuffix("Transport")
        mend = "look into the store that its app has beside it: --url sqlite:///state.db"
        raise Unsupported(f"{kind} keeps no records", why="memory, SQLite and PostgreSQL do", mend=mend)
    return bus
