"""Tidings by URL: the same code on every engine, with its defaults."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from msgspec import Struct

from tidings import App, Topic
from tidings.kernel.transport import Inspectable

from ..pacer import Stamped
from ..payload import Order
from ..peers._shared import Tally
from .works import GROUP, Settled, Sink, until

NAME = "Tidings"
TOPICS: dict[type[Struct], Topic[Any]] = {kind: Topic("orders.placed", kind) for kind in (Order, Stamped)}
HANDLER = f"{GROUP}.noop"


class Publisher:
    def __init__(self, app: App) -> None:
        self.app = app

    async def many(self, items: Sequence[Struct]) -> None:
        topic = TOPICS[type(items[0])]
        await self.app.publish_many([topic(item) for item in items])

    async def one(self, item: Struct) -> None:
        await self.app.publish(TOPICS[type(item)], item)


class Tidings:
    def __init__(self, url: str, place: str) -> None:
        self.url, self.place = url, place
        self.bus = f"{url}{'&' if '?' in url else '?'}namespace={place}"

    def _app(self, sink: Sink) -> App:
        app = App(GROUP, self.bus)

        async def noop(item: Any) -> None:
            sink.see(item)

        noop.__annotations__["item"] = sink.payload
        app.on(TOPICS[sink.payload])(noop)
        return app

    async def create(self) -> None:
        """The group begins with what is published from now on."""
        async with self._app(Tally(0)):
            pass

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[Publisher]:
        async with (app := App(GROUP, self.bus)).connect():
            yield Publisher(app)

    @asynccontextmanager
    async def consuming(self, sink: Sink) -> AsyncIterator[Settled]:
        async with (app := self._app(sink)):
            stats = app.stats()[HANDLER]
            yield lambda: until(lambda: not sink.more() and stats.handled >= sink.count, sink)

    async def left(self) -> int:
        async with (app := App(GROUP, self.bus)).connect():
            bus = app.bus()
            if not isinstance(bus, Inspectable):
                raise TypeError(f"{type(bus).__name__} cannot tell what is left")
            found = await bus.groups(HANDLER)
        if len(found) != 1:
            raise RuntimeError(f"{len(found)} groups where there should be one")
        return sum(group.lag + group.in_flight + group.parked + group.dead for group in found)

    async def remove(self) -> None:
        """Nothing: a namespace is forgotten with its server."""
