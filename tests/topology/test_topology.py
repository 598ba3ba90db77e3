"""The graph from Python: patterns as what they are, what the bus knows, and channels with one end."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import pytest
from tests.conformance.engines import ENGINES, engine_bus

from tidings import App, Message, Service, State, Table, Topic, due
from tidings.kernel.errors import Unsupported
from tidings.kernel.handler import One
from tidings.patterns import ControlBus
from tidings.patterns._pattern import describe
from tidings.topology import Edge, Node, Topology, mermaid, observe, orphans, svg, topology, tree

placed, lines, picked = Topic("orders.placed", int), Topic("lines", int), Topic("picked", int)
readings = Topic("sensors.{device}", int)
price, stock = Service("price", int, float), Service("stock", int, int)


def edges(graph: Topology, kind: str) -> set[tuple[str, str]]:
    return {(edge.source, edge.target) for edge in graph.edges if edge.kind == kind}


def named(nodes: tuple[Node, ...]) -> list[str]:
    return [node.name for node in nodes]


def test_a_pattern_is_shown_as_what_it_is() -> None:
    app = App("desk", "memory://")

    @app.on(placed)
    async def plain(n: int) -> None: ...

    async def split(n: int) -> Message[int]:
        return lines(n)

    @functools.wraps(split)
    async def handler(n: int) -> None: ...

    app.on(placed)(describe(handler, "splitter", publishes=[lines, readings], asks=[price]))
    graph = topology(app)
    assert [graph.nodes[f"handler:desk.{name}"].role for name in ("plain", "split")] == ["", "splitter"]
    assert edges(graph, "sends") == {
        ("handler:desk.split", "topic::lines"),
        ("handler:desk.split", "topic::sensors.*"),
    }
    assert edges(graph, "asks") == {("handler:desk.split", "service::price")}
    assert '["split<br/><small>splitter, desk.split</small>"]' in mermaid(graph)
    assert "split (splitter, desk.split)" in tree(graph)
    assert 'class="handler pattern"' in svg(graph)


def test_what_stands_around_a_handler_is_shown_too() -> None:
    app = App("desk", "memory://")
    ways = {"a": lines, "b": picked}

    def tap(one: One) -> One:
        return one

    @app.on(placed, middleware=[describe(tap, "wire tap", publishes=[readings]), lambda one: one])
    async def route(n: int) -> Message[int]:
        return ways["a" if n else "b"](n)

    graph = topology(app)
    assert graph.nodes["handler:desk.route"].role == "wire tap"
    assert edges(graph, "sends") == {
        ("handler:desk.route", f"topic::{topic}") for topic in ("sensors.*", "lines", "picked")
    }


def test_what_is_due_is_shown_where_it_is_written() -> None:
    app, late = App("desk", "memory://"), Table("late", int)

    @due(app, late)
    async def remind(key: str, n: int, state: State) -> Message[int]:
        return lines(n)

    graph = topology(app)
    node = graph.nodes["handler:desk.remind-due"]
    assert node.where.rpartition(":")[0] == __file__
    assert edges(graph, "sends") == {(node.id, "topic::lines")}


def test_what_is_published_to_a_pattern_may_be_in_its_topics() -> None:
    app = App("desk", "memory://")

    async def step(n: int) -> None: ...

    app.on(placed)(describe(step, "routing slip", publishes=[Topic("trips.>", int)]))

    @app.on("trips.car")
    async def drive(n: int) -> None: ...

    graph = topology(app)
    assert edges(graph, "is part of") == {("topic::trips.>", "topic::trips.car")}
    assert named(orphans(graph).unsent) == ["orders.placed"]
    assert named(orphans(graph).unheard) == []


def test_orphans() -> None:
    app = App("desk", "memory://")

    @app.on(placed)
    async def bill(n: int) -> list[Message[int]]:
        await app.request(price, n)
        return [lines(n), readings.bind(device="a")(n)]

    @app.on("lines.>")
    async def below(n: int) -> None: ...

    @app.on("sensors.>")
    async def watch(n: int) -> None: ...

    @app.answer(stock)
    async def count(n: int) -> int:
        return n

    describe(watch, "wire tap", publishes=[picked])
    ControlBus(app)
    found = orphans(topology(app))
    assert named(found.unheard) == ["lines", "price", "picked"]
    assert named(found.unsent) == ["orders.placed", "lines.>", "stock"]
    assert named(found.unused) == []


async def test_what_the_bus_knows(tmp_path: Path) -> None:
    bus = f"sqlite:///{tmp_path}/shop.db"
    desk, shop = App("desk", bus), App("shop", bus)

    @desk.on(placed)
    async def bill(n: int) -> Message[int]:
        return lines(n)

    @desk.on(readings)
    async def watch(n: int, device: str) -> None: ...

    @shop.on(lines)
    async def pick(n: int) -> None:
        picked_one.set()

    @shop.answer(stock)
    async def count(n: int) -> int:
        return n

    picked_one = asyncio.Event()
    async with desk, shop:
        await shop.publish_many([placed(1), readings.bind(device="a")(1), readings.bind(device="b")(2)])
        await desk.publish(Topic("spare.one"), 1)
        await desk.publish(Topic("spare.two"), 1)
        await desk.publish(Topic("spare.two"), 1)
        await asyncio.wait_for(picked_one.wait(), 30)
        graph = await observe(desk, limit=1)
    assert edges(graph, "sends") == {
        ("handler:desk.bill", "topic::lines"),
        ("app:shop", "topic::orders.placed"),
        ("app:shop", "topic::sensors.*"),
        ("app:desk", "topic::spare.two"),
    }
    assert {("topic::lines", "handler:shop.pick"), ("service::stock", "handler:stock")} <= edges(graph, "calls")
    assert (graph.nodes["handler:shop.pick"].observed, graph.nodes["handler:desk.bill"].observed) == (True, False)
    counted = {node.name: node.messages for node in graph.nodes.values() if node.messages}
    assert counted == {"orders.placed": 1, "sensors.{device}": 2, "lines": 1, "spare.two": 2}
    found = orphans(graph)
    assert (named(found.unheard), named(found.unsent)) == (["spare.two"], ["stock"])
    assert "sensors.{device} (2 messages)" in tree(graph)
    assert "lines (1 message)" in tree(graph)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
async def test_what_a_server_knows(engine: str) -> None:
    options = engine_bus(engine).options(3.0)
    desk, shop, arrived = App("desk", options), App("shop", options), asyncio.Event()

    @desk.on(placed)
    async def bill(n: int) -> Message[int]:
        return lines(n)

    @shop.on(lines)
    async def pick(n: int) -> None:
        arrived.set()

    async with desk, shop:
        await shop.publish(placed, 1)
        await asyncio.wait_for(arrived.wait(), 60)
        if engine == "rabbitmq":
            with pytest.raises(Unsupported, match="cannot be looked into"):
                await observe(desk)
            return
        graph = await observe(desk)
    assert edges(graph, "sends") == {
        ("app:shop", "topic::orders.placed"),
        ("handler:desk.bill", "topic::lines"),
    }
    assert ("topic::lines", "handler:shop.pick") in edges(graph, "calls")
    assert orphans(graph).unheard == orphans(graph).unsent == ()


def test_an_edge_is_drawn_once() -> None:
    graph = Topology("desk", {}, [])
    graph.connect("a", "b", "sends")
    graph.connect("a", "b", "sends")
    assert graph.edges == [Edge("a", "b", "sends")]
