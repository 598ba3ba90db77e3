"""An HTTP/1.1 client that costs little: connections that are kept, one request at a time on each, nothing parsed but
the length of an answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator

HOST = "127.0.0.1"
PATIENCE = 60.0  # seconds for all answers
LINES = "application/x-ndjson"
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
HEAD_ENDS = b"\r\n\r\n"
ACCEPTED = b"HTTP/1.1 202"


def post(topic: str, body: bytes, content_type: str = "application/json") -> bytes:
    """A request that publishes."""
    head = f"POST /topics/{topic} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Run:
    """Requests that several connections share. ``ids``: how many messages the answers say were accepted."""

    def __init__(self, requests: Iterable[bytes]) -> None:
        self.requests: Iterator[bytes] = iter(requests)
        self.over = asyncio.get_running_loop().create_future()
        self.open = self.ids = 0

    def next(self) -> bytes | None:
        return next(self.requests, None)

    def fail(self, why: str) -> None:
        if not self.over.done():
            self.over.set_exception(RuntimeError(why))

    def left(self) -> None:
        """One connection has nothing more to ask."""
        self.open -= 1
        if not self.open and not self.over.done():
            self.over.set_result(None)


class Connection(asyncio.Protocol):
    """One that asks as long as its run has requests."""

    transport: asyncio.Transport
    run: Run | None = None
    held = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def begin(self, run: Run) -> None:
        self.run = run
        run.open += 1
        self._ask(run)

    def _ask(self, run: Run) -> None:
        if (request := run.next()) is None:
            self.run = None
            run.left()
        else:
            self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.held += data
        head = self.held.find(HEAD_ENDS)
        if head < 0 or self.run is None:
            return
        found = LENGTH.search(self.held, 0, head)
        if found is None or not self.held.startswith(ACCEPTED):
            self.run.fail(f"the server answered {self.held[:200]!r}")
            return
        if len(self.held) == head + len(HEAD_ENDS) + int(found[1]):
            self.run.ids += self.held.count(b'"', head) // 2 - 1  # {"ids":["…","…"]}
            self.held = b""
            self._ask(self.run)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.run is not None:
            self.run.fail(f"a connection was lost: {exc}")


async def connected(port: int, connections: int) -> list[Connection]:
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Connection, HOST, port))[1] for _ in range(connections)]


async def asked(connections: list[Connection], requests: Iterable[bytes]) -> int:
    """All requests, answered; how many messages were accepted. Raises ``RuntimeError`` for any other answer."""
    run = Run(requests)
    for connection in connections:
        connection.begin(run)
    async with asyncio.timeout(PATIENCE):
        await run.over
    return run.ids
