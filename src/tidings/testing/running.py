"""An app under test: on a private memory bus, with all that it publishes at hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from tidings import App, Message, Topic
from tidings.kernel.clock import current_clock
from tidings.kernel.codec import decoder
from tidings.kernel.topics import DEAD, matches
from tidings.kernel.transport import Options
from tidings.transports.memory import Memory, MemoryTransport

T = TypeVar("T")


class Captured:
    """What has happened on the buses of a running app."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def messages(self, pattern: str = ">", bus: str = "") -> list[Message[Any]]:
        """Everything published so far that matches, sealed, oldest first."""
        return [stored.message for stored in await self._bus(bus).peek(pattern, limit=2**31)]

    async def payloads(self, topic: Topic[T]) -> list[T]:
        """The payloads published to a topic so far, decoded as handlers get them."""
        decode = decoder(topic.type, lax=topic.lax)
        return [decode(m.body, m.content_type) for m in await self.messages(topic.pattern, topic.bus)]

    async def dead(self, group: str = "") -> list[Message[Any]]:
        """The dead letters of a group, or of all; ``message.header("tdgreason")`` says why."""
        found = [m for bus in self.app.urls for m in await self.messages(DEAD + ">", bus)]
        return [m for m in found if not group or matches(DEAD + group, m.destination)]

    async def idle(self, timeout: float = 30.0) -> None:
        """Wait until every group has settled all that it was given, what waits for its next attempt or its time too.

        Raises ``TimeoutError`` with what is left. In virtual time (``run_virtual``) waits of hours take no time, and
        ``timeout`` is virtual too.
        """
        began = current_clock().monotonic()
        while left := await self._left():
            passed = current_clock().monotonic() - began
            if passed > timeout:
                raise TimeoutError(f"not settled within {timeout:g} s: {', '.join(left)}")
            await asyncio.sleep(0.001 + passed / 50)  # virtual hours shall not take millions of looks

    async def _left(self) -> Sequence[str]:
        left = []
        for name in self.app.urls:
            bus = self._bus(name)
            left += [g.name for g in await bus.groups() if g.lag + g.in_flight + g.parked]
            left += ["delayed messages"] if bus.store.delayed else []
        return left

    def _bus(self, name: str) -> MemoryTransport:
        transport = self.app.bus(name)
        assert isinstance(transport, MemoryTransport)
        return transport


@asynccontextmanager
async def running(app: App, *, consume: bool = True) -> AsyncIterator[Captured]:
    """Run an app on memory buses of its own, whatever its code and the environment say::

        async def test_billing():
            async with running(app) as captured:
                await app.publish(placed, Order(1))
                await captured.idle()
                assert await captured.payloads(invoiced) == [Invoice(1)]

    ``consume=False``: no handler runs. Afterwards the app has the buses it had before. Under ``run_virtual`` backoffs,
    delays and schedules pass at once.
    """
    before: tuple[dict[str, str | Options], set[str]] = dict(app.urls), set(app._used)
    for name in app.urls:
        app.use(Memory(), name)
    try:
        async with app if consume else app.connect():
            yield Captured(app)
    finally:
        app.urls, app._used = before
