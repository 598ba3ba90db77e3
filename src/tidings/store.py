"""State beside messages: what a bus offers that keeps records, too.

A *store* is a bus that also keeps records: typed by whoever writes them, found by table and key, each with a version
and perhaps a time at which it is due. What a handler changed, what it published and the settlement of what it handled
belong together, and are one ``Unit``: all of it happens, or nothing. Memory, SQLite and PostgreSQL are stores.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from random import getrandbits
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct

from .kernel.errors import BusError, Conflict
from .kernel.message import Message
from .kernel.transport import Failure, Settlement

ABSENT = 0  # the version of a record that is not there


class Record(Struct, frozen=True):
    """A record as stored. ``due``: Unix seconds, or whatever its writer orders by."""

    key: str
    value: bytes
    version: int
    due: float | None = None


class Write(Struct, frozen=True):
    """One change. ``value=None`` removes. ``expect``: the version that must be there, ``ABSENT`` for none, None for
    whatever is there. ``version``: what it has afterwards; never used before, so a record that was removed and made
    anew is not taken for the old one."""

    table: str
    key: str
    value: bytes | None
    expect: int | None = None
    due: float | None = None
    version: int = 0

    @property
    def leaves(self) -> int:
        """The version that is there afterwards."""
        return ABSENT if self.value is None else self.version


class Unit(Struct, frozen=True):
    """What happens as a whole or not at all: changes, messages (sealed), and settlements with their own outgoing."""

    writes: Sequence[Write] = ()
    messages: Sequence[Message[Any]] = ()
    settlements: Sequence[Settlement] = ()


class TableInfo(Struct, frozen=True):
    """A table as the store sees it; ``size``: bytes of keys and values."""

    name: str
    records: int
    size: int


def conflict(write: Write) -> Conflict:
    """The error of a write whose record is not as it expects."""
    error = Conflict(f"record {write.key!r} of {write.table!r} was changed meanwhile")
    error.table, error.key = write.table, write.key
    return error


def spread(unit: Unit, first: int, index: int, failure: Failure) -> list[Failure]:
    """The failures of a unit that did not happen, for one of its settlements (``index``; -1: something else): the
    others are still held. ``first``: how many settlements the units before have."""
    if index < 0:
        kind: Any = "unknown" if isinstance(failure.error, Conflict) else failure.kind
        return [Failure(first + i, kind, failure.error) for i in range(len(unit.settlements))]
    why = BusError("another of its unit could not be settled", why=str(failure.error))
    others = [Failure(first + i, "unknown", why) for i in range(len(unit.settlements)) if i != index]
    return [*others, Failure(first + index, failure.kind, failure.error)]


class Versions:
    """Versions that no record has had, never ``ABSENT``: 61 random bits per process, then a counter, as for ids."""

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.next = count(getrandbits(61) + 1).__next__

    def __call__(self) -> int:
        return self.next()


new_version = Versions()


@runtime_checkable
class Store(Protocol):
    """Buses that keep records. Keys sort by their UTF-8 bytes. Reading sees all that was committed before."""

    async def records(self, table: str, keys: Sequence[str]) -> Sequence[Record]:
        """Those of ``keys`` that exist, in any order."""

    async def scan(self, table: str, prefix: str = "", after: str = "", limit: int = 1000) -> Sequence[Record]:
        """Records whose key begins with ``prefix`` and is greater than ``after``, by key."""

    async def due(self, table: str, until: float, limit: int = 1000) -> Sequence[Record]:
        """Records with ``due`` at or before ``until``, the earliest first."""

    async def commit(self, units: Sequence[Unit]) -> Sequence[Failure]:
        """Each unit (without settlements) on its own; a failure's index is its unit's. ``rejected``, with ``Conflict``
        as the error, when a record is not as expected."""

    async def tables(self) -> Sequence[TableInfo]:
        """All tables that have records, by name."""

    async def purge(self, table: str, until: float | None = None, limit: int = 10_000) -> int:
        """Remove up to ``limit`` records that are due at or before ``until`` (None: any); how many were."""


@runtime_checkable
class Atomic(Protocol):
    """Consumers of a store, which settle together with what was written."""

    async def commit(self, units: Sequence[Unit]) -> Sequence[Failure]:
        """Each unit on its own, as ``Consumer.settle`` would settle its settlements. A failure's index counts the
        settlements of all units through; one that cannot happen fails all of its unit."""


@runtime_checkable
class Enlisting(Protocol):
    """Buses that can publish in a transaction of the user's own: drafts are there once it commits, or never were."""

    async def publish_in(self, connection: Any, *messages: Message[Any], source: str = "") -> None: ...
    def publish_in_sync(self, connection: Any, *messages: Message[Any], source: str = "") -> None: ...
