"""``tidings topology``: what calls what in an app, as Mermaid, a picture, a tree or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tidings.kernel.errors import InvalidOption

from . import show
from ._graph import Edge, Graph, Node, graph_of
from ._options import DryRun, Json, Target, flag
from ._svg import svg as drawn
from ._target import find_app

SHAPES = {
    "topic": ("([", "])"),
    "service": ("{{", "}}"),
    "schedule": ("[/", "/]"),
    "handler": ("[", "]"),
    "dead": ("[[", "]]"),
}
ARROWS = {"calls": "-->", "sends": "-->", "asks": "-- asks -->", "is part of": "-.->", "dies": "-. fails .->"}


def topology(
    target: Target,
    /,
    *,
    svg: Annotated[str | None, Parameter(help="Draw it into this file.")] = None,
    text: Annotated[bool, flag("A tree instead.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Show how an app hangs together, as a Mermaid flowchart: topics, services, schedules, handlers, dead letters.

    Nothing is opened. A handler is shown to send to its to=, and to every topic that its code names.
    """
    if svg is not None and text:
        raise InvalidOption("--svg and --text exclude each other", mend="give one of them")
    graph = graph_of(find_app(target))
    if svg is not None:
        _write(Path(svg), drawn(graph), dry_run, json)
    elif json:
        show.document({"app": graph.app, "nodes": list(graph.nodes.values()), "edges": graph.edges})
    else:
        show.say("\n".join(_tree(graph) if text else mermaid(graph)))


def _write(file: Path, picture: str, dry_run: bool, json: bool) -> None:
    try:
        if file.exists() and not file.read_bytes().startswith(b"<svg"):
            why, mend = "it exists, and is no picture of ours", "give another file, or remove it"
            raise InvalidOption(f"--svg cannot be {str(file)!r}", why=why, mend=mend)
        if not dry_run:
            file.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise InvalidOption(f"--svg cannot be {str(file)!r}", why=str(error), mend="a file in a folder") from None
    if json:
        show.document({"file": str(file), "bytes": len(picture.encode()), "dry_run": dry_run})
    else:
        show.say(f"{'would write' if dry_run else 'wrote'} {file}")


def mermaid(graph: Graph) -> Iterator[str]:
    """The lines of a Mermaid flowchart; each further bus is a frame."""
    names = {id: f"n{number}" for number, id in enumerate(graph.nodes)}
    yield "flowchart LR"
    for bus in sorted({"", *(node.bus for node in graph.nodes.values())}):
        indent = "    " if bus else "  "
        if bus:
            yield f'  subgraph bus_{bus}["bus {_label(bus)}"]'
        for id, node in graph.nodes.items():
            if node.bus == bus:
                left, right = SHAPES[node.kind]
                text = _label(node.name) + (f"<br/><small>{_label(node.note)}</small>" if node.note else "")
                yield f'{indent}{names[id]}{left}"{text}"{right}'
        if bus:
            yield "  end"
    for edge in graph.edges:
        yield f"  {names[edge.source]} {ARROWS[edge.kind]} {names[edge.target]}"


def _label(text: str) -> str:
    return "".join(f"#{ord(c)};" if c in '<>"&#`' else c for c in text)


def _tree(graph: Graph) -> Iterator[str]:
    """From each source down to what follows; what stands elsewhere already is only named."""
    yield graph.app
    edges = [edge for edge in graph.edges if edge.kind != "dies"]
    entered = {edge.target for edge in edges}
    shown: set[str] = set()
    leads = {edge.source for edge in edges}
    for id in sorted(graph.nodes, key=lambda id: id in entered):  # last, what is only in circles
        if id not in shown and (id in leads or graph.nodes[id].kind != "dead"):
            yield from _branch(graph, edges, id, shown)


def _branch(graph: Graph, edges: list[Edge], id: str, shown: set[str]) -> Iterator[str]:
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
    return f"{node.name}{f' ({node.note})' if node.note else ''}{f' on {node.bus}' if node.bus else ''}{where}"
