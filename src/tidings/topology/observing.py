"""What the buses of an open app know beside its code: topics that hold messages, other apps' groups, who published."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from tidings.app import App
from tidings.kernel.errors import Unsupported
from tidings.kernel.message import Message, derived_id
from tidings.kernel.topics import REQUEST, TICK, is_pattern, matches
from tidings.kernel.transport import GroupInfo, Inspectable, TopicInfo

from .graph import Node, Topology, declared, handler_id, link

SAMPLE, PAGES, PAGE = 100, 20, 1_000  # messages of a node that are asked where they are from; what is read for that
OUTPUTS = 16  # messages that a handler may return for one, and still be known by
ELSEWHERE = "elsewhere"  # what publishes without saying who it is


async def observe(app: App, *, limit: int = 200) -> Topology:
    """``topology(app)``, and what its buses know: how many messages of each topic are retained; who published them, as
    far as the first 20,000 of a bus show it; and what the groups of other apps listen to.

    The app is open (``app.connect()`` will do). Up to ``limit`` topics that the code does not name are shown, those
    with most messages first; topics of a declared ``"sensors.{device}"`` count there. Subscriptions without a group
    (``live``) leave no trace on a bus. Raises ``Unsupported`` when no bus can be looked into; one of several that
    cannot is shown as declared.
    """
    graph, seen = declared(app), 0
    for bus in app.urls:
        transport = app.bus(bus)
        if isinstance(transport, Inspectable) and transport.capabilities.peek != "unavailable":
            groups = await transport.groups()
            _groups(graph, bus, groups)
            nodes = _shown(graph, bus, await transport.topics(), limit)
            await _publishers(graph, nodes, transport, groups)
            seen += 1
    if not seen:
        raise Unsupported("this bus cannot be looked into", mend="tidings.topology.topology(app) needs no bus")
    link(graph, app)
    return graph


def _groups(graph: Topology, bus: str, groups: Sequence[GroupInfo]) -> None:
    for group in groups:
        if handler_id(group.name) in graph.nodes:
            continue
        node = Node(id=handler_id(group.name), kind="handler", name=group.name, note=f"of {group.app}", observed=True)
        if group.pattern.startswith(TICK):
            source = graph.add(Node(id=f"schedule:{group.name}", kind="schedule", name="ticks", bus=bus, observed=True))
        elif group.pattern.startswith(REQUEST):
            source = graph.service(group.pattern.removeprefix(REQUEST), bus, observed=True)
        else:
            source = graph.topic(group.pattern, group.pattern, bus, observed=True)
        graph.connect(source, graph.add(node), "calls")


def _shown(graph: Topology, bus: str, topics: Sequence[TopicInfo], limit: int) -> dict[str, list[str]]:
    """By topic, the ids of the nodes that its messages are counted at."""
    known = [node for node in graph.nodes.values() if node.kind == "topic" and node.bus == bus]
    captured = [node.id for node in known if is_pattern(node.pattern) and not is_pattern(node.name)]
    names, new = {node.pattern: node.id for node in known}, 0
    found = dict[str, list[str]]()
    for topic in sorted(topics, key=lambda topic: -topic.messages):
        ids = [names[topic.name]] if topic.name in names else []
        ids = ids or [id for id in captured if matches(graph.nodes[id].pattern, topic.name)]
        if not ids:
            new += 1
            if new > limit:
                continue
            ids = [graph.topic(topic.name, topic.name, bus, observed=True)]
        found[topic.name] = ids
        for id in ids:
            node = graph.nodes[id]
            graph.nodes[id] = replace(node, messages=(node.messages or 0) + topic.messages)
    return found


async def _publishers(
    graph: Topology, nodes: dict[str, list[str]], transport: Inspectable, groups: Sequence[GroupInfo]
) -> None:
    """Draw who published: the group whose handler returned a message, where its id tells; else the app."""
    by_app, seen, after = defaultdict[str, list[str]](list), Counter[str](), 0
    for group in groups:
        by_app[group.app].append(group.name)
    for _ in range(PAGES):
        page = await transport.peek(">", after, PAGE)
        for message in (stored.message for stored in page):
            ids = [id for id in nodes.get(message.topic, ()) if seen[id] < SAMPLE]
            seen.update(ids)
            publisher = _publisher(graph, message, by_app[message.source]) if ids else ""
            for id in ids:
                graph.connect(publisher, id, "sends")
        if len(page) < PAGE:
            return
        after = page[-1].position


def _publisher(graph: Topology, message: Message[Any], groups: list[str]) -> str:
    """The id of the node that published a message; ``groups``: those of its app, the likeliest first."""
    sender = next((group for group in groups if _sent(message, group)), None)
    if sender is None:
        app = message.source or ELSEWHERE
        return graph.add(Node(id=f"app:{app}", kind="app", name=app, note="app", observed=True))
    groups.remove(sender)
    groups.insert(0, sender)
    return handler_id(sender)


def _sent(message: Message[Any], group: str) -> bool:
    """Whether a group's handler returned a message: its id is derived from the group's name."""
    cause = message.causation_id
    outputs = (derived_id(cause, group, message.topic, ordinal) for ordinal in range(OUTPUTS)) if cause else ()
    return message.id in outputs
