"""A graph in text: a Mermaid flowchart, and a tree."""

from __future__ import annotations

from collections.abc import Iterator

from .graph import Edge, Node, Topology

SHAPES = {
    "topic": ("([", "])"),
    "service": ("{{", "}}"),
    "schedule": ("[/", "/]"),
    "handler": ("[", "]"),
    "dead": ("[[", "]]"),
    "app": (">", "]"),
}
ARROWS = {"calls": "-->", "sends": "-->", "asks": "-- asks -->", "is part of": "-.->", "dies": "-. fails .->"}


def mermaid(graph: Topology) -> str:
    """A Mermaid flowchart; each further bus is a frame."""
    return "\n".join(_flowchart(graph)) + "\n"


def _flowchart(graph: Topology) -> Iterator[str]:
    names = {id: f"n{number}" for number, id in enumerate(graph.nodes)}
    yield "flowchart LR"
    for bus in sorted({"", *(node.bus for node in graph.nodes.values())}):
        indent = "    " if bus else "  "
        if bus:
            yield f'  subgraph bus_{bus}["bus {_label(bus)}"]'
        for id, node in graph.nodes.items():
            if node.bus == bus:
                left, right = SHAPES[node.kind]
                text = _label(node.name) + (f"<br/><small>{_label(node.words)}</small>" if node.words else "")
                yield f'{indent}{names[id]}{left}"{text}"{right}'
        if bus:
            yield "  end"
    for edge in graph.edges:
        yield f"  {names[edge.source]} {ARROWS[edge.kind]} {names[edge.target]}"


def _label(text: str) -> str:
    return "".join(f"#{ord(c)};" if c in '<>"&#`' else c for c in text)


def tree(graph: Topology) -> str:
    """From each source down to what follows; what stands elsewhere already is only named."""
    return "\n".join(_tree(graph)) + "\n"


def _tree(graph: Topology) -> Iterator[str]:
    yield graph.app
    edges = [edge for edge in graph.edges if edge.kind != "dies"]
    entered = {edge.target for edge in edges}
    shown: set[str] = set()
    leads = {edge.source for edge in edges}
    for id in sorted(graph.nodes, key=lambda id: id in entered):  # last, what is only in circles
        if id not in shown and (id in leads or graph.nodes[id].kind != "dead"):
            yield from _branch(graph, edges, id, shown)


def _branch(graph: Topology, edges: list[Edge], id: str, shown: set[str]) -> Iterator[str]:
    waiting = [(id, "", "")]  # with what its line begins, and those below it
    while waiting:
        id, first, rest = waiting.pop()
        after = [edge for edge in edges if edge.source == id]
        more = " …" if id in shown and after else ""
        yield f"{first}{_line(graph.nodes[id])}{more}"
        if id in shown:
            continue
        shown.add(id)
        for edge in reversed(after):
            last = edge is after[-1]
            arrow = {"asks": "asks ", "is part of": "also "}.get(edge.kind, "")
            head = f"{rest}{'└' if last else '├'}─ {arrow}"
            waiting.append((edge.target, head, f"{rest}{' ' if last else '│'}  "))


def _line(node: Node) -> str:
    where = f"  {node.where.rpartition('/')[2]}" if node.where else ""
    return f"{node.name}{f' ({node.words})' if node.words else ''}{f' on {node.bus}' if node.bus else ''}{where}"
