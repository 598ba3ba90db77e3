"""An app's graph as a picture: SVG that needs nothing else, legible on light and on dark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from html import escape
from itertools import pairwise

from .graph import Edge, Node, Topology
from .layout import Arrow, Placed, Point, layered

LETTER, LINE, PADDING, MARGIN = 7.3, 16.0, 14.0, 16.0  # of a monospaced font of 12 px

# Every colour is said twice: many programs that draw SVG know no variables.
STYLE = """
.tidings { font: 12px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }
.paper { fill: #ffffff }
.name, .note { fill: #1f2328; text-anchor: middle }
.note { fill: #59636e; font-size: 11px }
.handler { fill: #eef4ff; stroke: #4c78c8 }
.topic { fill: #fff7e0; stroke: #b08800 }
.service { fill: #fff7e0; stroke: #4c78c8; stroke-width: 2 }
.schedule { fill: none; stroke: #59636e; stroke-dasharray: 4 3 }
.dead { fill: none; stroke: #cf222e }
.app { fill: none; stroke: #59636e }
.pattern { stroke-width: 2.5 }
.flow, .part, .dies { fill: none; stroke: #818b98; stroke-width: 1.3 }
.part, .dies { stroke-dasharray: 2 4 }
.dies { stroke: #cf222e }
.tip { fill: #818b98 }
@media (prefers-color-scheme: dark) {
  .paper { fill: #0d1117 }
  .name { fill: #e6edf3 }
  .note { fill: #9198a1 }
  .handler { fill: #15233b; stroke: #6ea0f5 }
  .topic { fill: #2b2410; stroke: #c9a227 }
  .service { fill: #2b2410; stroke: #6ea0f5 }
  .schedule, .app { stroke: #9198a1 }
  .dead, .dies { stroke: #ff7b72 }
}
""".strip()

TIP = """
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path class="tip" d="M0 0 L8 4 L0 8 z"/></marker></defs>
""".strip()


def svg(graph: Topology) -> str:
    """The picture of a graph, an SVG document."""
    lines = {id: [node.name, *([note] if (note := _note(node)) else [])] for id, node in graph.nodes.items()}
    sizes = {
        id: (LETTER * max(map(len, texts)) + 2 * PADDING, LINE * len(texts) + PADDING) for id, texts in lines.items()
    }
    placed = layered(sizes, [(edge.source, edge.target) for edge in graph.edges])
    width, height = placed.size[0] + 2 * MARGIN, placed.size[1] + 2 * MARGIN
    box = f'x="{-MARGIN:g}" y="{-MARGIN:g}" width="{width:.0f}" height="{height:.0f}"'
    view = f'viewBox="{-MARGIN:g} {-MARGIN:g} {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tidings" role="img" aria-label="{escape(graph.app)}" {view}>',
        f"<style>\n{STYLE}\n</style>",
        TIP,
        f'<rect class="paper" {box}/>',
        *_edges(graph, placed, sizes),
        *(_box(node, placed.centres[id], sizes[id], lines[id]) for id, node in graph.nodes.items()),
    ]
    return "\n".join([*drawn, "</svg>", ""])


def _note(node: Node) -> str:
    kind = "service" if node.kind == "service" else ""
    bus = f"on {node.bus}" if node.bus and node.kind in ("topic", "service", "dead") else ""
    return ", ".join(filter(None, (" ".join(filter(None, (kind, bus))), node.words)))


def _box(node: Node, centre: Point, size: Point, lines: list[str]) -> str:
    (x, y), (width, height) = centre, size
    left, top = x - width / 2, y - height / 2
    round = {"topic": height / 2, "service": 0, "schedule": height / 2}.get(node.kind, 4)
    looks = f"{node.kind} pattern" if node.role else node.kind
    shape = f'<rect class="{looks}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"'
    middle = y + 4 - LINE * (len(lines) - 1) / 2
    texts = [
        f'<text class="{("name", "note")[index]}" x="{x:.1f}" y="{middle + LINE * index:.1f}">{escape(line)}</text>'
        for index, line in enumerate(lines)
    ]
    return f'<g><title>{escape(node.where or node.kind)}</title>{shape} rx="{round:g}"/>{"".join(texts)}</g>'


def _edges(graph: Topology, placed: Placed, sizes: dict[str, Point]) -> Iterator[str]:
    """Along the layers straight, between them in curves; each end of an edge has a place of its own on its box."""
    ports = _ports(placed, sizes)
    for edge in graph.edges:
        arrow = (edge.source, edge.target)
        back = placed.centres[edge.source][0] > placed.centres[edge.target][0]
        way = [_ends(placed, sizes, edge.source, ports[arrow][0], right=not back)]
        way += [[point] for point in placed.bends[arrow]]
        way.append(_ends(placed, sizes, edge.target, ports[arrow][1], right=back)[::-1])
        points = list(dict.fromkeys((round(x, 1), round(y, 1)) for part in way for x, y in part))
        kind = {"is part of": "part", "dies": "dies"}.get(edge.kind, "flow")
        title = f"<title>{_edge_title(graph, edge)}</title>"
        yield f'<path class="{kind}" d="{_curve(points)}" marker-end="url(#tip)">{title}</path>'


def _ends(placed: Placed, sizes: dict[str, Point], id: str, y: float, *, right: bool) -> list[Point]:
    """From a box to the end of its layer."""
    half, side = sizes[id][0] / 2, 1 if right else -1
    return [(placed.centres[id][0] + side * half, y), (placed.layers[id][right], y)]


def _ports(placed: Placed, sizes: dict[str, Point]) -> dict[Arrow, tuple[float, float]]:
    """The heights at which each edge leaves and enters."""
    sides: dict[tuple[str, bool], list[tuple[float, Arrow, int]]] = defaultdict(list)
    for arrow, bends in placed.bends.items():
        source, target = (placed.centres[id] for id in arrow)
        right = source[0] < target[0]
        sides[arrow[0], right].append(((bends or [target])[0][1], arrow, 0))
        sides[arrow[1], not right].append(((bends or [source])[-1][1], arrow, 1))
    found: dict[Arrow, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (id, _), ends in sides.items():
        room = sizes[id][1] - 10
        for index, (_, arrow, end) in enumerate(sorted(ends)):
            found[arrow][end] = placed.centres[id][1] + room * ((index + 1) / (len(ends) + 1) - 0.5)
    return {arrow: (leaves, enters) for arrow, (leaves, enters) in found.items()}


def _curve(points: list[Point]) -> str:
    drawn = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x, y), (to_x, to_y) in pairwise(points):
        middle = (x + to_x) / 2
        drawn += (
            f" C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}" if y != to_y else f" H{to_x:.1f}"
        )
    return drawn


def _edge_title(graph: Topology, edge: Edge) -> str:
    source, target = graph.nodes[edge.source].name, graph.nodes[edge.target].name
    return escape(f"{source} {edge.kind} {target}" if edge.kind != "dies" else f"what {source} cannot handle")
