"""The servers that engines and some peers need: those of ``tests/servers``, with their data where bus files are."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from tests.servers import Missing, NotStarted, Server
from tests.servers.session import KINDS, drop, private

tempfile.tempdir = os.environ.get("BENCH_DISK", tempfile.tempdir)  # they make their folders there

SYNCED: dict[str, dict[str, Any]] = {  # what makes each accepted message reach the disk before it is acknowledged
    "nats": {"jetstream": {"store_dir": "data", "sync_interval": "always"}},
    "redis": {"appendfsync": "always"},
}
CALM: dict[str, dict[str, Any]] = {  # what would else happen in the middle of somebody's measurement
    "redis": {"auto_aof_rewrite_percentage": 0},
}


def version(name: str) -> str:
    """As the server says it, such as ``nats-server: v2.11.0``. Raises ``Missing``."""
    return subprocess.run(
        (KINDS[name].program(), "--version"), capture_output=True, text=True, check=True
    ).stdout.strip()


@contextmanager
def running(name: str, settings: dict[str, Any]) -> Iterator[Server]:
    """One of one's own. Raises ``Missing``, ``NotStarted``."""
    server = private(name, settings)
    try:
        server.start()
        yield server
    finally:
        drop(server)


@contextmanager
def synced(name: str) -> Iterator[str]:
    """The URL of one that syncs each message before it is acknowledged."""
    with running(name, SYNCED[name]) as server:
        yield server.url


@contextmanager
def engine(name: str) -> Iterator[str]:
    """The URL of one: ``shared`` started it, or ``TIDINGS_TEST_<NAME>`` says where it is, or it is one's own."""
    if url := os.environ.get(_variable(name)):
        yield url
        return
    with running(name, CALM.get(name, {})) as server:
        yield server.url


@contextmanager
def shared(names: Sequence[str]) -> Iterator[None]:
    """Start those that nobody has yet, all at once; processes started meanwhile find them by ``engine``.

    One that cannot be had is left out: whoever wants it tries again, and tells why.
    """
    wanted = [name for name in names if _variable(name) not in os.environ]
    with ThreadPoolExecutor(len(names)) as pool:
        found = [server for server in pool.map(_attempt, wanted) if server is not None]
    os.environ.update({_variable(server.name): server.url for server in found})
    try:
        yield
    finally:
        for server in found:
            del os.environ[_variable(server.name)]
        drop(*found)


def _attempt(name: str) -> Server | None:
    try:
        server = private(name, CALM.get(name, {}))
    except (Missing, NotStarted):
        return None
    try:
        server.start()
    except NotStarted:
        drop(server)
        return None
    return server


def _variable(name: str) -> str:
    return f"TIDINGS_TEST_{name.upper()}"
