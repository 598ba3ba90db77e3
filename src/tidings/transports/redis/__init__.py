"""Redis and Valkey: a stream per topic, a consumer group per group; all that needs more is a script on the server.

Theory of operation. A topic is a stream, a group a consumer group on each stream its pattern matches; the registry of
topics and groups is what makes wildcards. A message is read by a blocking ``XREADGROUP`` and settled by ``settle.lua``,
which publishes its outputs, parks its retry and acknowledges it in one step, if its holder still holds it. What is due
later waits in a sorted set that ``due.lua`` empties. Who died is found by ``sweep.lua``: by lease, or by a connection
that is gone. Everything of a bus begins with its hash tag (``{tidings}:``), so a bus lives on one node of a cluster,
and every script is atomic there too.

``links.py``: connections; ``entries.py``: messages as fields; ``transport.py``: publishing, and the connections' life;
``reading.py``: what reads streams; ``consumers.py``: members of groups; ``inspection.py``: looking inside, mending, and
upkeep.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import redis as redis  # whoever lacks it is told so here, before anything is opened
from msgspec import Struct, structs

from tidings.kernel.errors import Duration, InvalidOption, InvalidURL
from tidings.kernel.message import seconds
from tidings.transports._tls import unsecured
from tidings.transports._url import Location, fill, hidden, locate, shown

if TYPE_CHECKING:
    from .transport import RedisTransport

__all__ = ["Redis"]

TLS = ("rediss", "valkeys")
SCHEMES = ("redis", "rediss", "valkey", "valkeys", "redis+sentinel", "redis+cluster")
_SIZE = re.compile(r"(\d+)\s*(KiB|MiB|GiB)?")


class Redis(Struct, frozen=True, kw_only=True):
    """Options of a Redis or Valkey bus.

    ``server``: ``redis://user:password@host:6379/0``, ``rediss://`` with TLS, ``redis+sentinel://sentinel:26379/name``,
    ``redis+cluster://node:6379``; ``valkey://`` and ``valkeys://`` too. ``namespace``: keys begin with its hash tag,
    ``{namespace}:``. ``lease``: how long a silent process keeps what it holds. ``publish_wait``: how long publishing
    waits for a lost server. ``retain`` and ``max_size`` (bytes of the whole bus, 0: no limit): what is kept for replay,
    never less than what a group still needs. ``replicas``: publishing waits until so many have it. ``topics``: the most
    streams of a group. ``streams``: topics whose streams have keys of their own, made by others
    (``"orders.placed=orders,topic=key"``). ``tls`` follows the scheme; ``ca``, ``cert``, ``key`` are files;
    ``verify=False`` accepts any certificate.
    """

    server: str = "redis://localhost:6379"
    namespace: str = "tidings"
    lease: Duration = "30s"
    publish_wait: Duration = "30s"
    retain: Duration = "7d"
    max_size: int | str = 0
    replicas: int = 0
    topics: int = 1000
    streams: str | Mapping[str, str] = ""
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    verify: bool = True
    sentinel_user: str = ""
    sentinel_password: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.:-]+", self.namespace):
            raise InvalidOption(f"namespace cannot be {self.namespace!r}", mend="letters, digits, and _ . : -")
        for name in ("lease", "publish_wait", "retain"):
            seconds(getattr(self, name), name)
        if self.lease_seconds <= 0:
            raise InvalidOption("lease cannot be 0", mend='a duration like "30s"')
        if self.topics < 1 or self.replicas < 0:
            raise InvalidOption("topics is at least 1, replicas at least 0", mend="raise it, or leave it out")
        if self.server.partition("://")[0] in TLS:
            structs.force_setattr(self, "tls", True)
        if not self.tls:
            unsecured("rediss://; with Sentinel and clusters tls=true", ca=self.ca, cert=self.cert, key=self.key)
        size(self.max_size)
        self.own_keys()

    @property
    def lease_seconds(self) -> float:
        return seconds(self.lease, "lease")

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return shown(self.server)

    @property
    def db(self) -> int:
        where = self.location()
        return int(where.path or 0) if where.scheme != "redis+sentinel" else int(where.path.partition("/")[2] or 0)

    @property
    def primary(self) -> str:
        """The name by which a Sentinel knows it."""
        return self.location().path.partition("/")[0]

    def location(self) -> Location:
        """Where the server is; raises ``InvalidURL``."""
        where = locate(self.server, 26379 if self.server.startswith("redis+sentinel") else 6379)
        kind, path = where.scheme.partition("+")[2], where.path
        if where.scheme not in SCHEMES or not where.hosts:
            raise InvalidURL(f"{self.shown!r} is no Redis URL", mend="redis://localhost:6379/0")
        if kind == "sentinel" and not path:
            what = f"{self.shown!r} does not say which primary"
            raise InvalidURL(what, mend="redis+sentinel://host:26379/mymaster")
        number = path.partition("/")[2] if kind == "sentinel" else path
        if number and not (number.isdecimal() and kind != "cluster"):
            mend = "a cluster has only database 0: leave the path out" if kind == "cluster" else "redis://host:6379/0"
            raise InvalidURL(f"{self.shown!r}: {number!r} is no database", mend=mend)
        return where

    def own_keys(self) -> dict[str, str]:
        """Topics whose streams have keys of their own."""
        if isinstance(self.streams, str):
            pairs = [pair.partition("=") for pair in self.streams.split(",") if pair]
            if not all(topic and equals and key for topic, equals, key in pairs):
                raise InvalidOption(f"streams cannot be {self.streams!r}", mend='"orders.placed=orders,topic2=key2"')
            return {topic: key for topic, _, key in pairs}
        return dict(self.streams)

    __repr__ = hidden

    @classmethod
    def from_url(cls, url: str) -> Redis:
        """Options from a URL; raises ``InvalidURL``."""
        where = locate(url, 6379)
        place = url.partition("?")[0]
        secure = {"tls": True} if where.scheme in TLS else {}
        options = fill(cls, url, where.query, server=place, **secure)
        options.location()
        return options

    def transport(self) -> RedisTransport:
        from .transport import RedisTransport

        return RedisTransport(self)


def size(value: int | str) -> int:
    """A number of bytes: ``1048576``, ``"64MiB"``, ``"1GiB"``; raises ``InvalidOption``."""
    found = _SIZE.fullmatch(str(value).strip())
    if not found or isinstance(value, bool):
        raise InvalidOption(f"max_size cannot be {value!r}", mend='"64MiB", "1GiB" or a number of bytes')
    return int(found[1]) << {None: 0, "KiB": 10, "MiB": 20, "GiB": 30}[found[2]]
