"""Handlers that keep records: ``Table`` names and types them, ``State`` is what one run of a handler reads and writes.

What a run wrote, what it returned and the settlement of its input are one transaction (``keeping.py``). A record that
it read and wrote, and that somebody else changed in between, undoes all of it, and the handler runs again: so it reads
what is there now.
Outside of handlers there is ``transact``, and for what shall happen at a time ``due`` (``timers.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from msgspec import Struct

from .kernel.codec import Decode, decoder, encode
from .kernel.errors import InvalidName, InvalidOption, PayloadRefused, TooLarge
from .kernel.message import BINARY, JSON, TEXT
from .kernel.topics import check_topic
from .kernel.transport import Delivery
from .store import ABSENT, Record, Store, Write, new_version

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")

Place = tuple[str, str]


class Table(Generic[T]):
    """Records of one type, found by key: ``balances = Table("balances", Balance)``.

    ``type``: as a topic's payload. ``expires``: a record is removed some time after its ``due``. Apps that share a
    store share its tables: say ``Table("shop.balances", …)`` where that matters. Raises ``InvalidName``;
    ``InvalidHandler`` for a type that cannot be decoded.
    """

    __slots__ = ("_content_type", "_decode", "expires", "name", "type")

    def __init__(self, name: str, type: TypeForm[T], *, expires: bool = False) -> None:
        self.name, self.type, self.expires = check_topic(name), cast(Any, type), expires
        self._content_type = BINARY if type is bytes else TEXT if type is str else JSON
        self._decode: Decode = decoder(type)

    def __repr__(self) -> str:
        return f"Table({self.name!r}, {getattr(self.type, '__name__', self.type)})"

    def encode(self, value: T) -> bytes:
        """A record's bytes. Raises ``PayloadRefused``."""
        body, content_type = encode(value)
        if content_type != self._content_type:
            raise PayloadRefused(f"{self!r} cannot keep {type(value).__name__}", mend="give the table that type")
        return body

    def decode(self, body: bytes) -> T:
        """The value of a record. Raises ``Undecodable``."""
        return cast(T, self._decode(body, self._content_type))


class Kept(Struct):
    """A value as a run knows it: ``version`` None: it was written without being read; ``table`` None: not written.
    ``staged``: what another run wrote and has not yet committed, from which it was read."""

    value: Any
    version: int | None
    table: Table[Any] | None = None
    due: float | None = None
    staged: Write | None = None


_GONE: Any = object()
MAX_KEY, MAX_VALUE = 500, 16 * 1024 * 1024  # characters; bytes: what every store takes


def is_key(key: Any) -> bool:
    """Whether every store can keep a record by it."""
    if not isinstance(key, str) or "\0" in key or len(key) > MAX_KEY:
        return False
    return key.isascii() or not any("\ud800" <= character <= "\udfff" for character in key)


Ahead = dict[Place, Record | None]
"""What was read before anybody asked."""
Pending = dict[Place, "tuple[Write, State]"]
"""What runs of this process staged, and is not known to be committed."""


class State:
    """The records that one run of a handler reads and writes; of no use after it.

    Values are not to be changed in place: ``put`` them. Reading costs a look into the store, once a record. Of records
    that are only read, another run may have written a newer one by the time this one is committed.
    """

    __slots__ = ("_ahead", "_known", "_pending", "_store", "committed", "deliveries", "lost", "stale", "writes")

    def __init__(
        self, store: Store, pending: Pending, deliveries: Sequence[Delivery] = (), ahead: Ahead | None = None
    ) -> None:
        self._store, self._pending, self.deliveries = store, pending, deliveries
        self._ahead: Ahead = {} if ahead is None else ahead
        self._known: dict[Place, Kept] = {}
        self.writes: Sequence[Write] = ()
        self.committed = self.lost = self.stale = False

    async def get(self, table: Table[T], key: str) -> T | None:
        """The record's value, or None."""
        place = table.name, key
        if place not in self._known:
            if place in self._ahead:
                self.take(table, key, self._ahead.pop(place))
            else:
                await self._read(table, (key,))
        known = self._known[place]
        return None if known.value is _GONE else cast(T, known.value)

    async def get_many(self, table: Table[T], keys: Iterable[str]) -> dict[str, T]:
        """The values of those keys that have one, by key: one look for all."""
        keys = tuple(dict.fromkeys(keys))
        missing = tuple(key for key in keys if (table.name, key) not in self._known)
        if missing:
            await self._read(table, missing)
        found = ((key, self._known[table.name, key].value) for key in keys)
        return {key: value for key, value in found if value is not _GONE}

    async def scan(self, table: Table[T], prefix: str = "", limit: int = 1000) -> dict[str, T]:
        """Values by key, of keys that begin with ``prefix``, in order, with what this run wrote; at most ``limit``.

        Records that others add to the range meanwhile are not noticed, those that were read and are written are.
        """
        name = table.name
        changed = {key for t, key in (*self._known, *self._pending) if t == name and key.startswith(prefix)}
        stored = await self._store.scan(name, prefix, "", limit + len(changed))
        for record in stored:
            self.take(table, record.key, record)
        await self._read(table, tuple(key for key in changed if (name, key) not in self._known))
        keys = sorted({*changed, *(record.key for record in stored)}, key=str.encode)
        found = ((key, self._known[name, key].value) for key in keys)
        return dict([(key, value) for key, value in found if value is not _GONE][:limit])

    async def due(self, table: Table[T], until: float, limit: int = 1000) -> dict[str, T]:
        """Values by key of records whose ``due`` is at or before ``until``, the earliest first, as ``scan``."""
        name, times = table.name, dict[str, float]()
        mine = {key: kept.due for (t, key), kept in self._known.items() if t == name and kept.table is not None}
        staged = {key: write.due for (t, key), (write, _) in self._pending.items() if t == name}
        changed = staged | mine
        for record in await self._store.due(name, until, limit + len(changed)):
            if record.key not in changed and record.due is not None:
                self.take(table, record.key, record)
                times[record.key] = record.due
        await self._read(table, tuple(key for key in staged if (name, key) not in self._known))
        times.update((key, at) for key, at in changed.items() if at is not None and at <= until)
        found = ((key, self._known[name, key].value) for key in sorted(times, key=lambda key: (times[key], key)))
        return dict([(key, value) for key, value in found if value is not _GONE][:limit])

    def put(self, table: Table[T], key: str, value: T, *, due: float | None = None) -> None:
        """Write a record. ``due``: Unix seconds (``due`` and ``expires`` go by it), or any number to find it by."""
        self._write(table, key, value, due)

    def delete(self, table: Table[Any], key: str) -> None:
        """Remove a record, if it is there."""
        self._write(table, key, _GONE, None)

    def savepoint(self) -> Callable[[], None]:
        """A function that undoes what is written from now on."""
        known = dict(self._known)

        def undo() -> None:
            self._known = known

        return undo

    def _write(self, table: Table[Any], key: str, value: Any, due: float | None) -> None:
        if not is_key(key):
            mend = f"a str without NUL and lone surrogates, of at most {MAX_KEY} characters"
            raise InvalidName(f"a record's key cannot be {key!r:.100}", mend=mend)
        if due is not None and not (isinstance(due, int | float) and isfinite(due)):
            raise InvalidOption(f"due cannot be {due!r}", mend="Unix seconds: moment.timestamp(), or any other number")
        before = self._known.get((table.name, key))
        self._known[table.name, key] = Kept(value, before.version if before else None, table, due)

    async def _read(self, table: Table[Any], keys: Sequence[str]) -> None:
        name = table.name
        found = {key: self._ahead.pop((name, key)) for key in keys if (name, key) in self._ahead}
        asked = [key for key in keys if key not in found and (name, key) not in self._pending]
        if asked:
            found.update((record.key, record) for record in await self._store.records(name, asked))
        for key in keys:
            self.take(table, key, found.get(key))

    def take(self, table: Table[Any], key: str, record: Record | None) -> None:
        """Note what was read, unless this run knows it; what is on its way to the store is newer than what is there."""
        place = table.name, key
        if place in self._known:
            return
        staged = self._pending[place][0] if place in self._pending else None
        if staged is not None:
            body, version = staged.value, staged.leaves
        else:
            body, version = (record.value, record.version) if record else (None, ABSENT)
        self._known[place] = Kept(_GONE if body is None else table.decode(body), version, staged=staged)

    def unsettled(self, table: Table[Any], key: str) -> bool:
        """Whether what was read of a record is not committed yet, and perhaps never will be."""
        known = self._known.get((table.name, key))
        return known is not None and known.staged is not None and (table.name, key) in self._pending

    def wrote(self, table: Table[Any], key: str) -> bool:
        """Whether this run wrote or removed a record."""
        known = self._known.get((table.name, key))
        return known is not None and known.table is not None

    def stage(self) -> bool:
        """Turn what was written into ``writes``; False if another run of this process was faster: run again."""
        if self.stale:
            return False
        staged, pending = dict[Place, Write](), self._pending
        for place, kept in self._known.items():
            before = pending[place][0] if place in pending else None
            if kept.table is not None:
                if before is not None and kept.version not in (None, before.leaves):
                    return False
                body = None if kept.value is _GONE else kept.table.encode(kept.value)
                if body is not None and len(body) > MAX_VALUE:
                    what = f"record {place[1]!r:.100} of {place[0]!r} would have {len(body):,} bytes"
                    raise TooLarge(what, why=f"a record has at most {MAX_VALUE:,}")
                staged[place] = Write(*place, body, kept.version, kept.due, new_version())
            elif before is not None and kept.staged is not None:  # if that fails, so does what was made of it
                staged[place] = Write(*place, before.value, kept.version, before.due, new_version())
        self.writes = [*staged.values()]
        for place, write in staged.items():
            pending[place] = write, self
        return True

    def left_behind(self, place: Place, version: int | None) -> None:
        """A record has this version now (None: it is not known). If this run has read another, it is of no use."""
        known = self._known.get(place)
        self.stale |= known is not None and known.version is not None and known.version != version

    def expiring(self) -> set[str]:
        """Names of tables that were written and whose records expire."""
        return {kept.table.name for kept in self._known.values() if kept.table is not None and kept.table.expires}
