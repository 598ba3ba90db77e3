"""``GET /topics``: the topics that a client may subscribe to, what is retained of each, and how fast messages come.

Rates are counted from the moment somebody looks, and no longer than somebody does.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tidings.kernel.errors import BusError
from tidings.kernel.message import JSON
from tidings.kernel.transport import Inspectable, TopicInfo

from .gateway import Gateway
from .rights import ANYONE, covers
from .site import Site, answering

FADES = 5.0  # seconds in which a message's share of the rate falls to a third
MOST = 10_000  # topics whose rates are known; those silent for longest are forgotten
LISTED = 1_000  # topics in one answer
LOOKS = 30.0  # seconds that are counted on after the last look
FRESH = 1.0  # seconds that an answer of the bus is good for


class Seen(Struct, frozen=True):
    """A topic. ``retained``: messages; ``last``: Unix seconds of the newest; None: the bus cannot tell."""

    name: str
    rate: float  # messages per second
    retained: int | None = None
    last: float | None = None


class Rates:
    """How many messages a second come to each topic: an exponential moving average, with no work between messages."""

    def __init__(self) -> None:
        self._known = OrderedDict[str, tuple[float, float]]()  # topic -> its rate, and when that was
        self._task: asyncio.Task[None] | None = None
        self._looked = 0.0

    def look(self, gateway: Gateway) -> dict[str, float]:
        """The rates now. From here on they are counted."""
        loop = asyncio.get_running_loop()
        now = self._looked = loop.time()
        if self._task is None or self._task.done():
            self._known.clear()
            self._task = loop.create_task(self._count(gateway))
        return {topic: rate * math.exp((at - now) / FADES) for topic, (rate, at) in self._known.items()}

    async def _count(self, gateway: Gateway) -> None:
        with suppress(BusError):  # it begins anew at the next look
            follower = await gateway.follow(ANYONE, ">")
            try:
                async with asyncio.timeout_at(self._looked + LOOKS) as until:
                    while items := await follower.next():
                        until.reschedule(self._looked + LOOKS)
                        self._add(item.message.topic for item in items)
            except TimeoutError:
                return
            finally:
                follower.close()

    def _add(self, topics: Iterable[str]) -> None:
        now = asyncio.get_running_loop().time()
        for topic in topics:
            rate, at = self._known.pop(topic, (0.0, now))
            self._known[topic] = rate * math.exp((at - now) / FADES) + 1 / FADES, now
        while len(self._known) > MOST:
            self._known.popitem(last=False)


class Topics:
    """What the bus and the rates tell, for whoever asks."""

    def __init__(self) -> None:
        self.rates = Rates()
        self._told: Sequence[TopicInfo] = ()
        self._at = -FRESH
        self._asking = asyncio.Lock()

    async def of(self, gateway: Gateway, patterns: Sequence[str]) -> list[Seen]:
        """Those in some of the patterns, by name."""
        rates = self.rates.look(gateway)
        found = {topic: Seen(topic, round(rate, 2)) for topic, rate in rates.items()}
        for info in await self._retained(gateway):
            found[info.name] = Seen(info.name, round(rates.get(info.name, 0.0), 2), info.messages, info.last)
        return [found[name] for name in sorted(found) if any(covers(pattern, name) for pattern in patterns)]

    async def _retained(self, gateway: Gateway) -> Sequence[TopicInfo]:
        """What the bus tells; who asks again at once, or meanwhile, gets the same answer."""
        bus = gateway.bus.transport
        if not isinstance(bus, Inspectable):
            return ()
        async with self._asking:
            if time.monotonic() - self._at > FRESH:
                self._told = await bus.topics()
                self._at = time.monotonic()
        return self._told


def routes(site: Site) -> list[BaseRoute]:
    topics = Topics()

    @answering
    async def listed(request: Request) -> Response:
        who, gateway = site.who(request), await site.ready()
        found = await topics.of(gateway, who.rights.subscribe)
        told = {"topics": found[:LISTED], "more": max(0, len(found) - LISTED)}
        return Response(msgspec.json.encode(told), media_type=JSON, headers={"cache-control": "no-store"})

    return [Route("/topics", listed, methods=["GET"], name="topics")]
