"""Channels with one end only."""

from __future__ import annotations

from msgspec import Struct

from .graph import Node, Topology


class Orphans(Struct, frozen=True):
    """``unheard``: published or asked, and nobody listens. ``unsent``: listened to, and nobody publishes or asks.

    ``unused``: topics that the code defines, and nobody does anything with.
    """

    unheard: tuple[Node, ...]
    unsent: tuple[Node, ...]
    unused: tuple[Node, ...]


def orphans(graph: Topology) -> Orphans:
    """The topics and services of a graph that lack an end; dead letters have one always: the operator,
    who also speaks on the control channel.

    Of ``topology(app)``, ``unsent`` holds what other apps and code outside of handlers publish, too; of
    ``observe(app)`` only what nobody was seen to publish.
    """
    heard = {edge.source for edge in graph.edges if edge.kind == "calls"}
    sent = {edge.target for edge in graph.edges if edge.kind in ("sends", "asks")}
    sent |= {node.id for node in graph.nodes.values() if node.messages}
    parts = [edge for edge in graph.edges if edge.kind == "is part of"]
    sent |= {edge.target for edge in parts if edge.source in sent}
    heard |= {edge.source for edge in parts if edge.target in heard}
    channels = [n for n in graph.nodes.values() if n.kind in ("topic", "service") and not n.pattern.startswith("_")]
    return Orphans(
        tuple(node for node in channels if node.id in sent and node.id not in heard),
        tuple(node for node in channels if node.id in heard and node.id not in sent),
        tuple(node for node in channels if node.id not in heard and node.id not in sent),
    )
