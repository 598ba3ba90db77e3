"""An app as a graph: topics, services and schedules, the handlers they call, and what these send and ask."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from tidings import App
from tidings.assembly import group_of
from tidings.kernel.topics import DEAD, is_pattern, matches
from tidings.router import Registration

from ._wiring import asked, defined, overlap, sent
from .run import schedule_text

NodeKind = Literal["topic", "service", "schedule", "handler", "dead"]
EdgeKind = Literal["calls", "sends", "asks", "is part of", "dies"]


class Node(Struct, frozen=True, kw_only=True):
    """A channel, a schedule or a handler. ``note``: its group, or how it runs; ``pattern``: of a topic."""

    id: str
    kind: NodeKind
    name: str
    note: str = ""
    bus: str = ""
    where: str = ""
    pattern: str = ""


class Edge(Struct, frozen=True):
    """``is part of``: a topic to a pattern that matches it; ``dies``: a handler to its dead letters."""

    source: str
    target: str
    kind: EdgeKind


class Graph(Struct):
    """Nodes by id, in the order of declaration, and edges."""

    app: str
    nodes: dict[str, Node]
    edges: list[Edge]

    def topic(self, name: str, pattern: str, bus: str) -> str:
        """The node of a topic: of one pattern there is one, whatever its captures are called."""
        kind: NodeKind = "dead" if pattern.startswith(DEAD) else "topic"
        return self.add(Node(id=f"{kind}:{bus}:{pattern}", kind=kind, name=name, bus=bus, pattern=pattern))

    def add(self, node: Node) -> str:
        """Take a node over, unless it is there already; its id."""
        self.nodes.setdefault(node.id, node)
        return node.id

    def connect(self, source: str, target: str, kind: EdgeKind) -> None:
        """Draw an edge, once."""
        if (edge := Edge(source, target, kind)) not in self.edges:
            self.edges.append(edge)


def graph_of(app: App) -> Graph:
    """The graph of an app, from its registrations and its handlers' code."""
    graph = Graph(app.name, {}, [])
    for r in app.registrations:
        _handler(graph, app, r)
    for topic in defined(app):
        graph.topic(topic.template, topic.pattern, topic.bus)
    _patterns(graph)
    _dead_letters(graph, app)
    return graph


def _handler(graph: Graph, app: App, r: Registration) -> None:
    group = group_of(r, app.name)
    note = "live" if r.live else "on every replica" if r.each else "" if r.role == "answer" else group
    id = graph.add(Node(id=f"handler:{group}", kind="handler", name=r.fn.__name__, note=note, where=r.where))
    if r.role == "tick":
        source = graph.add(Node(id=f"schedule:{group}", kind="schedule", name=schedule_text(r.schedule), bus=r.bus))
    elif r.role == "answer":
        source = graph.add(Node(id=f"service:{r.bus}:{r.template}", kind="service", name=r.template, bus=r.bus))
    else:
        source = graph.topic(r.template, r.pattern, r.bus)
    graph.connect(source, id, "calls")
    for topic in sent(r):
        graph.connect(id, graph.topic(topic.template, topic.pattern, topic.bus), "sends")
    for service in asked(r):
        node = Node(id=f"service:{service.bus}:{service.name}", kind="service", name=service.name, bus=service.bus)
        graph.connect(id, graph.add(node), "asks")


def _patterns(graph: Graph) -> None:
    """What is published to a topic is also in each pattern that is listened to and matches it."""
    heard = {edge.source for edge in graph.edges if edge.kind == "calls"}
    sent_to = {edge.target for edge in graph.edges if edge.kind == "sends"}
    topics = [node for node in graph.nodes.values() if node.kind == "topic"]
    for wide in topics:
        for narrow in topics:
            if wide is narrow or wide.bus != narrow.bus or wide.id not in heard or is_pattern(narrow.name):
                continue
            maybe = narrow.id in sent_to and overlap(wide.pattern, narrow.pattern)
            if maybe or matches(wide.pattern, narrow.pattern):
                graph.connect(narrow.id, wide.id, "is part of")


def _dead_letters(graph: Graph, app: App) -> None:
    """A group's dead letters go to who listens to them, or else to where the operator looks: one place a bus."""
    listened = [node for node in graph.nodes.values() if node.kind == "dead"]
    for r in app.registrations:
        if r.live or r.each or r.role == "answer" or r.pattern.startswith(DEAD):
            continue
        group = group_of(r, app.name)
        heard = [node.id for node in listened if node.bus == r.bus and overlap(node.pattern, DEAD + group)]
        for dead in heard or [graph.topic("dead letters", f"{DEAD}>", r.bus)]:
            graph.connect(f"handler:{group}", dead, "dies")
