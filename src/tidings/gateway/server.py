"""Running it: one loop with the bus, HTTP and gRPC, from the first socket to the last stream."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from msgspec import Struct

from tidings import App
from tidings.middleware import instrument
from tidings.middleware.metrics import Metrics

from .access import Access
from .admission import admitted, named, read_anew
from .asgi import asgi
from .engine import Engine
from .gateway import audit
from .listening import is_loopback, refuse_open_doors
from .sending import webhooks
from .settings import Settings
from .site import Site
from .web import Server, configured, listening, observed, urls

if TYPE_CHECKING:
    from .rpc import RPCServer

GARBAGE = 10_000, 20, 10  # gc.set_threshold: looking through 5,000 open connections stops them all for 0.4 s


class Served(Struct, frozen=True):
    """Where it listens."""

    http: tuple[str, ...]  # URLs
    grpc: tuple[str, ...]  # addresses
    engine: dict[str, str]  # URLs, by what they are for
    closed: bool  # whether one has to say who one is


def loop_factory() -> asyncio.AbstractEventLoop:
    """uvloop's, where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def serve(settings: Settings, app: App, told: Callable[[Served], None]) -> None:
    """Serve an app's bus, and run its handlers if it has some, until SIGTERM or SIGINT; ``told`` once it listens.

    At the end streams are told to end, requests are finished, and handlers drained; the first two have
    ``settings.grace`` seconds, and a second signal does not wait for them. SIGHUP reads the file of tokens anew.
    Raises ``InvalidOption`` and what a bus raises.
    """
    clients, anonymous = admitted(settings)
    refuse_open_doors(settings, anonymous)
    access, stop = Access(clients, anonymous), asyncio.Event()
    async with AsyncExitStack() as stack:
        stack.callback(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(*GARBAGE)
        sockets, engine = listening(settings, stack), await _engine(settings, app, stack)
        metrics = _prepared(app, settings)
        running = await _opened(app, stack)
        stack.enter_context(_signals(stop, lambda: read_anew(settings, access)))
        here = is_loopback(settings.host) and not settings.insecure
        built = asgi(
            app,
            access=access,
            limits=settings.limits,
            webhooks_in=settings.webhooks.incoming,
            origins=settings.origins,
            only_here=lambda: here and access.anonymous,
        )
        site: Site = built.state.site
        site.collectors.append(metrics)
        if engine is not None:
            site.checks.append(engine.check)
            watching = asyncio.create_task(engine.wait(), name="engine")
            stack.callback(watching.cancel)
            running.add(watching)
        stack.push_async_callback(site.gateway.close)
        await site.ready()
        server = Server(configured(settings, observed(built, site, log=settings.access_log)))
        calls: list[RPCServer] = []
        running.add(asyncio.create_task(server.serve(sockets), name="http"))
        stack.push_async_callback(_drain, site, server, calls, settings.grace, stop)
        await _first(running, server.listening)
        await _call(settings, site, calls)
        addresses = tuple(each.address for each in calls)
        served = Served(
            http=tuple(urls(settings, sockets)),
            grpc=addresses,
            engine=engine.addresses if engine is not None else {},
            closed=not access.anonymous,
        )
        audit.info("serves on %s: %s", ", ".join((*served.http, *served.grpc)), named(clients, anonymous))
        told(served)
        notify("READY=1")
        await _first(running, stop)


async def _engine(settings: Settings, app: App, stack: AsyncExitStack) -> Engine | None:
    """The bus that runs here, if one shall: the app's bus, then."""
    if not settings.engine:
        return None
    engine = await stack.enter_async_context(Engine(settings.nats))
    app.use(engine.url)
    return engine


def _prepared(app: App, settings: Settings) -> Metrics:
    """An app with its webhooks, and whose handlers are measured."""
    metrics = Metrics(None)
    webhooks(app, settings.webhooks.outgoing)
    if app.registrations:
        instrument(app, metrics)
    return metrics


async def _call(settings: Settings, site: Site, calls: list[RPCServer]) -> None:
    """Listen for gRPC. A Unix socket has no TLS."""
    if not settings.grpc:
        return
    from .rpc import serve_grpc, tls

    files = settings.tls
    secured = tls(files.cert, files.key or files.cert, files.clients) if files.cert else None
    for address in settings.grpc:
        credentials = None if address.startswith("unix:") else secured
        calls.append(await serve_grpc(site.gateway, site.access, address, credentials))


async def _first(running: set[asyncio.Task[None]], event: asyncio.Event) -> None:
    """Wait for an event; raises what ends one of the tasks before."""
    waiting = asyncio.create_task(event.wait())
    try:
        ended, _ = await asyncio.wait({waiting, *running}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    for task in ended - {waiting}:
        task.result()


async def _drain(site: Site, server: Server, calls: Sequence[RPCServer], grace: float, stop: asyncio.Event) -> None:
    """Streams end themselves while the others go on; then uvicorn lets requests finish."""
    notify("STOPPING=1")
    stop.clear()
    site.stopping.set()
    again, end = asyncio.create_task(stop.wait()), time.monotonic() + grace
    ending = [asyncio.create_task(each.stop(grace)) for each in calls]
    while site.gateway.streams and not again.done() and time.monotonic() < end:
        await asyncio.wait({again}, timeout=0.02)
    again.add_done_callback(lambda _: setattr(server, "force_exit", True))
    server.config.timeout_graceful_shutdown = max(1, math.ceil(end - time.monotonic()))
    server.should_exit = True
    await server.over.wait()
    await asyncio.gather(*ending)
    again.cancel()


async def _opened(app: App, stack: AsyncExitStack) -> set[asyncio.Task[None]]:
    """Open an app's buses, and start its handlers if it has some: then the task in which they run."""
    if not app.registrations:
        await stack.enter_async_context(app.connect())
        return set()
    opened = asyncio.Event()
    running = {asyncio.create_task(app.serve(opened.set), name="handlers")}
    stack.push_async_callback(asyncio.wait, {*running})
    stack.callback(app.stop)
    await _first(running, opened)
    return running


@contextmanager
def _signals(stop: asyncio.Event, reload: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT end it; SIGHUP reads the file of tokens anew."""
    loop = asyncio.get_running_loop()
    actions: dict[int, Callable[[], None]] = {signal.SIGTERM: stop.set, signal.SIGINT: stop.set}
    if hasattr(signal, "SIGHUP"):
        actions[signal.SIGHUP] = reload
    with suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread, or not Unix
        for number, action in actions.items():
            loop.add_signal_handler(number, action)
    try:
        yield
    finally:
        with suppress(NotImplementedError, RuntimeError, ValueError):
            for number in actions:
                loop.remove_signal_handler(number)


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), where it wants to know."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        address = "\0" + path[1:] if path.startswith("@") else path
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.sendto(state.encode(), address)
