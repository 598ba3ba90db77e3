"""What every route of the HTTP side shares: the gateway, who asks, and errors as answers (RFC 9457)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from tidings.kernel.errors import (
    AnswerFailed,
    BusError,
    BusFull,
    NoAnswerer,
    NotFound,
    NotOpen,
    PublishFailed,
    RequestError,
    RequestTimeout,
    TidingsError,
    TooLarge,
    Unsupported,
    UsageError,
)

from .access import Access
from .bodies import Intake
from .gateway import Gateway
from .refusals import Forbidden, Limited, Malformed, TooSlow, Unauthenticated, UnsupportedMediaType, Unverified
from .rights import Principal

# The first that an error is an instance of: special ones come first.
STATUSES: tuple[tuple[type[TidingsError], int], ...] = (
    (Unauthenticated, 401),
    (Unverified, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (NoAnswerer, 404),
    (TooSlow, 408),
    (TooLarge, 413),
    (UnsupportedMediaType, 415),
    (Malformed, 422),
    (Limited, 429),
    (Unsupported, 501),
    (AnswerFailed, 502),
    (RequestTimeout, 504),
    (RequestError, 502),
    (NotOpen, 503),
    (BusFull, 507),
    (PublishFailed, 502),
    (BusError, 503),
    (UsageError, 422),
)
BEARER = "bearer."
AWAY = 2  # seconds after which to ask again while the bus is away


class Site:
    """A gateway's HTTP side."""

    def __init__(self, gateway: Gateway, access: Access) -> None:
        self.gateway, self.access = gateway, access
        self.collectors: list[Any] = []  # of Prometheus: what /metrics tells beside its own
        self.checks: list[Callable[[], Awaitable[None]]] = []  # what must not raise, beside the bus, for /readyz
        self.stopping = asyncio.Event()  # set by who serves it before it waits for its connections: all streams end
        self.intake = Intake(gateway.limits)
        self.streams = set[Callable[[], None]]()  # of each open stream, what ends it
        self._opening = asyncio.Lock()
        self._ending: asyncio.Task[None] | None = None

    async def ready(self) -> Gateway:
        """The gateway, open: where the app is mounted in another, nobody runs its lifespan."""
        if not self.gateway.opened:
            async with self._opening:
                if not self.gateway.opened:
                    await self.gateway.open()
        return self.gateway

    def watch(self, end: Callable[[], None]) -> None:
        """Call ``end`` when the server stops, unless it is discarded from ``streams`` before."""
        self.streams.add(end)
        if self._ending is None or self._ending.done():
            self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        await self.stopping.wait()
        for end in tuple(self.streams):
            end()

    def who(self, connection: HTTPConnection) -> Principal:
        """Who asks: by ``Authorization: Bearer``, or a certificate that TLS has verified. Raises ``Unauthenticated``.

        A WebSocket may have its token as a subprotocol, ``bearer.<token>``: in a browser nothing else can be told.
        """
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        if scheme and scheme.lower() != "bearer":
            raise Unauthenticated(f"{scheme!r} is no way to say who you are here")
        for protocol in connection.scope.get("subprotocols", ()):
            if not scheme and protocol.startswith(BEARER):
                scheme, token = BEARER, protocol.removeprefix(BEARER)
        names = connection.scope.get("extensions", {}).get("tidings", {}).get("certificate", ())
        return self.access.principal(token.strip() if scheme else None, names)


def problem(error: TidingsError) -> Response:
    """An error as an answer."""
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
    headers = {}
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="tidings"'
    if isinstance(error, Limited):
        headers["retry-after"] = str(max(1, math.ceil(error.after)))
    elif status in (503, 507):
        headers["retry-after"] = str(AWAY)
    told = {"type": f"urn:tidings:{error.code}", "title": type(error).__name__, "status": status, "detail": error.what}
    told |= {name: text for name in ("why", "mend") if (text := getattr(error, name))}
    if isinstance(error, PublishFailed):
        told |= {name: list(getattr(error, name)) for name in ("accepted", "rejected", "unknown")}
    return Response(msgspec.json.encode(told), status, headers, "application/problem+json")


def answering(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint whose ``TidingsError`` is a problem, not a traceback."""

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except TidingsError as error:
            return problem(error)

    return answered


async def unrouted(_: Request, error: Exception) -> Response:
    """What Starlette refuses: a path or method that there is none of, as a problem without a type (RFC 9457 §4.2.1)."""
    assert isinstance(error, HTTPException)
    told = {"title": error.detail, "status": error.status_code}
    return Response(msgspec.json.encode(told), error.status_code, error.headers, "application/problem+json")
