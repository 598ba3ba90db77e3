"""NATS JetStream with nats-py: a server in Go, behind a socket; see ``engines/nats.py``."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from .. import servers
from ..engines import works
from ..engines.nats import Raw
from ._served import served

NAME = "NATS JetStream"
DURABLE = (
    "file storage, sync_interval always: each message is synced by itself before its publish is acknowledged. Acks: "
    "the last of a batch waits for the server (ack_sync), which syncs the consumer's state up to 0.1 s later"
)


def VERSION() -> str:
    server = servers.version("nats").removeprefix("nats-server: v")
    return f"nats-py {version('nats-py')}, nats-server {server}"


def concurrent(folder: Path, messages: int, publishers: int) -> float:
    return served("nats", Raw, works.concurrent, messages, publishers)


def publish(folder: Path, messages: int) -> float:
    return served("nats", Raw, works.publish, messages)


def backlog(folder: Path, messages: int) -> float:
    return served("nats", Raw, works.backlog, messages).rate


def end_to_end(folder: Path, messages: int) -> float:
    return served("nats", Raw, works.end_to_end, messages).rate


def latency(folder: Path, rate: float, seconds: float) -> list[float]:
    """Two processes and the server."""
    return served("nats", Raw, works.latency, rate, seconds)
