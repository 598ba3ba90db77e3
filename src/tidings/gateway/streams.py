"""An open stream to a client: counted, kept alive, ended when the client does not read, or when the server stops.

No work a message beyond its write: one timer a stream looks now and then whether a write takes too long, or whether
nothing was written for so long that the client gets a sign of life.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from tidings.kernel.errors import NotOpen

from .refusals import Limited
from .site import Site

log = logging.getLogger("tidings.gateway")

LAST = 1.0  # seconds that the last words may take
GONE = (OSError, RuntimeError)  # what ASGI servers raise for a connection that is closed, or closing


class Stream:
    """What is written to one client, one write at a time.

    ``alive``: written whenever nothing else was for ``limits.heartbeat``; None: the protocol below has its own. What
    ``limits.patience`` is not enough to write ends the stream: ``slow``.
    """

    def __init__(self, site: Site, scope: Scope, send: Send, alive: Callable[[], Message] | None = None) -> None:
        self.site, self._scope, self._send, self._alive = site, scope, send, alive
        self.limits = site.gateway.limits
        self.ended = self.slow = False
        self.began = self.written = 0.0  # the write that is going on, the last one; 0: none
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self._until = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._beats: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """What is done inside is cancelled by ``end``, silently. Raises ``Limited``, ``NotOpen``."""
        gateway, most = self.site.gateway, self.limits.connections
        if self.site.stopping.is_set():
            raise NotOpen("this server is stopping", mend="come back in a moment")
        if gateway.streams >= most:
            raise Limited(
                f"{most:,} streams are open: there may be no more", mend="come back later, or raise the limit"
            )
        self.site.access.watched[self.end] = self.site.who(HTTPConnection(self._scope))
        gateway.streams += 1
        self.site.watch(self.end)
        self._look()
        try:
            async with self._until:
                yield
        except TimeoutError:
            if not self._until.expired():
                raise
        finally:
            self.ended = True
            gateway.streams -= 1
            self.site.streams.discard(self.end)
            self.site.access.watched.pop(self.end, None)
            if self._timer is not None:
                self._timer.cancel()
            if self._beats is not None:
                self._beats.cancel()
            if self.slow:
                self.drop()

    async def write(self, event: Message) -> None:
        """Hand an ASGI event to the server. It waits for a client that does not read; one that has gone ends it all."""
        async with self._writing:
            self.began = began = self._loop.time()
            try:
                await self._send(event)
            except GONE:
                self.end()
            finally:
                self.began = 0.0
            self.written = began

    async def last(self, event: Message) -> None:
        """Write the last words, for as long as that takes no time worth speaking of."""
        try:
            async with asyncio.timeout(LAST):
                await self.write(event)
        except TimeoutError:
            self.drop()

    def end(self) -> None:
        """End it: what goes on inside ``opened`` is cancelled."""
        if not self.ended:
            self.ended = True
            self._until.reschedule(self._loop.time())

    async def left(self, receive: Receive) -> None:
        """Wait until the server knows that a dropped client has gone, so that it does not miss the end of an answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST):
                await gone(receive, self.end)

    def drop(self) -> None:
        """Forget the connection and what was not read of it, where the server can (``connections.py``).

        A mere close would wait until everything was written, for somebody who does not read.
        """
        drop: Callable[[], None] | None = self._scope.get("extensions", {}).get("tidings", {}).get("drop")
        if drop is not None:
            drop()

    def _look(self) -> None:
        now, limits = self._loop.time(), self.limits
        if self.began and now - self.began > limits.patience:
            self.slow = True
            log.warning("%s did not read for %g s: let go", _client(self._scope), limits.patience)
            self.end()
            return
        if self._alive is not None and self.written and not self.began and now - self.written >= limits.heartbeat:
            self._beats = self._loop.create_task(self.write(self._alive()))
        self._timer = self._loop.call_later(min(limits.patience, limits.heartbeat) / 4, self._look)


def _client(scope: Scope) -> str:
    host, port = scope.get("client") or ("a client", 0)
    return f"{host}:{port}" if port else host


async def gone(receive: Receive, then: Callable[[], None]) -> None:
    """Wait until an HTTP client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    then()
