"""What writes records outside of handlers: ``transact``, and what shall happen at a time.

A record may have a ``due`` time, by which the store finds it: there is no timer per record, and none is lost with a
process. One replica at a time looks, by a lease that is a record, too; should two look at once, versions decide.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .inject import name_of, where
from .kernel.bus import MARGIN
from .kernel.clock import current_clock
from .kernel.errors import Conflict, Duration, InvalidHandler, NotOpen
from .kernel.handler import Emit, Origin, emitter
from .kernel.message import Message, new_id, seconds
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
Did = Unit | Exception

TRIES = 100  # runs whose records are changed under them
BATCH, SOON = 500, 0.1  # records at once; seconds until what was called is committed, whatever is still running
LEASE, LEASES = 5.0, "_leases"  # seconds


async def transact(app: App, fn: Callable[[State], Awaitable[Result]], *, bus: str = "") -> None:
    """Call ``fn`` and commit what it wrote, with the messages it returned; again while its records are changed by
    others. Messages to a bus that is not the store's own leave through a relay, which an app that consumes has.

    ``bus``: which of the app's buses, where it keeps records; default: as for handlers of the default bus.

    Raises ``Unsupported`` if no bus of the app keeps records, ``WrongReturn`` for what is no message to a bus of the
    app, ``NotOpen`` for one to another bus when the app is only connected, ``Conflict`` after 100 tries, what ``fn``
    raises, and ``BusError`` when the store cannot.
    """
    store, way = store_of(app, bus)
    emit = _emitter(app, way, fn)
    for _ in range(TRIES):
        state = State(store, {})
        sent = way.route(emit(await fn(state), None))
        for message in sent:
            if message.address == way.address(message.bus) and way.group(message.bus) not in app.stats():
                what, why = f"nothing here relays a message to bus {message.bus!r}", "the app is only connected"
                raise NotOpen(what, why=why, mend="use `async with app:`, or publish it when the records are committed")
        state.stage()
        failures = await store.commit([Unit(state.writes, sent)])
        if not failures:
            return
        if not isinstance(failures[0].error, Conflict):
            break
    raise failures[0].error


def _emitter(app: App, way: Way, fn: Callable[..., Any]) -> Emit:
    """From what it returned to sealed messages, as of a handler."""
    limit = app.bus(way.store).capabilities.max_payload - MARGIN
    about = Origin(name=name_of(fn), where=where(fn), source=app.name, group="", limit=limit, buses=tuple(app.urls))
    return emitter(about, current_clock().now)


def due(
    app: Router, table: Table[Any], *, every: Duration = 0.1, group: str = "", bus: str = "", timeout: Duration = 60.0
) -> Callable[[Fired], Fired]:
    """Call an async function ``(key, value, state)`` for each record whose ``due`` has passed, by the wall clock.

    What it writes and returns is committed soon after; a record it leaves as it is is removed. If it raises, or takes
    longer than ``timeout``, or its messages are refused, its record is tried again later, for ever, and that is logged.
    ``every``: how often to look. One replica at a time looks; when it dies, another does after at most 5 s. ``group``:
    what the looking is called (``"<app>.<function>-due"``). ``bus``: which of the app's buses, where it keeps records;
    default: as for handlers of the default bus.

    Raises ``InvalidHandler``, ``InvalidOption``, ``InvalidName``; an app without records is refused at start-up.
    """

    from .app import App

    def decorate(fn: Fired) -> Fired:
        if not inspect.iscoroutinefunction(fn):
            raise InvalidHandler(f"{name_of(fn)}() cannot be called for what is due", mend="write it with async def")
        timer = Timer(table, fn, bus, seconds(timeout, "timeout"))

        async def look(app: App) -> None:
            await timer.look(app)

        look.__name__ = look.__qualname__ = f"{fn.__name__}-due"
        look.__annotations__ = {"app": App}
        look.keeps = True  # type: ignore[attr-defined]
        app.every(every, each=True, bus=bus, group=group)(look)
        return fn

    return decorate


class Timer:
    """Looks for what is due in one table, in one process."""

    def __init__(self, table: Table[Any], fn: Callable[..., Awaitable[Result]], bus: str, timeout: float) -> None:
        self.table, self.fn, self.bus, self.timeout, self.me = table, fn, bus, timeout, new_id().encode()
        self.failures: dict[str, int] = {}

    async def look(self, app: App) -> None:
        """Call it for all that is due now, if it is this process's turn."""
        store, way = store_of(app, self.bus)
        call = partial(self._call, store, way, _emitter(app, way, self.fn))
        now, name = current_clock().now(), f"{app.name}.{self.table.name}.{self.fn.__name__}"
        more = True
        while more and await self._mine(store, name):
            records = await store.due(self.table.name, now, BATCH)
            more = await self._page(store, records, call) > 0 and len(records) == BATCH

    async def _mine(self, store: Store, name: str) -> bool:
        held, now = await store.records(LEASES, [name]), current_clock().now()
        until, mine = (held[0].due or 0.0, held[0].value == self.me) if held else (0.0, False)
        # one that ends later is of another clock, or of this one before it was set back
        if now < until <= now + LEASE and (not mine or until - now > LEASE / 2):
            return mine
        version = held[0].version if held else ABSENT
        write = Write(LEASES, name, self.me, version, now + LEASE, new_version())
        return not await store.commit([Unit([write])])

    async def _page(self, store: Store, records: Sequence[Record], call: Callable[[Record], Awaitable[Did]]) -> int:
        """Call it for these, one after the other; how many were committed. A slow one holds back none before it."""
        called = list[tuple[Record, Did]]()

        async def calls() -> None:
            for record in records:
                called.append((record, await call(record)))

        calling, done = asyncio.create_task(calls()), 0
        try:
            while called or not calling.done():
                await asyncio.wait({calling}, timeout=SOON)
                some = called[:]
                del called[: len(some)]
                done += await self._commit(store, some)
        finally:
            calling.cancel()
            await asyncio.wait({calling})
        return done

    async def _call(self, store: Store, way: Way, emit: Emit, record: Record) -> Did:
        table, key, state = self.table, record.key, State(store, {})
        try:
            state.take(table, key, record)
            async with asyncio.timeout(self.timeout):
                result = await self.fn(key, await state.get(table, key), state)
            if not state.wrote(table, key):
                state.delete(table, key)
            sent = way.route(emit(result, None))
            state.stage()
        except Exception as error:
            return error
        return Unit(state.writes, sent)

    async def _commit(self, store: Store, called: Sequence[tuple[Record, Did]]) -> int:
        """Commit what calls did, each on its own, or that their records are put off; how many were. Records that were
        changed meanwhile come again, if they are still due."""
        units = [did if isinstance(did, Unit) else self._put_off(record, did) for record, did in called]
        errors = {failure.index: failure.error for failure in await store.commit(units)} if units else {}
        for index, (record, did) in enumerate(called):
            if isinstance(did, Unit) and index not in errors:
                self.failures.pop(record.key, None)
        refused = {index: error for index, error in errors.items() if not isinstance(error, Conflict)}
        if refused:
            await store.commit([self._put_off(called[index][0], error) for index, error in refused.items()])
        return len(called) - len(errors)

    def _put_off(self, record: Record, error: BaseException) -> Unit:
        key, name, now = record.key, self.fn.__name__, current_clock().now()
        failures = self.failures[key] = self.failures.get(key, 0) + 1
        wait = Backoff().delay(failures)
        log.warning("%s of %r failed, and is tried again in %.1f s", name, key, wait, exc_info=error)
        return Unit([Write(self.table.name, key, record.value, record.version, now + wait, new_version())])
