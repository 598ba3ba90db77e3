"""Three servers that are one: NATS and Kafka with a majority of two, Redis with its slots divided."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from . import session
from .base import HOST, Server, free_port, wait_for
from .redis import Redis

SLOTS = 16384  # of a Redis cluster


@dataclass
class Cluster:
    """``nodes[0].kill()`` and all else that a server can do, node by node."""

    scheme: str
    nodes: list[Server]

    @property
    def url(self) -> str:
        """Of all nodes."""
        return f"{self.scheme}://{','.join(f'{HOST}:{node.port}' for node in self.nodes)}"


Ports = dict[str, int]


def nats(ports: list[Ports]) -> list[dict[str, Any]]:
    routes = [f"nats://{HOST}:{p['cluster']}" for p in ports]
    return [
        {"cluster": {"name": "tidings", "listen": f"{HOST}:{p['cluster']}", "routes": routes}, "mqtt": {}}
        for p in ports
    ]


def kafka(ports: list[Ports]) -> list[dict[str, Any]]:
    voters = ",".join(f"{i}@{HOST}:{p['controller']}" for i, p in enumerate(ports, 1))
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[:22]
    return [{"node_id": i, "voters": voters, "cluster_id": cluster} for i, _ in enumerate(ports, 1)]


def redis(ports: list[Ports]) -> list[dict[str, Any]]:
    return [{"cluster_enabled": "yes", "cluster_node_timeout": 2000} for _ in ports]


KINDS: dict[str, tuple[str, Callable[[list[Ports]], list[dict[str, Any]]]]] = {
    "nats": ("nats", nats),
    "kafka": ("kafka", kafka),
    "redis": ("redis+cluster", redis),
}


@contextmanager
def cluster(name: str, size: int, settings: Mapping[str, Any]) -> Iterator[Cluster]:
    """That many nodes, running and agreed. Raises ``Missing``, ``NotStarted``."""
    scheme, particular = KINDS[name]
    ports = [{listener: free_port() for listener in session.KINDS[name].listeners} for _ in range(size)]
    nodes: list[Server] = []
    try:
        with ThreadPoolExecutor(size) as pool:
            made = pool.map(lambda own, p: session.private(name, own | dict(settings), p), particular(ports), ports)
            nodes.extend(made)
            for node in nodes:
                node.launch()
            list(pool.map(Server.wait, nodes))
        if name == "redis":
            _divide(nodes)
        yield Cluster(scheme, nodes)
    finally:
        session.drop(*nodes)


def _divide(nodes: list[Server]) -> None:
    """Make one cluster of them: each gets its part of the slots and meets the others."""
    bounds = [SLOTS * i // len(nodes) for i in range(len(nodes) + 1)]
    for i, (node, (first, end)) in enumerate(zip(nodes, pairwise(bounds), strict=True), 1):
        assert isinstance(node, Redis)
        node.ask(f"CLUSTER SET-CONFIG-EPOCH {i}", "+OK")
        node.ask(f"CLUSTER ADDSLOTSRANGE {first} {end - 1}", "+OK")
        other = nodes[0]
        node.ask(f"CLUSTER MEET {HOST} {other.port} {other.ports['bus']}", "+OK")
    wait_for(lambda: _agreed(nodes), patience=20.0)


def _agreed(nodes: list[Server]) -> None:
    for node in nodes:
        assert isinstance(node, Redis)
        info = node.ask("CLUSTER INFO", "cluster_size:")
        if "cluster_state:ok" not in info or f"cluster_known_nodes:{len(nodes)}\r\n" not in info:
            raise OSError(f"{node.url}: {info}")
