"""Redis Streams with redis-py's asyncio client: a server in C, behind a socket; see ``engines/redis.py``."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from .. import servers
from ..engines import works
from ..engines.redis import Raw
from ._served import served

NAME = "Redis Streams"
DURABLE = (
    "appendonly yes, appendfsync always: the server syncs once for all that came in a turn of its loop, before it "
    "answers; XREADGROUP and XACK too"
)


def VERSION() -> str:
    server = servers.version("redis").split()[2].removeprefix("v=")
    return f"redis-py {version('redis')} (hiredis {version('hiredis')}), redis-server {server}"


def concurrent(folder: Path, messages: int, publishers: int) -> float:
    return served("redis", Raw, works.concurrent, messages, publishers)


def publish(folder: Path, messages: int) -> float:
    return served("redis", Raw, works.publish, messages)


def backlog(folder: Path, messages: int) -> float:
    return served("redis", Raw, works.backlog, messages).rate


def end_to_end(folder: Path, messages: int) -> float:
    return served("redis", Raw, works.end_to_end, messages).rate


def latency(folder: Path, rate: float, seconds: float) -> list[float]:
    """Two processes and the server."""
    return served("redis", Raw, works.latency, rate, seconds)
