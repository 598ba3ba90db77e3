"""Clients of the streams: one that reads Server-Sent Events, one that speaks ``tidings.v1``, one that reads nothing."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import uvicorn
from websockets.asyncio.client import ClientConnection, connect

from tidings import App, Message
from tidings.gateway.access import Access
from tidings.gateway.asgi import asgi
from tidings.gateway.gateway import Gateway
from tidings.gateway.limits import Limits
from tidings.gateway.listening import bound
from tidings.gateway.settings import Settings
from tidings.gateway.web import configured
from tidings.kernel.codec import seal

from .serving import DEADLINE


class Stage:
    """A server whose gateway a test can look into."""

    def __init__(self, url: str, gateway: Gateway, stopping: asyncio.Event) -> None:
        self.url, self.gateway, self.stopping = url, gateway, stopping

    def client(self, token: str = "") -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=DEADLINE)


@asynccontextmanager
async def staged(app: App | str = "memory://", access: Access | None = None, **limits: Any) -> AsyncIterator[Stage]:
    """It, as ``tidings serve`` has it: the same connections, the same signs of life."""
    built = asgi(app, access=access, limits=Limits(**limits))
    site = built.state.site
    server = uvicorn.Server(configured(Settings(limits=site.gateway.limits), built))
    with bound("127.0.0.1", 0) as listener:
        task = asyncio.create_task(server._serve([listener]))  # `serve` would take the test's signals
        try:
            async with asyncio.timeout(DEADLINE):
                while not server.started:  # noqa: ASYNC110: it has no event
                    assert not task.done(), task.result()
                    await asyncio.sleep(0.005)
            await site.ready()
            yield Stage(f"http://127.0.0.1:{listener.getsockname()[1]}", site.gateway, site.stopping)
        finally:
            site.stopping.set()
            server.should_exit = True
            async with asyncio.timeout(DEADLINE):
                await task
                await site.gateway.close()


class Told(NamedTuple):
    """An event as a browser would see it; a comment has only that."""

    event: str = ""
    id: str | None = None
    data: str = ""
    comment: bool = False

    @property
    def message(self) -> Any:
        """The payload of the CloudEvent."""
        return json.loads(self.data)["data"]


class Events:
    """A stream of them that is open."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.lines = response.aiter_lines()
        self.last: str | None = None

    async def next(self) -> Told | None:
        """The next event or comment; None: the stream has ended, as it should."""
        fields: dict[str, list[str]] = {}
        async with asyncio.timeout(DEADLINE):
            async for line in self.lines:
                if line:
                    name, _, value = line.partition(":")
                    fields.setdefault(name, []).append(value.removeprefix(" "))
                elif fields:
                    break
            else:
                return None
        if "id" in fields:
            self.last = fields["id"][-1]
        event, data = fields.get("event", [""])[-1], "\n".join(fields.get("data", []))
        return Told(event, self.last if "id" in fields else None, data, comment="" in fields)

    async def take(self, count: int) -> list[Told]:
        """So many that have data."""
        found = list[Told]()
        while len(found) < count:
            told = await self.next()
            assert told is not None, f"it ended after {len(found)} of {count}"
            if told.data:
                found.append(told)
        return found

    async def messages(self, count: int) -> list[Any]:
        return [told.message for told in await self.take(count)]


@asynccontextmanager
async def following(client: httpx.AsyncClient, pattern: str, /, **asked: Any) -> AsyncIterator[Events]:
    """``asked``: the query; ``last``: the header ``Last-Event-ID``."""
    headers = {"last-event-id": asked.pop("last")} if "last" in asked else {}
    async with client.stream("GET", f"/topics/{pattern}", params=asked, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Events(response)


class Talk:
    """A WebSocket that speaks in frames."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def say(self, /, **frame: Any) -> None:
        await self.connection.send(json.dumps(frame))

    async def next(self) -> tuple[str, Any]:
        async with asyncio.timeout(DEADLINE):
            ((kind, said),) = json.loads(await self.connection.recv()).items()
        return kind, said

    async def hear(self, *expected: str) -> Any:
        """What the next frames say, which are of these kinds."""
        heard = [await self.next() for _ in expected]
        assert [kind for kind, _ in heard] == [*expected], heard
        return heard[0][1] if len(heard) == 1 else [said for _, said in heard]

    async def messages(self, count: int) -> list[Any]:
        return [await self.hear("message") for _ in range(count)]


@asynccontextmanager
async def talking(url: str, token: str = "", **more: Any) -> AsyncIterator[Talk]:
    protocols: Any = ["tidings.v1", *([f"bearer.{token}"] if token else [])]
    async with connect(url.replace("http", "ws", 1) + "/ws", subprotocols=protocols, proxy=None, **more) as connection:
        assert connection.subprotocol == "tidings.v1"
        yield Talk(connection)


def unwritable(topic: str) -> Message[Any]:
    """A message that no JSON can have: half a character is in it."""
    return seal(Message(topic, b"1", type=topic, correlation_id="\ud800"), now=time.time(), source="elsewhere")


def silent(url: str, head: str) -> socket.socket:
    """A client that asks for something, and reads nothing."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    client.sendall(f"{head}\r\nHost: {host}:{port}\r\n".encode())
    return client


def upgrade(extra: Iterable[str] = ()) -> str:
    """The head of a WebSocket handshake, to its last line."""
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    lines = ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
    return "\r\n".join([*lines, *extra, "", ""])


def frame(text: str) -> bytes:
    """A client's text frame of fewer than 126 bytes (RFC 6455, section 5.2), masked with zeros."""
    data = text.encode()
    assert len(data) < 126
    return bytes([0x81, 0x80 | len(data), 0, 0, 0, 0]) + data
