"""What operators ask: whether it lives (``/healthz``), whether it serves (``/readyz``), and how much (``/metrics``)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import REGISTRY, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidings.kernel.errors import TidingsError
from tidings.kernel.transport import Inspectable
from tidings.middleware.metrics import BOUNDS, Durations, Metrics

from .gateway import Gateway
from .site import Site, answering

access = logging.getLogger("tidings.access")

NOBODY = "_tidings.ready"  # no group is called so
PATIENCE, FRESH = 5.0, 1.0  # seconds that the bus has for an answer; that one is good for
OTHER = "other"
ANSWERED = "From a request to the beginning of its answer."
COUNTED = {
    "published": "Messages that clients published.",
    "delivered": "Messages handed to clients.",
    "slow": "Clients that were let go because they did not read.",
    "gaps": "Times that a client missed messages that were no longer there.",
}


def routes(site: Site) -> list[BaseRoute]:
    """The three of them. ``/metrics`` needs the right ``admin``; the others tell nothing that is worth one."""
    ready, groups = Readiness(site), Metrics(None)
    exported = Exported(site, [Counted(site.gateway), groups])

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(request: Request) -> Response:
        if why := await ready.why_not():
            return JSONResponse({"status": "not ready", "why": why}, 503, {"retry-after": "2"})
        return JSONResponse({"status": "ready"})

    async def metrics(request: Request) -> Response:
        site.who(request).need_all_of("admin")
        if not await ready.why_not() and isinstance(bus := site.gateway.bus.transport, Inspectable):
            await groups.look(bus)
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(exported), media_type=kind)

    return [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/metrics", answering(metrics), methods=["GET"]),
    ]


class Exported(Collector):
    """What a scrape is told: of each name once, what has anything to say first."""

    def __init__(self, site: Site, own: Sequence[Any]) -> None:
        self.site, self.own = site, own

    def collect(self) -> Iterator[Metric]:
        told = set[str]()
        for collector in (*self.own, *self.site.collectors, REGISTRY):
            for metric in collector.collect():
                if metric.samples and metric.name not in told:
                    told.add(metric.name)
                    yield metric


class Readiness:
    """Whether a site serves. The bus is asked at most once in ``FRESH`` seconds, whoever wants to know."""

    def __init__(self, site: Site) -> None:
        self.site, self.asked, self.why = site, -FRESH, ""
        self.asking = asyncio.Lock()

    async def why_not(self) -> str:
        """Why it does not; ``""`` when it does."""
        if self.site.stopping.is_set():
            return "it is stopping"
        async with self.asking:
            if time.monotonic() - self.asked >= FRESH:
                self.why = await self._ask()
                self.asked = time.monotonic()
        return self.why

    async def _ask(self) -> str:
        try:
            async with asyncio.timeout(PATIENCE):
                gateway = await self.site.ready()
                if isinstance(bus := gateway.bus.transport, Inspectable):
                    await bus.groups(NOBODY)
                for check in self.site.checks:
                    await check()
        except TimeoutError:
            return "the bus does not answer"
        except (TidingsError, OSError) as error:
            logging.getLogger("tidings").warning("not ready: %s", error)
            return "the bus is away"
        return ""


class Counted:
    """A collector of what a gateway does."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def collect(self) -> Iterator[Metric]:
        gateway = self.gateway
        yield GaugeMetricFamily("tidings_gateway_streams", "Streams that are open.", gateway.streams)
        for name, what in COUNTED.items():
            yield CounterMetricFamily(f"tidings_gateway_{name}", what, gateway.counts[name])
        events = CounterMetricFamily("tidings_bus_events", "What the bus told.", labels=("kind",))
        for kind, count in tuple(gateway.app.events.items()):
            events.add_metric((kind,), count)
        yield events


class Observed:
    """An ASGI app whose requests are counted, timed and, with ``log``, told: never a query or a header of them.

    ``prefixes``: the first segments of paths that are told apart; all others are one.
    """

    def __init__(self, app: ASGIApp, prefixes: frozenset[str], *, log: bool) -> None:
        self.app, self.prefixes, self.log = app, prefixes, log
        self.requests = Counter[tuple[str, str, str]]()
        self.took: dict[str, Durations] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        began, told = time.perf_counter(), False

        async def answered(message: Message) -> None:
            nonlocal told
            if not told and (status := _status(message)):
                told = True
                self._count(scope, status, time.perf_counter() - began)
            await send(message)

        await self.app(scope, receive, answered)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"]
        first = path.split("/", 2)[1] if path.startswith("/") else ""
        route = f"/{first}" if first in self.prefixes else OTHER
        method = scope.get("method", "WEBSOCKET")
        method = method if method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "WEBSOCKET") else OTHER
        self.requests[method, route, str(status)] += 1
        if route not in self.took:
            self.took[route] = Durations(BOUNDS)
        self.took[route].add(seconds)
        if self.log:
            client = scope.get("client") or ("unix", 0)
            access.info("%s %s %s %d %.1f ms", client[0], method, ascii(path)[1:-1], status, seconds * 1e3)

    def collect(self) -> Iterator[Metric]:
        labels = ("method", "route", "status")
        requests = CounterMetricFamily("tidings_gateway_requests", "Requests that were answered.", labels=labels)
        for values, count in tuple(self.requests.items()):
            requests.add_metric(values, count)
        took = HistogramMetricFamily("tidings_gateway_request_duration_seconds", ANSWERED, labels=("route",))
        for route, durations in tuple(self.took.items()):
            took.add_metric((route,), **durations.samples())
        yield from (requests, took)


def _status(message: Message) -> int:
    """The status of an answer that begins with this message; 0: it does not."""
    kinds = {"websocket.accept": 101, "websocket.close": 403}
    return int(message["status"]) if "response.start" in message["type"] else kinds.get(message["type"], 0)
