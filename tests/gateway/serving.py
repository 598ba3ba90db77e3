"""A server in this process, and one that is the console script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx

from tidings import App
from tidings.gateway.access import Client, hashed
from tidings.gateway.rights import Rights
from tidings.gateway.server import Served, serve
from tidings.gateway.settings import Settings

DEADLINE = 30.0  # seconds


class Running:
    """A server that listens: its URL, and what ends it."""

    def __init__(self, told: Served, task: asyncio.Task[None]) -> None:
        self.told, self.url, self.task = told, told.http[0], task

    def client(self, token: str = "", **more: Any) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=DEADLINE, **more)

    async def stop(self) -> None:
        """As by SIGTERM."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(self.task), DEADLINE)


@asynccontextmanager
async def served(app: App | None = None, /, **settings: Any) -> AsyncIterator[Running]:
    """``tidings serve`` on a free port, over memory unless an app says otherwise."""
    settings = {"port": 0, "tokens": "no-tokens.json", "grace": 5.0} | settings
    listening: asyncio.Future[Served] = asyncio.get_running_loop().create_future()
    made = app or App("gateway", "memory://")
    task = asyncio.create_task(serve(Settings(**settings), made, listening.set_result))
    await asyncio.wait({task, listening}, return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE)
    if task.done():
        await task
    running = Running(listening.result(), task)
    try:
        yield running
    finally:
        await running.stop()


def known(name: str, **rights: Any) -> Client:
    """A client whose token is its name."""
    return Client(name=name, token=hashed(name), rights=Rights(**rights))
