"""Which servers there are, and those of this test session.

Theory of operation. A session's servers are started when first asked for, and each once. The workers of pytest-xdist
are one session: the first to want a server starts it under a file lock and writes down where it is; the others join
it. Whoever leaves last ends it (keeper.py), so no worker needs to know of the others.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .base import Server
from .chromium import Chromium
from .java import Artemis, Kafka
from .mosquitto import Mosquitto
from .nats import NATS
from .postgres import PgBouncer, Postgres
from .rabbitmq import RabbitMQ
from .redis import Primary, Redis, Replica, Sentinel

KINDS: dict[str, type[Server]] = {
    kind.name: kind
    for kind in (
        *(Postgres, PgBouncer, NATS, RabbitMQ, Redis, Primary, Replica, Sentinel),
        *(Kafka, Mosquitto, Artemis, Chromium),
    )
}

_guard = threading.Lock()
_locks: dict[str, threading.Lock] = {}
_mine: dict[str, Server] = {}


def get(name: str) -> Server:
    """The session's server of that name, running. Raises ``Missing``, ``NotStarted``."""
    behind = {need: get(need) for need in KINDS[name].needs}
    with _guard:
        lock = _locks.setdefault(name, threading.Lock())
    with lock:
        if name not in _mine:
            with _noted(name) as note:
                _mine[name] = _joined(name, note, behind) or _started(name, note, behind)
    return _mine[name]


def start_all(names: list[str]) -> dict[str, Server | Exception]:
    """Those servers, started together; in place of one that could not be had, why."""

    def attempt(name: str) -> Server | Exception:
        try:
            return get(name)
        except Exception as e:
            return e

    with ThreadPoolExecutor(len(names) or 1) as pool:
        return dict(zip(names, pool.map(attempt, names), strict=True))


def private(name: str, settings: Mapping[str, Any], ports: Mapping[str, int] | None = None) -> Server:
    """A server that nobody else has, with the running servers it needs; not started. ``drop`` ends them."""
    behind: dict[str, Server] = {}
    try:
        for need in KINDS[name].needs:  # in such an order that each needs only those before
            behind[need] = KINDS[need].create(behind, {})
            behind[need].start()
        return KINDS[name].create(behind, settings, ports)
    except BaseException:
        drop(*behind.values())
        raise


def drop(*servers: Server) -> None:
    """Leave them, and wait until those that had no other user are gone."""
    for server in servers:
        server.leave()
    for server in servers:
        server.left()
    if behind := [s for server in servers for s in server.behind.values()]:
        drop(*behind)


@contextmanager
def _noted(name: str) -> Iterator[Path | None]:
    """The file that tells the other workers where the server is, to one at a time; None: there are no others."""
    if not (run := os.environ.get("PYTEST_XDIST_TESTRUNUID")):
        yield None
        return
    note = Path(tempfile.gettempdir()) / f"tidings-{name}-{run}.json"
    with note.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield note


def _joined(name: str, note: Path | None, behind: Mapping[str, Server]) -> Server | None:
    if note is None or not (text := note.read_text()):
        return None
    known = json.loads(text)
    server = KINDS[name](Path(known["folder"]), known["ports"], behind, {})
    with suppress(OSError):
        server.join()
        return server
    return None


def _started(name: str, note: Path | None, behind: Mapping[str, Server]) -> Server:
    server = KINDS[name].create(behind, {}, note=note)
    try:
        server.start()
    except BaseException:
        drop(server)
        raise
    if note is not None:
        note.write_text(json.dumps({"folder": str(server.folder), "ports": dict(server.ports)}))
    return server


@atexit.register
def end() -> None:
    """Leave the session's servers."""
    drop(*_mine.values())
    _mine.clear()
