"""Somebody's server that webhooks are sent to: it notes what comes, and answers as it is told."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp


class Came(Struct, frozen=True):
    """One request."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    client: Any  # its connection
    at: float  # of the loop's clock


class Receiver:
    """``answers``: of the next requests; then 204, always. Each is a status, or (status, headers), or an event that is
    waited for."""

    def __init__(self) -> None:
        self.came: list[Came] = []
        self.answers: deque[Any] = deque()
        self.arrived = asyncio.Event()
        self.app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["POST", "GET"])])

    async def _answer(self, request: Request) -> Response:
        now, body = asyncio.get_running_loop().time(), await request.body()
        self.came.append(Came(request.url.path, request.headers, body, request.client, now))
        self.arrived.set()
        told = self.answers.popleft() if self.answers else 204
        if isinstance(told, asyncio.Event):
            await told.wait()
            told = 204
        status, headers = told if isinstance(told, tuple) else (told, {})
        return Response(status_code=status, headers=headers)

    async def took(self, count: int) -> list[Came]:
        """The first so many requests, once they came."""
        while len(self.came) < count:
            self.arrived.clear()
            await self.arrived.wait()
        return self.came[:count]


def free() -> socket.socket:
    """A port of the loopback that refuses connections until somebody listens on it."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


@asynccontextmanager
async def served(app: ASGIApp, sock: socket.socket | None = None, **options: Any) -> AsyncIterator[str]:
    """An ASGI app on a real server in this loop, until the end; its URL."""
    sock = sock or free()
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, **options))
    task = asyncio.create_task(server.serve([sock]))
    try:
        while not server.started:
            assert not task.done(), task.result()
            await asyncio.sleep(0.005)
        yield f"http{'s' if options.get('ssl_certfile') else ''}://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        sock.close()
