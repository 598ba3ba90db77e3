"""Real servers for tests, without Docker: on free loopback ports, gone when the tests are.

    from tests.servers import cluster, fresh, server

    nats = server("nats")  # shared by the session, started when first asked for; skips when it cannot be had
    with fresh("redis", appendfsync="everysec") as mine:  # nobody else's: to be killed
        mine.restart()
    with cluster("kafka") as three:
        three.nodes[0].kill()

Names: those of ``session.KINDS``. A server that already runs is used when ``TIDINGS_TEST_<NAME>`` has its URL; it is
not ours to kill, so tests that would are skipped. With ``CI=true`` a server that cannot be had is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest

from . import clusters, session
from .base import HOST, Missing, NotStarted, Server
from .clusters import Cluster
from .session import KINDS

__all__ = ["KINDS", "Cluster", "Missing", "NotStarted", "Server", "cluster", "fresh", "server"]


def server(name: str) -> Server:
    """The session's server of that name, running."""
    if url := os.environ.get(f"TIDINGS_TEST_{name.upper()}"):
        return existing(name, url)
    try:
        return session.get(name)
    except Missing as e:
        unavailable(str(e))


@contextmanager
def fresh(name: str, **settings: Any) -> Iterator[Server]:
    """A running server that nobody else uses."""
    try:
        mine = session.private(name, settings)
    except Missing as e:
        unavailable(str(e))
    try:
        mine.start()
        yield mine
    finally:
        session.drop(mine)


@contextmanager
def cluster(name: str, nodes: int = 3, **settings: Any) -> Iterator[Cluster]:
    """That many running servers which are one, and nobody else's: "nats", "kafka" or "redis"."""
    try:
        with clusters.cluster(name, nodes, settings) as made:
            yield made
    except Missing as e:
        unavailable(str(e))


def existing(name: str, url: str) -> Server:
    """Of the kind that it is, so that it can be asked what such a server can."""
    theirs = type("Existing", (Existing, KINDS[name]), {})(url)
    assert isinstance(theirs, Server)
    return theirs


def unavailable(why: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


class Existing(Server):
    """Somebody else's, at a URL."""

    ours = False

    def __init__(self, url: str) -> None:
        super().__init__(Path(os.devnull), {}, {}, {})
        self._url = url
        first = urlsplit(url.partition(",")[0])
        self._host, self._port = first.hostname or HOST, first.port or 0

    @property
    def host(self) -> str:
        return self._host

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return self._url

    def url_of(self, listener: str) -> str:
        variable = f"TIDINGS_TEST_{self.name.upper()}_{listener.upper()}"
        return os.environ.get(variable) or pytest.skip(f"{variable} is not set")

    def _ask(self, what: str) -> NoReturn:
        pytest.skip(f"TIDINGS_TEST_{self.name.upper()} names a server that is not ours to {what}")
