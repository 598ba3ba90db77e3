"""PostgreSQL as a bus: a log in a schema of its own, shared by any number of processes on any number of hosts.

Theory of operation. It is the log of the embedded bus. A message is stored once, however many groups read it; a group
is a position in it; a process *claims* a stretch and settles numbers of it; only what fails gets a row of its own.
Here every step is a function of the database (the ``.sql`` files): one round trip, one transaction, which no client can
hold open. ``writer.py`` commits many publishes and settlements at once; ``hands.py`` knows what this process holds, and
keeps it a member; ``connections.py`` keeps the connections and comes back when the server does; ``transport.py`` and
``consumers.py`` are what the kernel sees; ``enlisting.py`` publishes inside a transaction of the user's own.

Two rules carry the order. Numbers are handed out under a lock that is kept until the commit, so whoever sees a number
sees all before it, and no reader can skip one that is still under way. What a user's own transaction publishes waits in
a table beside and gets its number after its commit: however long it stays open, it holds back nobody but itself.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlencode, urlsplit, urlunsplit

import asyncpg as asyncpg  # whoever lacks it is told so here, before anything is opened
from msgspec import Struct

from tidings.kernel.errors import Duration, InvalidOption, InvalidURL
from tidings.kernel.message import seconds
from tidings.transports._url import fill, hidden, locate, shown

if TYPE_CHECKING:
    from .transport import PostgresTransport

__all__ = ["Postgres"]

# Options of the connection itself, as libpq and asyncpg name them: they stay in the URL.
NATIVE = frozenset(
    (
        *("application_name", "gsslib", "host", "krbsrvname", "passfile", "port", "service", "servicefile"),
        *("sslcert", "sslcrl", "sslkey", "sslmode", "sslnegotiation", "sslpassword", "sslrootcert"),
        *("ssl_max_protocol_version", "ssl_min_protocol_version", "target_session_attrs"),
    )
)


class Postgres(Struct, frozen=True, kw_only=True):
    """Options of the PostgreSQL bus.

    ``dsn``: where the database is, with what libpq would know (several hosts, ``sslmode``, …). ``namespace``: the
    schema. ``lease``: how long a silent process keeps what it holds (one whose connection ended loses it in about two
    seconds). ``synchronous_commit``: of what is accepted; empty: as the server says. ``retain``: what is kept for
    replay, never less than what a group still needs. ``direct``: the server itself, where ``dsn`` is a pooler.
    """

    dsn: str
    namespace: str = "tidings"
    lease: Duration = "30s"
    publish_wait: Duration = "30s"
    retain: Duration = "7d"
    synchronous_commit: Literal["", "on", "off", "local", "remote_write", "remote_apply"] = ""
    direct: str = ""
    connections: int = 4  # beside the one that listens
    poll: Duration = "50ms"  # how often to look for news where nothing can listen
    statement_cache_size: int | None = None  # None: 100, behind a pooler 0
    segment_rows: int = 1_000_000  # tuning: when a new partition begins

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", self.namespace) or self.namespace.startswith("pg_"):
            mend = "up to 40 of a-z, 0-9 and _, not beginning with a digit or pg_"
            raise InvalidOption(f"a namespace cannot be {self.namespace!r}", mend=mend)
        if self.lease_seconds <= 0 or seconds(self.poll, "poll") <= 0:
            raise InvalidOption("lease and poll cannot be 0", mend='durations like "30s"')
        seconds(self.publish_wait, "publish_wait"), seconds(self.retain, "retain")
        if self.connections < 2 or self.segment_rows < 1:
            raise InvalidOption("connections are at least 2, segment_rows at least 1", mend="raise it, or leave it out")

    @property
    def lease_seconds(self) -> float:
        return seconds(self.lease, "lease")

    __repr__ = hidden

    @classmethod
    def from_url(cls, url: str) -> Postgres:
        """Options from ``postgresql://user:password@host,host2:5433/database?namespace=shop&sslmode=verify-full``.

        Raises ``InvalidURL``.
        """
        at = locate(url, 5432)
        if at.scheme not in ("postgresql", "postgres"):
            raise InvalidURL(f"{shown(url)!r} is no PostgreSQL URL", mend="postgresql://user@host:5432/database")
        native = {name: value for name, value in at.query.items() if name in NATIVE}
        ours = {name: value for name, value in at.query.items() if name not in NATIVE}
        dsn = urlunsplit(urlsplit(url)._replace(query=urlencode(native), fragment=""))
        return fill(cls, url, ours, dsn=dsn)

    def shown(self) -> str:
        """Where it is, without the password."""
        return f"{shown(self.dsn).partition('?')[0]} ({self.namespace})"

    def transport(self) -> PostgresTransport:
        from .transport import PostgresTransport

        return PostgresTransport(self)
