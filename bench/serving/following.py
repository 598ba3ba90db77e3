"""Thousands of clients that follow topics, by Server-Sent Events or by WebSocket, and how late each message is to each.

Message *n* is due at start + *n* / rate and carries that moment; of several topics each has its turn, so that every
client gets one message a second. Messages are not parsed, but searched for what they carry. Each client must see each
message of its topic once, in order. A run ends before a ping must have been answered.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from ..pacer import Stamped
from ..peers._shared import encode
from .posting import HOST, asked, connected, post

AT_ONCE = 100  # clients that connect together
PATIENCE = 60.0  # seconds until what has not arrived is lost
TAIL = 512  # bytes kept of what has no stamp yet
STAMP = re.compile(rb'"due":([\d.]+),"n":(\d+),')
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class Crowd:
    """All clients together: how late each message was, and what went wrong."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.wrong = ""

    def check(self) -> None:
        if self.wrong:
            raise RuntimeError(self.wrong)


class Follower(asyncio.Protocol):
    """One client. ``first`` is the number of its first message, ``step`` what is between one and the next."""

    transport: asyncio.Transport
    ready_when = HEAD = b""

    def __init__(self, crowd: Crowd, topic: str, first: int, step: int) -> None:
        self.crowd, self.topic, self.next, self.step = crowd, topic, first, step
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.held = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.write(self.head())

    def head(self) -> bytes:
        """The request that begins it."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.held += data
        if not self.ready.done():
            self.begun()
        end = 0
        for found in STAMP.finditer(self.held):
            end, number = found.end(), int(found[2])
            if number != self.next:
                self.crowd.wrong = f"message {number} came instead of {self.next}"
            self.next = number + self.step
            self.crowd.delays.append(now - float(found[1]))
        self.held = self.held[end:][-TAIL:]

    def begun(self) -> None:
        if self.ready_when in self.held:
            self.ready.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.wrong = self.crowd.wrong or f"a connection was lost: {exc}, {self.held!r}"


class Events(Follower):
    """By Server-Sent Events."""

    ready_when = b"200 OK\r\n"

    def head(self) -> bytes:
        return f"GET /topics/{self.topic} HTTP/1.1\r\nHost: {HOST}\r\nAccept: text/event-stream\r\n\r\n".encode()


class WebSocket(Follower):
    """By WebSocket."""

    ready_when = b'"subscribed"'

    def head(self) -> bytes:
        lines = (
            "GET /ws HTTP/1.1",
            f"Host: {HOST}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {KEY}",
            "Sec-WebSocket-Protocol: tidings.v1",
        )
        return "\r\n".join((*lines, "", "")).encode()

    def begun(self) -> None:
        if b" 101 " in self.held and b"\r\n\r\n" in self.held:
            self.held = b""
            self.transport.write(masked(f'{{"subscribe":{{"id":"s","pattern":"{self.topic}"}}}}'))
        super().begun()


def masked(text: str) -> bytes:
    """A client's text frame of fewer than 126 bytes (RFC 6455, section 5.2), masked with zeros."""
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text.encode()


def topics(count: int) -> list[str]:
    return [f"prices.t{n}" for n in range(count)]


async def gathered(port: int, kind: type[Follower], clients: int, names: list[str]) -> tuple[Crowd, list[Follower]]:
    """Connected, and following."""
    loop, crowd = asyncio.get_running_loop(), Crowd()

    async def one(number: int) -> Follower:
        first = number % len(names)
        _, follower = await loop.create_connection(lambda: kind(crowd, names[first], first, len(names)), HOST, port)
        await follower.ready
        return follower

    found = list[Follower]()
    async with asyncio.timeout(PATIENCE):
        for at in range(0, clients, AT_ONCE):
            found += await asyncio.gather(*(one(number) for number in range(at, min(at + AT_ONCE, clients))))
    return crowd, found


async def paced(port: int, names: list[str], seconds: int) -> None:
    """A message a second in each topic."""
    connection = await connected(port, 1)
    start, rate = time.monotonic() + 0.1, len(names)
    for number in range(rate * seconds):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asked(connection, [post(names[number % rate], encode(Stamped(due, number)))])


async def arrived(crowd: Crowd, messages: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(crowd.delays) < messages:
        crowd.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(crowd.delays):,} of {messages:,} messages arrived")
        await asyncio.sleep(0.01)
    crowd.check()


async def followed(
    port: int, kind: type[Follower], clients: int, names: list[str], seconds: int, ready: Callable[[], None]
) -> list[float]:
    """How late each message was to each client; nothing is missing, nothing came twice. ``ready``: all have come."""
    crowd, found = await gathered(port, kind, clients, names)
    ready()
    await paced(port, names, seconds)
    await arrived(crowd, clients * seconds)
    for follower in found:
        follower.crowd = Crowd()
        follower.transport.abort()
    return crowd.delays
