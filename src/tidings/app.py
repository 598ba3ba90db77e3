"""The façade: an app declares handlers, opens its buses, publishes, asks, and runs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar, overload

from . import requests, schedule
from .assembly import Assembly, Defaults, group_of
from .channels import Service, Topic, drafted
from .control import Control
from .inject import Function, Values, provide
from .kernel import errors
from .kernel.bus import Bus
from .kernel.codec import decoder, seal
from .kernel.errors import AnswerFailed, DuplicateGroup, Duration, InvalidName, NotFound, NothingToRun, NotOpen, nearest
from .kernel.handler import Middleware, single
from .kernel.message import Message, new_id, seconds
from .kernel.outcome import Backoff, Breaker
from .kernel.settling import Stats
from .kernel.topics import TICK, check_topic, matches
from .kernel.transport import Delivery, Event, GroupInfo, Inspectable, Options, Session, Transport
from .kernel.worker import Worker
from .relay import relays, store_of
from .router import INJECTABLE, Registration, Router, check_option
from .store import Enlisting
from .urls import options_for

if TYPE_CHECKING:
    from typing_extensions import TypeForm, Unpack

    from .channels import Meta
    from .topology import Topology

log = logging.getLogger("tidings")

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")


class App(Router):
    """An event-driven application: a name, one bus or several, and handlers.

    ``url``: the default bus (``TIDINGS_URL`` beats it; without both, ``sqlite:///<name>.db``); a transport's options
    object will do too. ``buses``: further ones by name (``TIDINGS_URL_<NAME>`` beats each). ``middleware`` wraps every
    handler, the first outermost. ``backoff``, ``breaker``: the defaults of its handlers. ``grace``: what running
    handlers get at the end.
    """

    def __init__(
        self,
        name: str,
        url: str | Options | None = None,
        /,
        *,
        middleware: Sequence[Middleware] = (),
        backoff: Backoff = Backoff(),  # noqa: B008
        breaker: Breaker | None = Breaker(),  # noqa: B008
        grace: Duration = 30.0,
        **buses: str | Options,
    ) -> None:
        super().__init__()
        if "." in check_topic(name):
            why, mend = "its groups are <app>.<function>", "use '-'"
            raise InvalidName(f"an app cannot be called {name!r}", why=why, mend=mend)
        for option, value in (("middleware", middleware), ("backoff", backoff), ("breaker", breaker)):
            check_option(option, value)
        self.name, self.middleware, self.backoff, self.breaker = name, tuple(middleware), backoff, breaker
        self.grace = seconds(grace, "grace")
        self.urls: dict[str, str | Options] = {"": url or f"sqlite:///{name}.db", **buses}
        for given in self.urls.values():
            if isinstance(given, str) and "://" not in given:
                options_for(given)  # refuses it: a typo must not become a bus
        self.events: Counter[str] = Counter()
        self._used: set[str] = set()
        self._overrides: dict[Function, Function] = {}
        self._buses: dict[str, Bus] = {}
        self._requesters: dict[str, requests.Requester] = {}
        self._workers: dict[str, Worker] = {}
        self._assemblies: list[Assembly] = []
        self._controls: list[Control] = []
        self._busy: set[Any] = set()  # subscriptions that share the loop's time
        self._running: set[asyncio.Task[None]] = set()
        self._tickers: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()
        self._stopping: asyncio.Event | None = None

    # -- declaring

    def add(self, registration: Registration) -> None:
        """Take over a handler; raises ``DuplicateGroup``, or ``InvalidName`` for an unknown bus."""
        group = group_of(registration, self.name)
        for other in self.registrations:
            if group_of(other, self.name) == group:
                what = f"{registration.fn.__qualname__}() and {other.fn.__qualname__}() are both group {group!r}"
                why = f"each would get a part of the messages; the other one is at {other.where}"
                mend = "give one of them group=..., or another function name"
                raise DuplicateGroup(what, why=why, mend=mend, where=registration.where)
        if registration.bus not in self.urls:
            mend = nearest(registration.bus, self.urls) or f"App({self.name!r}, ..., {registration.bus}=url)"
            raise InvalidName(f"{self.name!r} has no bus {registration.bus!r}", mend=mend, where=registration.where)
        super().add(registration)

    def override(self, f: Function, fake: Function) -> None:
        """From the next opening on, ``Depends(f)`` calls ``fake`` instead: for tests."""
        self._overrides[f] = fake

    def use(self, url: str | Options, bus: str = "") -> None:
        """Use this bus instead, whatever the code and the environment say; before opening."""
        if bus not in self.urls:
            raise InvalidName(f"{self.name!r} has no bus {bus!r}", mend=nearest(bus, self.urls))
        self.urls[bus] = url
        self._used.add(bus)

    # -- life cycle

    async def __aenter__(self) -> App:
        await self._open(consume=True)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._close()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[App]:
        """Open for publishing and requests only: no handler runs."""
        await self._open(consume=False)
        try:
            yield self
        finally:
            await self._close()

    def run(self, url: str | Options | None = None) -> None:
        """Run until SIGTERM, SIGINT or ``stop()``, then drain. Raises ``NothingToRun`` without handlers."""
        if url is not None:
            self.use(url)
        asyncio.run(self.serve())

    async def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """``run`` on a loop that already exists; ``ready`` is called once everything is subscribed."""
        if not self.registrations:
            raise NothingToRun(f"{self.name!r} has no handlers", mend="decorate a function with @app.on(...)")
        loop, signals = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
        try:
            async with self:
                assert self._stopping is not None
                with suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread, or not Unix
                    for number in signals:
                        loop.add_signal_handler(number, self.stop)
                stopped = loop.create_task(self._stopping.wait())
                ready()
                running = {stopped, *self._running, *self._tickers}
                try:
                    ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    stopped.cancel()
                for task in ended - {stopped}:
                    task.result()
        finally:  # after the drain, which a second signal does not cut short
            with suppress(NotImplementedError, RuntimeError, ValueError):
                for number in signals:
                    loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Begin to drain; may be called in a handler."""
        if self._stopping is not None:
            self._stopping.set()
        for worker in self._workers.values():
            worker.stop()

    def pause(self, group: str, paused: bool = True) -> None:
        """Let a group's handler in this process start nothing until ``pause(group, False)``."""
        if group not in self._workers:
            raise NotFound(f"no group {group!r} runs here", mend=nearest(group, self._workers))
        self._workers[group].pause(paused)

    def stats(self) -> dict[str, Stats]:
        """What has become of each group's deliveries in this process."""
        return {group: worker.stats for group, worker in tuple(self._workers.items())}

    def topology(self) -> Topology:
        """Topics, handlers, patterns and services, and what leads where, as known at registration."""
        from .topology import topology

        return topology(self)

    def bus(self, name: str = "") -> Transport:
        """An open bus; ``.client`` is its native client."""
        return self._bus(name).transport

    def _bus(self, name: str) -> Bus:
        if name not in self._buses:
            if name in self.urls:
                raise NotOpen(f"{self.name!r} is not open", mend="use `async with app:` or `async with app.connect():`")
            raise InvalidName(f"{self.name!r} has no bus {name!r}", mend=nearest(name, self.urls))
        return self._buses[name]

    async def _open(self, *, consume: bool) -> None:
        if self._buses:
            raise NotOpen(f"{self.name!r} is already open", mend="open it once, or make another App")
        self._stopping = asyncio.Event()
        try:
            for name, given in self.urls.items():
                variable = "TIDINGS_URL" + (f"_{name.upper()}" if name else "")
                chosen = given if name in self._used else os.environ.get(variable) or given
                bus = Bus(name, options_for(chosen) if isinstance(chosen, str) else chosen, self._told, self._busy)
                await bus.open()
                self._buses[name] = bus
            if consume:
                await self._consume()
        except BaseException:
            await self._close()
            raise

    async def _consume(self) -> None:
        defaults = Defaults(
            app=self.name,
            backoff=self.backoff,
            breaker=self.breaker,
            grace=self.grace,
            middleware=self.middleware,
            provided={App: self},
            overrides=self._overrides,
            buses=self._buses,
        )
        values: Values = {}
        before = {name: await _groups(bus) for name, bus in self._buses.items()}
        start = asyncio.get_running_loop().create_task
        for r in self.registrations:
            assembly = Assembly(r, group_of(r, self.name), defaults)
            scoped = [d for d in assembly.plan.dependencies if d.scope == "app"]
            await provide(scoped, None, None, values, self._stack)
            self._assemblies.append(assembly)
            if r.each:
                self._tickers.add(start(self._tick_each(assembly, values)))
                continue
            self._workers[assembly.group] = await assembly.worker(values)
            if r.role == "tick":
                chooser = schedule.ticking(assembly.bus, r.where)
                ticks = schedule.tick_once(chooser, assembly.bus, assembly.group, r.schedule, self.name)
                self._tickers.add(start(ticks))
        for r in self.registrations:
            if getattr(r.fn, "keeps", False):
                store_of(self, r.bus)  # refuses an app without one
        self._workers |= await relays(self.name, self._buses)
        for name, bus in self._buses.items():
            await _tell_groups(self.name, bus, before[name], self._workers)
        for bus in self._buses.values():
            self._controls.append(Control(bus, self.name, self._assemblies, self._workers))
            await self._controls[-1].open()
        self._running |= {start(worker.run()) for worker in self._workers.values()}
        for task in (*self._running, *self._tickers):
            task.add_done_callback(_report)

    async def _tick_each(self, assembly: Assembly, values: Values) -> None:
        one, bus = single(assembly.handler(values)), assembly.bus

        async def call() -> None:
            tick: Message[Any] = Message(TICK + assembly.group, id=new_id(), time=bus.clock.now())
            await bus.publish(await one(Delivery(tick, Session())))

        await schedule.tick_each(assembly.registration.schedule, bus.clock.now, call, assembly.group)

    async def _close(self) -> None:
        """Drain the workers, then close what they used, in the reverse order."""
        for ticker in self._tickers:
            ticker.cancel()
        for worker in self._workers.values():
            worker.stop()
        await asyncio.gather(*self._tickers, *self._running, return_exceptions=True)
        for control in self._controls:
            await control.close()
        for assembly in self._assemblies:
            if assembly.executor is not None:
                await assembly.executor.close()
        for requester in self._requesters.values():
            await requester.close()
        for bus in reversed(self._buses.values()):
            await bus.close()
        await self._stack.aclose()
        for state in (self._tickers, self._running, self._assemblies, self._controls, self._requesters):
            state.clear()
        for opened in (self._buses, self._workers):
            opened.clear()

    def _told(self, event: Event) -> None:
        self.events[event.kind] += event.count
        for control in self._controls if event.kind == "connected" else ():
            control.look()
        level = logging.INFO if event.kind in ("connected", "recovered") else logging.WARNING
        if event.kind != "unrouted":
            counted = f" ({event.count})" if event.count > 1 else ""
            log.log(level, "bus %s%s%s", event.kind, counted, f": {event.detail}" if event.detail else "")

    # -- publishing and asking

    @overload
    async def publish(self, topic: Topic[T], data: T, /, **meta: Unpack[Meta]) -> None: ...
    @overload
    async def publish(self, message: Message[Any], /) -> None: ...
    async def publish(self, topic: Any, data: Any = None, /, **meta: Any) -> None:
        """Publish one message: durable, as far as the bus can, when this returns.

        ``key``, ``headers``, ``delay``, ``at``, ``expires``, ``priority``, ``id``: see ``Meta``. Inside a handler it is
        independent of the handler's outcome; what the handler *returns* belongs to it.

        Raises ``PayloadRefused``, ``TooLarge``, ``Unsupported``, ``NotOpen``; ``BusError`` when the bus cannot.
        """
        draft = drafted(topic, data, meta)
        bus = self._buses.get(draft.bus) or self._bus(draft.bus)
        await bus.publish((seal(draft, now=bus.clock.now(), source=self.name),))

    async def publish_many(self, messages: Iterable[Message[Any]], /) -> None:
        """Publish many at once, several times faster than one by one.

        All or none where the bus has ``publish_atomic``; else ``PublishFailed`` says which were accepted.
        """
        by_bus: dict[str, list[Message[Any]]] = {}
        for draft in messages:
            by_bus.setdefault(draft.bus, []).append(draft)
        buses = [(self._buses.get(name) or self._bus(name), drafts) for name, drafts in by_bus.items()]
        ready = [(b, [seal(d, now=n, source=self.name) for d in ds]) for b, ds in buses for n in (b.clock.now(),)]
        for bus, sealed in ready:
            await bus.publish(sealed)

    async def publish_in(self, connection: Any, /, *messages: Message[Any]) -> None:
        """Publish in an open transaction of your own: accepted when it commits, and never if it does not.

        ``connection``: asyncpg's, psycopg's or SQLAlchemy's, to the database that is the bus. The synchronous kinds are
        for ``app.bus().publish_in_sync``. Raises ``Unsupported`` where the bus is no database.
        """
        for draft in messages:
            if not isinstance(bus := self.bus(draft.bus), Enlisting):
                raise errors.Unsupported("this bus has no transactions of yours", mend="postgresql:// has, or publish")
            await bus.publish_in(connection, draft, source=self.name)

    @overload
    async def request(self, service: Service[Q, R], data: Q, /, *, timeout: Duration = ...) -> R: ...
    @overload
    async def request(self, name: str, data: object, reply: TypeForm[R], /, *, timeout: Duration = ...) -> R: ...
    async def request(self, service: Any, data: Any, reply: Any = Any, /, *, timeout: Duration = 30.0) -> Any:
        """Ask a service, by itself or by name, and wait for its reply.

        Raises ``NoAnswerer`` at once where the bus can tell, ``RequestTimeout``, ``AnswerFailed``.
        """
        async for answer in self._ask(service, data, reply, timeout):
            return answer
        raise AnswerFailed(f"{service!r} ended its replies without one")

    @overload
    def request_stream(self, service: Service[Q, R], data: Q, /, *, timeout: Duration = ...) -> AsyncIterator[R]: ...
    @overload
    def request_stream(
        self, name: str, data: object, reply: TypeForm[R], /, *, timeout: Duration = ...
    ) -> AsyncIterator[R]: ...
    def request_stream(self, service: Any, data: Any, reply: Any = Any, /, *, timeout: Duration = 30.0) -> Any:
        """Ask a service that streams its replies. ``timeout`` is for all of them.

        Raises what ``request`` raises, and ``ReplyRestarted`` when another process had to begin anew.
        """
        return self._ask(service, data, reply, timeout)

    def _ask(self, service: Any, data: Any, reply: Any, timeout: Duration) -> AsyncIterator[Any]:
        if isinstance(service, Service):
            name, bus, reply = service.name, service.bus, service.reply
        else:
            name, bus = check_topic(service), ""
        if bus not in self._requesters:
            self._requesters[bus] = requests.Requester(self._bus(bus), self.name)
        return self._requesters[bus].replies(Message(name, data=data), decoder(reply), seconds(timeout, "timeout"))


INJECTABLE[App] = None


def _report(task: asyncio.Task[None]) -> None:
    """Nobody may be waiting for a task that ends by an error."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a subscription has ended", exc_info=error)


async def _groups(bus: Bus) -> dict[str, GroupInfo]:
    if not isinstance(bus.transport, Inspectable):
        return {}
    return {group.name: group for group in await bus.transport.groups()}


async def _tell_groups(app: str, bus: Bus, before: dict[str, GroupInfo], workers: Mapping[str, Worker]) -> None:
    """Say which groups of this app have lost their handler, and which new ones skip what is retained."""
    for name, group in before.items():
        if group.app == app and name not in workers:
            hint = f"was its function renamed? `tidings groups rename {name} NEW`, or `tidings groups drop {name}`"
            log.warning("group %s has no handler, and %d messages wait for it: %s", name, group.lag, hint)
    new = workers.keys() - before.keys()
    if not new or not isinstance(bus.transport, Inspectable):
        return  # looking again would count all that is retained, at every start
    topics = await bus.transport.topics()
    for name, group in (await _groups(bus)).items():
        if name in new and not group.lag and not group.pattern.startswith("_"):
            skipped = sum(topic.messages for topic in topics if matches(group.pattern, topic.name))
            if skipped:
                log.warning("new group %s skips %d retained messages: start='first' would read them", name, skipped)
