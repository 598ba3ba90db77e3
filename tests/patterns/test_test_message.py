"""Test messages: probes go the way of messages, are measured, missed when they do not arrive, and touch nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from tests.kernel.rig import virtual

from tidings import App, Message, Topic
from tidings.kernel.errors import InvalidName, InvalidOption
from tidings.patterns import Probe, carry_probes, is_probe
from tidings.patterns.test_message import Result
from tidings.testing import running
from tidings.topology import topology
from tidings.transports.memory import Memory

placed, billed, shipped = Topic("orders.placed", int), Topic("orders.billed", int), Topic("orders.shipped", int)


class Shop:
    """Two steps and who receives; some of it may be slow, broken, or batched."""

    def __init__(self, bus: Any = "memory://") -> None:
        self.app = App("shop", bus)
        self.results, self.received, self.touched = list[Result](), list[int](), list[int]()
        self.slow, self.broken = 0.0, False
        self.probe = Probe(
            self.app, "orders", at=placed, make=lambda: -1, to=shipped, within="30s", report=self.results.append
        )

        @self.app.on(placed)
        async def bill(n: int, message: Message[int]) -> Message[int]:
            if self.broken:
                raise ValueError("broken")
            await asyncio.sleep(self.slow)
            return billed(n, headers={"other": "x"})

        @self.app.on(billed)
        async def ship(n: int, message: Message[int]) -> list[Message[int]]:
            if not is_probe(message):
                self.touched.append(n)
            return [shipped(n), shipped(n + 1)]

        @self.app.on(shipped)
        async def receive(n: int) -> None:
            self.received.append(n)

        @self.app.on(shipped, batch=100, within="1s")
        async def count(ns: list[int]) -> None:
            self.received += ns


@virtual
async def test_probes_are_measured_and_touch_nothing(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop()
    caplog.set_level(logging.INFO, "tidings")
    async with running(shop.app) as captured:
        await shop.app.publish(placed, 10)
        await asyncio.sleep(100)
        shop.slow = 2.0
        await asyncio.sleep(100)
        assert shop.touched == [10]
        assert sorted(shop.received) == [10, 10, 11, 11]
        headers = [dict(message.headers or ()) for message in await captured.messages("orders.billed")]
        assert all(h["other"] == "x" for h in headers)
        assert sum("test-message" in h for h in headers) == len(headers) - 1
    took = [result.took for result in shop.results if result.took is not None]
    assert 18 <= len(took) == len(shop.results) <= 21
    assert took[0] == pytest.approx(0.0, abs=0.1)
    assert took[-1] == pytest.approx(2.0, abs=0.1)
    times = shop.probe.stats()
    assert (times.arrived, times.missing) == (len(took), 0)
    assert times.p50 is not None
    assert times.p99 == pytest.approx(2.0, abs=0.1)
    assert "probe orders: " in caplog.text


@virtual
async def test_one_that_does_not_arrive_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop()
    shop.broken = True
    async with running(shop.app) as captured:
        await asyncio.sleep(45)
        missing = [result for result in shop.results if result.took is None]
        assert 1 <= len(missing) == len(shop.results) == shop.probe.stats().missing <= 2
        assert "is missing after 30 s" in caplog.text
        shop.broken = False
        await captured.idle(timeout=86_400)
        store: Any = shop.app.bus()
        waiting = {info.name: info.records for info in await store.tables() if info.name == "probes.orders"}
        assert sum(waiting.values()) <= 1
    assert any(result.took is not None for result in shop.results)


@virtual
async def test_another_app_on_the_way_carries_the_mark() -> None:
    bus = Memory(name="way")
    results, seen = list[Result](), list[bool]()
    one, other = App("one", bus), App("other", bus)
    Probe(one, "far", at=placed, make=lambda: 1, to=shipped, report=results.append)
    carry_probes(other)

    @other.on(placed)
    async def step(n: int) -> Message[int]:
        return billed(n)

    @other.on(billed)
    async def ship(message: Message[int]) -> Message[int]:
        seen.append(is_probe(message))
        return shipped(message.data)

    async with one, other:
        await asyncio.sleep(35)
    assert len(results) >= 3
    assert all(result.took is not None and result.took < 1 for result in results)
    assert set(seen) == {True}


def test_what_cannot_be_is_refused() -> None:
    app = App("shop", "memory://")
    for at, to in ((placed, placed), (Topic("orders.{n}", int), shipped)):
        with pytest.raises(InvalidOption, match="cannot go from"):
            Probe(app, "x", at=at, make=lambda: 1, to=to)
    with pytest.raises(InvalidName):
        Probe(app, "x y", at=placed, make=lambda: 1, to=shipped)


def test_it_is_shown_as_what_it_is() -> None:
    shop = Shop()
    graph = topology(shop.app)
    roles = {node.note: node.role for node in graph.nodes.values() if node.role}
    assert set(roles.values()) == {"test message"}
    sends = {(edge.source, edge.target) for edge in graph.edges if edge.kind == "sends"}
    assert ("handler:shop.probe-orders", "topic::orders.placed") in sends
