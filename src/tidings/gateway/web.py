"""HTTP and WebSocket by uvicorn, as we run it."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from .connections import Config, Connection, WebSocketConnection
from .listening import bound, bound_unix, tls_context
from .operations import Observed
from .settings import Settings
from .site import Site
from .websocket import largest

SPARE = 100  # connections, beside those that stream and a tenth more
IDLE = 75  # seconds that a connection is kept between two requests: longer than proxies do


class Server(uvicorn.Server):
    """uvicorn, that leaves signals to us, and says when it listens and when it is over."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening, self.over = asyncio.Event(), asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            self.over.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


def observed(app: Starlette, site: Site, *, log: bool) -> ASGIApp:
    """The app, and its requests counted for ``/metrics``."""
    prefixes = {getattr(route, "path", "").split("/")[1] for route in app.routes if getattr(route, "path", "")}
    counted = Observed(app, frozenset(prefixes), log=log)
    site.collectors.append(counted)
    return counted


def configured(settings: Settings, app: ASGIApp) -> Config:
    """uvicorn's configuration. Raises ``InvalidOption``."""
    limits = settings.limits
    config = Config(
        app,
        loop="none",
        http=Connection,
        ws=WebSocketConnection,
        ws_max_size=largest(limits),
        ws_ping_interval=limits.heartbeat,
        ws_ping_timeout=limits.patience,
        ws_per_message_deflate=False,  # memory for every connection; and who compresses beside secrets tells them
        lifespan="off",
        log_config=None,
        access_log=False,  # which would tell queries
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections * 11 // 10 + SPARE,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=math.ceil(settings.grace),
    )
    for name in ("uvicorn.error", "uvicorn.asgi"):  # lower levels tell queries, and headers with tokens
        logging.getLogger(name).setLevel(logging.WARNING)
    config.load()
    config.patience = limits.patience
    config.ssl = tls_context(settings.tls)
    return config


def listening(settings: Settings, stack: AsyncExitStack) -> list[socket.socket]:
    """Sockets that listen, until the stack is closed. Raises ``InvalidOption``."""
    sockets = [stack.enter_context(bound(settings.host, settings.port))]
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # of a peer that vanished; every connection inherits it: tcp(7)
        sockets[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(settings.limits.patience * 1000))
    if settings.socket:
        path = Path(settings.socket)
        sockets.append(stack.enter_context(bound_unix(path)))
        stack.callback(path.unlink, missing_ok=True)
    return sockets


def urls(settings: Settings, sockets: Sequence[socket.socket]) -> Iterator[str]:
    """Where they listen."""
    scheme = "https" if settings.tls.cert else "http"
    for each in sockets:
        name = each.getsockname()
        if isinstance(name, tuple):
            host = settings.host or "0.0.0.0"
            yield f"{scheme}://{f'[{host}]' if ':' in host else host}:{name[1]}"
        else:
            yield f"unix:{name}"
