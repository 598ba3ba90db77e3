"""Records in plain dictionaries: what makes ``memory://`` a store, and the reference of what a store does."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest
from itertools import islice
from typing import Any

from tidings.kernel.transport import Failure, Settlement
from tidings.store import ABSENT, Record, TableInfo, Unit, conflict, spread


class Tables:
    """Records by table and key."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Record]] = {}

    def __getitem__(self, table: str) -> dict[str, Record]:
        return self.tables.setdefault(table, {})

    def stale(self, unit: Unit) -> Failure | None:
        """Why a unit cannot be written; looks only."""
        latest: dict[tuple[str, str], int] = {}
        for write in unit.writes:
            place = write.table, write.key
            found = self[write.table].get(write.key)
            version = latest.get(place, found.version if found else ABSENT)
            if write.expect is not None and version != write.expect:
                return Failure(0, "rejected", conflict(write))
            latest[place] = write.leaves
        return None

    def write(self, unit: Unit) -> None:
        for write in unit.writes:
            if write.value is None:
                self[write.table].pop(write.key, None)
            else:
                self[write.table][write.key] = Record(write.key, write.value, write.version, write.due)


class Keeping:
    """A transport's side. ``store``: its log, which has ``tables``."""

    store: Any
    clock: Any
    notify: Any

    async def records(self, table: str, keys: Sequence[str]) -> Sequence[Record]:
        found = self.store.tables[table]
        return [found[key] for key in keys if key in found]

    async def scan(self, table: str, prefix: str = "", after: str = "", limit: int = 1000) -> Sequence[Record]:
        found = self.store.tables[table]
        keys = sorted(key for key in found if key.startswith(prefix) and (key > after or not after))
        return [found[key] for key in keys[:limit]]

    async def due(self, table: str, until: float, limit: int = 1000) -> Sequence[Record]:
        timed = [record for record in self.store.tables[table].values() if record.due is not None]
        return nsmallest(limit, (r for r in timed if r.due <= until), key=lambda record: (record.due, record.key))

    async def commit(self, units: Sequence[Unit]) -> Sequence[Failure]:
        failures = []
        for number, unit in enumerate(units):
            if failure := self._commit(unit):
                failures.append(Failure(number, failure.kind, failure.error))
        return failures

    def _commit(self, unit: Unit) -> Failure | None:
        failure: Failure | None = self.store.tables.stale(unit)
        if failure is not None:
            return failure
        if unit.messages and (error := self.store.refuse(unit.messages)):
            return Failure(0, "rejected", error)
        self.store.tables.write(unit)
        if unit.messages:
            self.store.append(unit.messages, self.clock.now(), self.notify)
        return None

    async def tables(self) -> Sequence[TableInfo]:
        sizes = {
            name: [len(r.key.encode()) + len(r.value) for r in t.values()]
            for name, t in self.store.tables.tables.items()
        }
        return [TableInfo(name, len(found), sum(found)) for name, found in sorted(sizes.items()) if found]

    async def purge(self, table: str, until: float | None = None, limit: int = 10_000) -> int:
        found = self.store.tables[table]
        chosen = (k for k, r in found.items() if until is None or (r.due is not None and r.due <= until))
        keys = list(islice(chosen, limit))
        for key in keys:
            del found[key]
        return len(keys)


class Committing:
    """A group consumer's side. ``_unfit``: why a settlement cannot be done, looking only; ``_settle`` does it."""

    transport: Any
    _unfit: Any
    _settle: Any

    async def commit(self, units: Sequence[Unit]) -> Sequence[Failure]:
        failures: list[Failure] = []
        first = 0
        for unit in units:
            if failed := self._commit(unit):
                failures += spread(unit, first, *failed)
            first += len(unit.settlements)
        return failures

    def _commit(self, unit: Unit) -> tuple[int, Failure] | None:
        settlements: Sequence[Settlement] = unit.settlements
        for index, settlement in enumerate(settlements):
            if failure := self._unfit(index, settlement):
                return index, failure
        if failure := self.transport._commit(unit):
            return -1, failure
        for index, settlement in enumerate(settlements):
            self._settle(index, settlement)
        return None
