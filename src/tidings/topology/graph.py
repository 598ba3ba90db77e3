"""An app as a graph: topics, services and schedules, the handlers they call, and what these send and ask."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from tidings.app import App
from tidings.assembly import group_of
from tidings.inject import where
from tidings.kernel.topics import DEAD, is_pattern, matches
from tidings.router import Registration
from tidings.schedule import Cron, Interval

from .wiring import asked, called, defined, overlap, patterns, sent

NodeKind = Literal["topic", "service", "schedule", "handler", "dead", "app"]
EdgeKind = Literal["calls", "sends", "asks", "is part of", "dies"]


class Node(Struct, frozen=True, kw_only=True):
    """A channel, a schedule, a handler, or an app of which only the name is known.

    ``note``: of a handler its group, or how it runs; ``role``: the patterns that it and its middleware are;
    ``pattern``: of a topic, as the bus matches it. ``messages``: how many of a topic the bus retains, if it was asked.
    ``observed``: the app's code says nothing of it, the bus does.
    """

    id: str
    kind: NodeKind
    name: str
    note: str = ""
    role: str = ""
    bus: str = ""
    where: str = ""
    pattern: str = ""
    messages: int | None = None
    observed: bool = False

    @property
    def words(self) -> str:
        """What is said of it beside its name."""
        retained = "" if self.messages is None else f"{self.messages:,} message{'s' * (self.messages != 1)}"
        return ", ".join(filter(None, (self.role, self.note, retained)))


class Edge(Struct, frozen=True):
    """``is part of``: a topic to a pattern that matches it; ``dies``: a handler to its dead letters."""

    source: str
    target: str
    kind: EdgeKind


class Topology(Struct):
    """Nodes by id, in the order of declaration, and edges."""

    app: str
    nodes: dict[str, Node]
    edges: list[Edge]

    def add(self, node: Node) -> str:
        """Take a node over, unless it is there already; its id."""
        self.nodes.setdefault(node.id, node)
        return node.id

    def topic(self, name: str, pattern: str, bus: str, *, observed: bool = False) -> str:
        """The node of a topic: of one pattern there is one, whatever its captures are called."""
        kind: NodeKind = "dead" if pattern.startswith(DEAD) else "topic"
        id = f"{kind}:{bus}:{pattern}"
        return self.add(Node(id=id, kind=kind, name=name, bus=bus, pattern=pattern, observed=observed))

    def service(self, name: str, bus: str, *, observed: bool = False) -> str:
        """The node of a service."""
        return self.add(Node(id=f"service:{bus}:{name}", kind="service", name=name, bus=bus, observed=observed))

    def connect(self, source: str, target: str, kind: EdgeKind) -> None:
        """Draw an edge, once."""
        if (edge := Edge(source, target, kind)) not in self.edges:
            self.edges.append(edge)


def topology(app: App) -> Topology:
    """The graph of an app, from its registrations, what its patterns say, and its handlers' code; nothing is opened.

    A handler is shown to send to its ``to=``, and to every topic that it or a function of the app's own that it calls
    names. What a program publishes outside of handlers is not seen: ``observe`` sees it.
    """
    graph = declared(app)
    link(graph, app)
    return graph


def declared(app: App) -> Topology:
    """What the code says; ``link`` draws the rest."""
    graph = Topology(app.name, {}, [])
    for r in app.registrations:
        _handler(graph, app, r)
    for topic in defined(app):
        graph.topic(topic.template, topic.pattern, topic.bus)
    return graph


def link(graph: Topology, app: App) -> None:
    """Draw the edges that follow from the others: to patterns, and to dead letters."""
    _patterns(graph)
    _dead_letters(graph, app)


def handler_id(group: str) -> str:
    """The id of a group's node."""
    return f"handler:{group}"


def _handler(graph: Topology, app: App, r: Registration) -> None:
    group = group_of(r, app.name)
    known, place = ", ".join(pattern.name for pattern in patterns(r)), where(called(r))
    note = "live" if r.live else "on every replica" if r.each else "" if r.role == "answer" else group
    id = graph.add(Node(id=handler_id(group), kind="handler", name=r.fn.__name__, note=note, role=known, where=place))
    if r.role == "tick":
        source = graph.add(Node(id=f"schedule:{group}", kind="schedule", name=schedule_text(r.schedule), bus=r.bus))
    elif r.role == "answer":
        source = graph.service(r.template, r.bus)
    else:
        source = graph.topic(r.template, r.pattern, r.bus)
    graph.connect(source, id, "calls")
    for topic in sent(r):
        graph.connect(id, graph.topic(topic.template, topic.pattern, topic.bus), "sends")
    for service in asked(r):
        graph.connect(id, graph.service(service.name, service.bus), "asks")


def _patterns(graph: Topology) -> None:
    """What is published to a topic is also in each pattern that is listened to and matches it, or may."""
    heard = {edge.source for edge in graph.edges if edge.kind == "calls"}
    sent_to = {edge.target for edge in graph.edges if edge.kind == "sends"}
    topics = [node for node in graph.nodes.values() if node.kind == "topic"]
    parts = list[Edge]()
    for wide in topics:
        for narrow in topics:
            if wide is narrow or wide.bus != narrow.bus or wide.id not in heard:
                continue
            maybe = narrow.id in sent_to and overlap(wide.pattern, narrow.pattern)
            if maybe or (not is_pattern(narrow.name) and matches(wide.pattern, narrow.pattern)):
                parts.append(Edge(narrow.id, wide.id, "is part of"))
    graph.edges += parts


def _dead_letters(graph: Topology, app: App) -> None:
    """A group's dead letters go to who listens to them, or else to where the operator looks: one place a bus."""
    listened = [node for node in graph.nodes.values() if node.kind == "dead"]
    for r in app.registrations:
        if r.live or r.each or r.role == "answer" or r.pattern.startswith(DEAD):
            continue
        group = group_of(r, app.name)
        heard = [node.id for node in listened if node.bus == r.bus and overlap(node.pattern, DEAD + group)]
        for dead in heard or [graph.topic("dead letters", f"{DEAD}>", r.bus)]:
            graph.connect(handler_id(group), dead, "dies")


def schedule_text(schedule: Any) -> str:
    """A schedule in words."""
    if isinstance(schedule, Interval):
        return f"every {schedule.interval:g} s"
    return f"{schedule.expression} {schedule.tz}" if isinstance(schedule, Cron) else str(schedule)
