"""Smart proxies: who asks gets the reply, or the error, in time; and all of it is watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.kernel.rig import until, virtual

from tidings import App, RequestTimeout, Service
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import AnswerFailed, InvalidOption
from tidings.patterns import Exchange, SmartProxy
from tidings.topology import topology
from tidings.transports.memory import Memory

prices, pricing = Service("prices", int, int), Service("pricing", int, int)
counts, counting = Service("counts", int, int), Service("counting", int, int)


class Stage:
    """A service behind a proxy; who asks is another app."""

    def __init__(self, name: str) -> None:
        bus = Memory(name=name)
        self.desk, self.shop, self.seen = App("desk", bus), App("shop", bus), list[Exchange[int, int]]()
        self.proxy = SmartProxy(self.shop, prices, to=pricing, timeout="10s", report=self.seen.append)
        SmartProxy(self.shop, counts, to=counting, stream=True, report=self.seen.append)

        @self.shop.answer(pricing)
        async def price(n: int) -> int:
            if n < 0:
                raise LookupError("no such number")
            await asyncio.sleep(n)
            return n * n

        @self.shop.answer(counting)
        async def count(n: int) -> AsyncIterator[int]:
            for number in range(n):
                yield number
            if n > 3:
                raise LookupError("too many")


@virtual
async def test_replies_go_to_who_asked() -> None:
    stage = Stage("replies")
    async with stage.desk.connect() as desk, stage.shop:
        replies = await asyncio.gather(*(desk.request(prices, n) for n in (3, 1, 2)))
        assert replies == [9, 1, 4]
    assert [(each.request, each.replies, each.asker, each.error) for each in stage.seen] == [
        (n, [n * n], "desk", "") for n in (1, 2, 3)
    ]
    assert [each.took for each in stage.seen] == [pytest.approx(n, abs=0.1) for n in (1, 2, 3)]
    assert len({each.address for each in stage.seen}) == 1
    watched = stage.proxy.stats()
    assert (watched.answered, watched.failed) == (3, 0)
    assert watched.p50 == pytest.approx(2, abs=0.1)


@virtual
async def test_what_is_asked_now() -> None:
    stage = Stage("pending")
    async with stage.desk.connect() as desk, stage.shop:
        asking = asyncio.ensure_future(desk.request(prices, 5))
        await until(lambda: bool(stage.proxy.pending))
        [exchange] = stage.proxy.pending.values()
        assert (exchange.request, exchange.replies, exchange.took, exchange.asker) == (5, [], None, "desk")
        assert await asking == 25
        assert stage.proxy.pending == {}


@virtual
async def test_errors_and_deadlines() -> None:
    stage = Stage("errors")
    async with stage.desk.connect() as desk, stage.shop:
        with pytest.raises(AnswerFailed, match="LookupError: no such number"):
            await desk.request(prices, -1)
        began = current_clock().monotonic()
        with pytest.raises(RequestTimeout):
            await desk.request(prices, 100, timeout="2s")
        assert current_clock().monotonic() - began == pytest.approx(2, abs=0.1)
        with pytest.raises(AnswerFailed, match="RequestTimeout"):
            await desk.request(prices, 100, timeout="1m")
        assert current_clock().monotonic() - began == pytest.approx(12, abs=0.2)
        await until(lambda: len(stage.seen) == 3)
    assert [each.error.partition(":")[0] for each in stage.seen] == ["AnswerFailed", "RequestTimeout", "RequestTimeout"]
    assert stage.proxy.stats().failed == 3


@virtual
async def test_streams_are_passed_on() -> None:
    stage = Stage("streams")
    async with stage.desk.connect() as desk, stage.shop:
        assert [n async for n in desk.request_stream(counts, 3)] == [0, 1, 2]
        stream: Any = desk.request_stream(counts, 4)
        assert [await anext(stream) for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(AnswerFailed, match="too many"):
            await anext(stream)
        await until(lambda: len(stage.seen) == 2)
    assert [each.replies for each in stage.seen] == [[0, 1, 2], [0, 1, 2, 3]]
    assert [bool(each.error) for each in stage.seen] == [False, True]


@virtual
async def test_a_service_on_another_bus() -> None:
    bus = Memory(name="far")
    app, behind = App("shop", "memory://", far=bus), App("pricing", bus)
    SmartProxy(app, prices, to=Service("prices", int, int, bus="far"))

    @behind.answer(prices)
    async def price(n: int) -> int:
        return n + 1

    async with behind, app:
        assert await app.request(prices, 1) == 2


def test_what_cannot_be_is_refused() -> None:
    app = App("shop", "memory://")
    with pytest.raises(InvalidOption, match="its own proxy"):
        SmartProxy(app, prices, to=Service("prices", int, int))
    with pytest.raises(InvalidOption, match="timeout"):
        SmartProxy(app, prices, to=pricing, timeout="soon")


def test_it_is_shown_as_what_it_is() -> None:
    graph = topology(Stage("shown").shop)
    assert [node.role for node in graph.nodes.values() if node.name == "smart_proxy"] == ["smart proxy"] * 2
    asks = {(edge.source, edge.target) for edge in graph.edges if edge.kind == "asks"}
    assert asks == {("handler:prices", "service::pricing"), ("handler:counts", "service::counting")}
