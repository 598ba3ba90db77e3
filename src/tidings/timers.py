"""What writes records outside of handlers: ``transact``, and what shall happen at a time.

A record may have a ``due`` time, by which the store finds it: there is no timer per record, and none is lost with a
process. One replica at a time looks, by a lease that is a record, too; should two look at once, versions decide.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from .inject import name_of
from .kernel.clock import current_clock
from .kernel.codec import seal
from .kernel.errors import Conflict, Duration, InvalidHandler
from .kernel.message import Message, new_id
from .kernel.outcome import Backoff
from .relay import Way, store_of
from .state import State, Table
from .store import ABSENT, Record, Store, Unit, Write, new_version

if TYPE_CHECKING:
    from .app import App
    from .router import Router

log = logging.getLogger("tidings")

Result = Message[Any] | Iterable[Message[Any]] | None
Fired = TypeVar("Fired", bound=Callable[..., Any])

TRIES = 100  # runs whose records are changed under them
BATCH = 500  # records at once
LEASE, LEASES = 5.0, "_leases"  # seconds


async def transact(app: App, fn: Callable[[State], Awaitable[Result]], *, bus: str = "") -> None:
    """Call ``fn`` and commit what it wrote, with the messages it returned; again while its records are changed by
    others. Messages to a bus that is not the store's own leave through a relay, which an app that consumes has.

    Raises ``Unsupported`` if no bus of the app keeps records, ``Conflict`` after 100 tries, what ``fn`` raises, and
    ``BusError`` when the store cannot.
    """
    store, way = store_of(app, bus)
    for _ in range(TRIES):
        state = State(store, {})
        sent = way.route(_sealed(app, await fn(state)))
        state.stage()
        failures = await store.commit([Unit(state.writes, sent)])
        if not failures:
            return
        if not isinstance(failures[0].error, Conflict):
            break
    raise failures[0].error


def _sealed(app: App, result: Result) -> list[Message[Any]]:
    drafts = [] if result is None else [result] if isinstance(result, Message) else result
    return [seal(draft, now=current_clock().now(), source=app.name) for draft in drafts]


def due(
    app: Router, table: Table[Any], *, every: Duration = 0.1, group: str = "", bus: str = ""
) -> Callable[[Fired], Fired]:
    """Call an async function ``(key, value, state)`` for each record whose ``due`` has passed, by the wall clock.

    What it writes and returns is committed at once; a record it leaves as it is is removed. If it raises, its record is
    tried again later, for ever, and that is logged. ``every``: how often to look. One replica at a time looks; when it
    dies, another does after at most 5 s. ``group``: what the looking is called (``"<app>.<function>-due"``).
    """

    from .app import App

    def decorate(fn: Fired) -> Fired:
        if not inspect.iscoroutinefunction(fn):
            raise InvalidHandler(f"{name_of(fn)}() cannot be called for what is due", mend="write it with async def")
        timer = Timer(table, fn, bus)

        async def look(app: App) -> None:
            await timer.look(app)

        look.__name__ = look.__qualname__ = f"{fn.__name__}-due"
        look.__annotations__ = {"app": App}
        look.keeps = True  # type: ignore[attr-defined]
        app.every(every, each=True, group=group)(look)
        return fn

    return decorate


class Timer:
    """Looks for what is due in one table, in one process."""

    def __init__(self, table: Table[Any], fn: Callable[..., Awaitable[Result]], bus: str) -> None:
        self.table, self.fn, self.bus, self.me = table, fn, bus, new_id().encode()
        self.failures: dict[str, int] = {}

    async def look(self, app: App) -> None:
        """Call it for all that is due now, if it is this process's turn."""
        store, way = store_of(app, self.bus)
        now = current_clock().now()
        more = await self._mine(store, f"{app.name}.{self.table.name}.{self.fn.__name__}", now)
        while more:
            records = await store.due(self.table.name, now, BATCH)
            units = [await self._unit(app, store, way, record) for record in records]
            failed = {failure.index for failure in await store.commit(units)} if units else set()
            more = len(records) == BATCH and len(failed) < BATCH  # who was changed meanwhile comes again, if still due

    async def _mine(self, store: Store, name: str, now: float) -> bool:
        held = await store.records(LEASES, [name])
        until = (held[0].due or 0.0) if held else 0.0
        if held and until > now and held[0].value != self.me:
            return False
        if held and held[0].value == self.me and until - now > LEASE / 2:
            return True
        version = held[0].version if held else ABSENT
        write = Write(LEASES, name, self.me, version, now + LEASE, new_version())
        return not await store.commit([Unit([write])])

    async def _unit(self, app: App, store: Store, way: Way, record: Record) -> Unit:
        table, key, now = self.table, record.key, current_clock().now()
        state = State(store, {})
        try:
            state.take(table, key, record)
            result = await self.fn(key, await state.get(table, key), state)
            if not state.wrote(table, key):
                state.delete(table, key)
            sent = way.route(_sealed(app, result))
            state.stage()
        except Exception as error:
            failures = self.failures[key] = self.failures.get(key, 0) + 1
            wait = Backoff().delay(failures)
            log.warning("%s of %r failed, and is tried again in %.1f s", self.fn.__name__, key, wait, exc_info=error)
            return Unit([Write(table.name, key, record.value, record.version, now + wait, new_version())])
        self.failures.pop(key, None)
        return Unit(state.writes, sent)
