"""A layered layout of a directed graph, left to right (Sugiyama, Tagawa and Toda, 1981): layers, order, heights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

Arrow = tuple[str, str]
Point = tuple[float, float]
Layers = list[list[str]]

SWEEPS = 12
BETWEEN, APART = 70.0, 22.0  # layers, neighbours in a layer


class Placed(NamedTuple):
    """The centre of each node, where its layer begins and ends, and the points that each edge passes between them."""

    centres: dict[str, Point]
    layers: dict[str, Point]
    bends: dict[Arrow, list[Point]]
    size: Point  # all of it


def layered(sizes: Mapping[str, tuple[float, float]], edges: Sequence[Arrow]) -> Placed:
    """Place nodes of these (width, height) so that most edges go to the right."""
    forward = _without_cycles(list(sizes), edges)
    depth = _depths(list(sizes), forward)
    chains = {edge: _chain(edge, depth) for edge in forward}
    links = [link for chain in chains.values() for link in pairwise(chain)]
    layers = _ordered(depth, chains, links)
    heights = {name: sizes[name][1] if name in sizes else 6.0 for layer in layers for name in layer}
    ys = _heights(layers, links, heights)
    spans, x = dict[str, Point](), 0.0
    for layer in layers:
        width = max((sizes[name][0] for name in layer if name in sizes), default=0.0)
        spans |= dict.fromkeys(layer, (x, x + width))
        x += width + BETWEEN
    bends = {edge: _bends(edge, chains, spans, ys) for edge in edges}
    bottom = max((ys[name] + heights[name] / 2 for name in ys), default=0.0)
    centres = {name: (fmean(spans[name]), ys[name]) for name in sizes}
    return Placed(centres, {name: spans[name] for name in sizes}, bends, (max(0.0, x - BETWEEN), bottom))


def _bends(
    edge: Arrow, chains: Mapping[Arrow, list[str]], spans: Mapping[str, Point], ys: Mapping[str, float]
) -> list[Point]:
    """Straight through each layer it passes; an edge that was turned round is walked backwards."""
    chain = chains.get(edge) or chains[edge[::-1]]
    points = [(x, ys[name]) for name in chain[1:-1] for x in spans[name]]
    return points if edge in chains else points[::-1]


def _without_cycles(names: Sequence[str], edges: Sequence[Arrow]) -> list[Arrow]:
    """The edges, those that lead back turned round, each once."""
    after = defaultdict(list)
    for source, target in edges:
        after[source].append(target)
    seen, turned = set[str](), dict[Arrow, None]()
    entered = {target for _, target in edges}
    for first in sorted(names, key=lambda name: name in entered):  # first where the graph is entered
        path = {} if first in seen else {first: iter(after[first])}  # what is left of each node's edges
        while path:
            name = next(reversed(path))
            seen.add(name)
            to = next(path[name], None)
            if to is None:
                del path[name]
            elif to not in path:
                turned[name, to] = None
                if to not in seen:
                    path[to] = iter(after[to])
            elif to != name:
                turned[to, name] = None
    return list(turned)


def _depths(names: Sequence[str], edges: Sequence[Arrow]) -> dict[str, int]:
    """The longest way to each node; a node that nothing leads to stands just before what it leads to."""
    depth = dict.fromkeys(names, 0)
    for _ in names:
        for source, target in edges:
            depth[target] = max(depth[target], depth[source] + 1)
    entered = {target for _, target in edges}
    for name in names:
        ends = [depth[target] for source, target in edges if source == name]
        if name not in entered and ends:
            depth[name] = min(ends) - 1
    return depth


def _chain(edge: Arrow, depth: Mapping[str, int]) -> list[str]:
    """An edge as a chain with a bend in each layer it passes."""
    source, target = edge
    return [source, *(f"{source}→{target}:{layer}" for layer in range(depth[source] + 1, depth[target])), target]


def _ordered(depth: Mapping[str, int], chains: Mapping[Arrow, list[str]], links: Sequence[Arrow]) -> Layers:
    """Layers, ordered so that few links cross: each by the mean place of its neighbours, to and fro."""
    layers: Layers = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name, number in depth.items():
        layers[number].append(name)
    for (source, _), chain in chains.items():
        for step, name in enumerate(chain[1:-1], 1):
            layers[depth[source] + step].append(name)
    best, fewest = [list(layer) for layer in layers], _crossings(layers, links)
    for sweep in range(SWEEPS):
        before = defaultdict(list)
        for source, target in links:
            before[target if sweep % 2 == 0 else source].append(source if sweep % 2 == 0 else target)
        for layer in layers[:: 1 if sweep % 2 == 0 else -1]:
            place = {name: index for names in layers for index, name in enumerate(names)}
            means = {name: fmean(place[other] for other in before[name] or [name]) for name in layer}
            layer.sort(key=means.__getitem__)
        if (crossings := _crossings(layers, links)) < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    return best


def _crossings(layers: Layers, links: Sequence[Arrow]) -> int:
    place = {name: (number, index) for number, layer in enumerate(layers) for index, name in enumerate(layer)}
    between = defaultdict(list)
    for source, target in links:
        between[place[source][0]].append((place[source][1], place[target][1]))
    return sum(
        (a - c) * (b - d) < 0 for pairs in between.values() for i, (a, b) in enumerate(pairs) for c, d in pairs[:i]
    )


def _heights(layers: Layers, links: Sequence[Arrow], heights: Mapping[str, float]) -> dict[str, float]:
    """A height for each node: near its neighbours', in order, never closer than ``APART``; the least is at the top."""
    near = defaultdict(list)
    for source, target in links:
        near[source].append(target)
        near[target].append(source)
    ys = dict.fromkeys(heights, 0.0)
    for _ in range(SWEEPS):
        for layer in [*layers, *reversed(layers)]:
            wanted = [fmean(ys[other] for other in near[name] or [name]) for name in layer]
            ys |= zip(layer, _spread(wanted, [heights[name] for name in layer]), strict=True)
    top = min((ys[name] - heights[name] / 2 for name in ys), default=0.0)
    return {name: y - top for name, y in ys.items()}


def _spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """The places nearest to those wanted that keep order and distance (pool adjacent violators)."""
    offsets, offset = list[float](), 0.0
    for index, height in enumerate(heights):
        offset += (heights[index - 1] + height) / 2 + APART if index else 0.0
        offsets.append(offset)
    pools: list[list[float]] = []
    for want, off in zip(wanted, offsets, strict=True):
        pools.append([want - off])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    flat = [fmean(pool) for pool in pools for _ in pool]
    return [place + off for place, off in zip(flat, offsets, strict=True)]
