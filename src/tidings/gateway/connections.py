"""One client's connection, as uvicorn serves it, and what uvicorn leaves open.

- Who shows a certificate is told to the app: ``scope["extensions"]["tidings"]["certificate"]``, its names.
- Who does not read can be dropped: ``scope["extensions"]["tidings"]["drop"]``. To close would be to wait until it read.
- A client must get on: the head of a request has a size and a time, its body a least speed (Slowloris).
- Beyond a number of connections a new one is told so and closed, before it costs anything.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from .listening import names_of

HEAD = 64 * 1024  # bytes of a request line and its headers, beside what came at once with their first
SLOWEST = 1024  # bytes per second of a body that is not there after the client's patience
PARTING = 5.0  # seconds that a WebSocket has for its last words
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Config(uvicorn.Config):
    """uvicorn's, and for how many seconds a client may be silent in the midst of a request."""

    patience: float = 30.0


class Introduced:
    """An ASGI app for one client: the names in its certificate, and what drops it."""

    def __init__(self, app: ASGIApp, names: tuple[str, ...], drop: Callable[[], None]) -> None:
        self.app, self.told = app, {"certificate": names, "drop": drop}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), "tidings": self.told}
        await self.app(scope, receive, send)


def introduced(app: Any, transport: asyncio.BaseTransport, drop: Callable[[], None]) -> Any:
    """The app as this client gets it."""
    secured = transport.get_extra_info("ssl_object")
    return Introduced(app, names_of(secured.getpeercert()) if secured is not None else (), drop)


def reset(transport: asyncio.Transport) -> None:
    """Forget a connection, and what it was sent and has not read, here and in the kernel."""
    if not transport.is_closing() or transport.get_write_buffer_size():
        with suppress(OSError):  # it is no TCP, or is gone
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class WebSocketConnection(WebSocketsSansIOProtocol):
    """A connection that has become a WebSocket."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.app = introduced(self.app, transport, self.drop)

    def drop(self) -> None:
        """Say that it was too slow, should it ever read that far, and forget it in a moment."""
        if not self.close_sent and not self.transport.is_closing():
            self.conn.fail(1013, "too slow")
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
        self.loop.call_later(PARTING, reset, self.transport)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        reset(self.transport)

    def shutdown(self) -> None:
        super().shutdown()
        self.loop.call_later(PARTING, reset, self.transport)


class Connection(HttpToolsProtocol):
    """A connection for HTTP/1.1."""

    size = 0  # bytes of what the client is sending
    head = whole = False  # whether its head is complete, and all of it
    late: asyncio.TimerHandle | None = None
    config: Config

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app = introduced(self.app, transport, partial(reset, transport))
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            self._refuse(BUSY)
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.whole and self.cycle is not None and self.cycle.response_complete:
            self.size, self.head, self.whole = 0, False, False  # the next one begins, be it with empty lines
        self.size += len(data)
        super().data_received(data)
        if self.whole:
            return
        if not self.head and self.size > HEAD and not self.transport.is_closing():
            self._refuse(TOO_LONG)
        elif self.late is None and not self.transport.is_closing():
            self._wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.size, self.head, self.whole = 0, False, False

    def on_headers_complete(self) -> None:
        self.head = True
        self._in_time()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.whole = True
        self._in_time()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self.whole = True
        self._in_time()
        super().handle_websocket_upgrade()

    def _wait(self) -> None:
        """For a body twice as long: the app says it with better words."""
        self.late = self.loop.call_later(self.config.patience * (1 + self.head), self._too_late)

    def _in_time(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None

    def _too_late(self) -> None:
        """So long after a request began, and it is not complete."""
        self.late = None
        if self.transport.is_closing():
            return
        if self.head and self.size > SLOWEST * self.config.patience:
            self.size = 0
            self._wait()
        elif self.head:  # the app may have begun to answer
            self.transport.close()
        else:
            self._refuse(TOO_LATE)

    def _refuse(self, answer: bytes) -> None:
        self.transport.write(answer)
        self.transport.close()
