"""RabbitMQ: ``amqp://`` and ``amqps://``. Quorum queues, delays in levels of fixed time, dead letters in a stream.

Theory of operation. All of a bus begins with its ``namespace`` (``tidings`` below).

- Topics are routing keys of the topic exchange ``tidings``; reserved ones of the exchange ``tidings._``, so that no
  wildcard of a user matches them. Each group has two quorum queues: ``tidings.<group>``, bound with its pattern, and
  ``tidings._again.<group>``, bound with its private address ``_group.<group>``; what is in the second overtakes the
  backlog of the first. A live subscription is an exclusive queue, read without acknowledgements.
- A retry is a copy to the private address: published, confirmed, and only then is the original acknowledged. So what
  comes redelivered was in the hands of one that died: a suspect. To mark one, a copy with one crash more goes through
  the queue ``tidings._suspect.<group>`` and is held there instead: should its holder die, it expires there, at once or
  after ``MARKED`` seconds, and is dead-lettered to the private address.
- A delay is a sum of levels, each a quorum queue in which every message stays equally long, so none waits behind
  another. Level ``n`` is the exchange and the queue ``tidings._delay.<n>``: a header says which levels a message stops
  at; the others it passes through the exchange's alternate. Behind the last it is routed as if it had just been sent.
- The stream ``tidings._dead`` has all dead letters, the stream ``tidings._groups`` who registered which pattern: that
  is how a changed pattern finds the binding that must go, and how groups are listed.

Two connections: one publishes, which the broker may block; one consumes. When either is lost, so is the other:
every delivery tag dies with its channel, which is all that a fence needs. Then both are opened again, for ever.

``channel.py`` speaks AMQP, ``content.py`` says what a message looks like in it, ``link.py`` keeps the connections and
makes what a bus needs, ``streams.py`` reads streams, ``transport.py`` publishes and registers groups, ``consumers.py``
receives and settles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import aiormq as aiormq  # whoever lacks it is told so here, before anything is opened
from msgspec import Struct

from tidings.kernel import errors
from tidings.kernel.message import seconds
from tidings.transports._tls import secured, unsecured
from tidings.transports._url import fill, hidden, locate, shown

if TYPE_CHECKING:
    import ssl

    from .transport import RabbitMQTransport

__all__ = ["RabbitMQ"]


class RabbitMQ(Struct, frozen=True, kw_only=True):
    """Options of ``amqp://`` and ``amqps://``; ``docs/transports/rabbitmq.md`` says what each is for."""

    hosts: tuple[tuple[str, int], ...] = (("localhost", 5672),)
    user: str = "guest"
    password: str = "guest"
    vhost: str = "/"
    tls: bool = False
    namespace: str = "tidings"
    exchange: str = ""  # of the users' topics, where it is somebody else's
    queues: Mapping[str, str] = {}  # groups whose queue is somebody else's
    kind: Literal["quorum", "classic"] = "quorum"
    lease: errors.Duration = 30.0  # a member that is silent for so long is lost: twice the heartbeat
    publish_wait: errors.Duration = 30.0
    consumer_timeout: errors.Duration = 3600.0  # as the server has it
    resolution: errors.Duration = 0.1  # of delays
    max_payload: int = 16 * 1024 * 1024
    auth: Literal["plain", "amqplain", "external"] = "plain"
    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""

    def __post_init__(self) -> None:
        for name in ("lease", "publish_wait", "consumer_timeout", "resolution"):
            seconds(getattr(self, name), name)
        if not re.fullmatch(r"[A-Za-z0-9-]+([._][A-Za-z0-9-]+)*", self.namespace):
            mend = "letters, digits and '-', with single '.' or '_' between them"
            raise errors.InvalidOption(f"namespace cannot be {self.namespace!r}", mend=mend)
        if not self.tls:
            unsecured("amqps://", cafile=self.cafile, certfile=self.certfile, keyfile=self.keyfile)

    __repr__ = hidden

    @classmethod
    def from_url(cls, url: str) -> RabbitMQ:
        """``amqp[s]://[user:password@]host[:port],host2/vhost[?option=value]``; raises ``InvalidURL``."""
        found = locate(url, 5671 if url.startswith("amqps:") else 5672)
        query = dict(found.query)
        pairs = [pair.partition(":")[::2] for pair in query.pop("queues", "").split(",") if pair]
        if not all(group and queue for group, queue in pairs):
            raise errors.InvalidURL(f"{shown(url)!r}: queues names no queue", mend="queues=group:queue,group2:queue2")
        given = {"tls": found.scheme == "amqps", "vhost": found.path or "/", "queues": dict(pairs)}
        given |= {"user": found.user, "password": found.password} if found.user else {}
        given |= {"hosts": found.hosts} if found.hosts else {}
        return fill(cls, url, query, **{"user": "guest", "password": "guest", "hosts": cls().hosts, **given})

    def transport(self) -> RabbitMQTransport:
        from .transport import RabbitMQTransport

        return RabbitMQTransport(self)

    def urls(self) -> list[str]:
        """One for each host, as aiormq wants it."""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        heartbeat = max(1, int(seconds(self.lease) / 2))
        path = quote(self.vhost, safe="") if self.vhost != "/" else ""
        scheme, hosts = (
            "amqps" if self.tls else "amqp",
            [f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in self.hosts],
        )
        return [f"{scheme}://{login}@{host}/{path}?heartbeat={heartbeat}&auth={self.auth}" for host in hosts]

    def context(self) -> ssl.SSLContext | None:
        """For TLS; None: without. Raises ``BusUnavailable`` when a file is not there or is none."""
        files = ("cafile", self.cafile), ("certfile", self.certfile), ("keyfile", self.keyfile)
        return secured("RabbitMQ", *files) if self.tls else None
