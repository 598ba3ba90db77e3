"""A gateway's ASGI app behind a bare uvicorn on a free port, and what is asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx
import uvicorn
from starlette.types import ASGIApp

from tidings import App
from tidings.gateway.asgi import asgi
from tidings.gateway.listening import bound

DEADLINE = 30.0  # seconds


@asynccontextmanager
async def listening(app: ASGIApp, lifespan: Literal["on", "off"] = "on") -> AsyncIterator[str]:
    """Serve an ASGI app; the URL where."""
    with bound("127.0.0.1", 0) as listener:
        config = uvicorn.Config(app, lifespan=lifespan, log_level="critical", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server._serve([listener]))  # `serve` would take the test's signals
        try:
            while not server.started:  # noqa: ASYNC110: it has no event
                assert not task.done(), task.result()
                await asyncio.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


def asking(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=DEADLINE)


@asynccontextmanager
async def client(app: App | str, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of a gateway."""
    async with (
        asyncio.timeout(DEADLINE),
        listening(asgi(app, **options)) as url,
        asking(url) as http,
    ):
        yield http


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """What a refusal says (RFC 9457)."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = response.json()
    assert told["status"] == status
    assert told["type"].startswith("urn:tidings:TDG-E")
    assert told["detail"]
    return told
