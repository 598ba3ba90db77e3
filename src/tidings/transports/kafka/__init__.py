"""Kafka, and Event Hubs by its Kafka endpoint: topics are topics, groups consumer groups.

Theory of operation. librdkafka's classic clients do the talking: one producer, which the event loop looks after
and for each subscription a consumer with a thread (``clients.py``). A message of a partition may be
settled out of order: what is settled beyond the committed offset is written beside it (``transports/_offsets.py``), so
nothing that was settled comes again, and a takeover knows what may have been in hand. What comes back soon waits in its
partition's window; what comes back later is copied to the group's private topic by way of *delays*, topics in which
everything waits equally long, emptied by a mover that lives in one process at a time (``transport.py``). Groups are
registered in a compacted topic, with where they start to read (``groups.py``).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import confluent_kafka as confluent_kafka  # whoever lacks it is told so here, before anything is opened
from msgspec import Struct

from tidings.kernel.errors import Duration, InvalidOption
from tidings.kernel.message import seconds
from tidings.transports._tls import paired, unsecured
from tidings.transports._url import fill, hidden, locate

if TYPE_CHECKING:
    from .transport import KafkaTransport

__all__ = ["Kafka"]

log = logging.getLogger("tidings.kafka")
AGAIN = 60.0  # seconds


class Once(logging.Filter):
    """The client says the same dozens of times a second while a broker is away; here, once a minute."""

    said: ClassVar[dict[str, float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text, now = re.sub(r"\d+", "", record.getMessage()), time.monotonic()
        if now < self.said.get(text, 0.0):
            return False
        if len(self.said) > 256:
            self.said.clear()
        self.said[text] = now + AGAIN
        return True


log.addFilter(Once())

PORT, HUBS_PORT, HUBS_USER = 9092, 9093, "$ConnectionString"
TLS = ("kafka+ssl", "eventhubs")


class Kafka(Struct, frozen=True, kw_only=True):
    """Options of ``kafka://``; docs/transports/kafka.md says what each means.

    ``client``: properties of librdkafka for all clients, before ours.
    """

    hosts: tuple[tuple[str, int], ...] = (("localhost", PORT),)
    user: str = ""
    password: str = ""
    tls: bool = False
    namespace: str = ""
    mechanism: str = "PLAIN"
    ca: str = ""
    cert: str = ""
    key: str = ""
    partitions: int = 4
    replication: int = -1
    retain: Duration = "7d"
    lease: Duration = "30s"
    session: Duration = "10s"
    publish_wait: Duration = "30s"
    refresh: Duration = "3s"
    join: Duration = "0s"
    compression: str = "none"
    instance: str = ""
    client: Mapping[str, str] = {}
    transactions: bool = True
    connect: float = 10.0
    max_poll: float = 300.0

    __repr__ = hidden

    @classmethod
    def from_url(cls, url: str) -> Kafka:
        """``kafka://``, ``kafka+ssl://``, ``eventhubs://:connection-string@namespace``; raises ``InvalidURL``."""
        found = locate(url, HUBS_PORT if url.startswith("eventhubs:") else PORT)
        user = found.user or (HUBS_USER if found.password else "")
        given = {"hosts": found.hosts or cls().hosts, "user": user, "password": found.password}
        query = {"transactions": "false", **found.query} if found.scheme == "eventhubs" else found.query
        return fill(cls, url, query, **given, tls=found.scheme in TLS, client={})

    def __post_init__(self) -> None:
        for name in ("retain", "lease", "session", "publish_wait", "refresh", "join"):
            seconds(getattr(self, name), name)
        if self.partitions < 1:
            raise InvalidOption(f"partitions cannot be {self.partitions}", mend="at least 1")
        if re.search(r"[^A-Za-z0-9._-]", self.namespace):
            raise InvalidOption(f"namespace cannot be {self.namespace!r}", mend="letters, digits, '.', '_' and '-'")
        if not self.tls and "SSL" not in str(self.client.get("security.protocol")).upper():
            unsecured("kafka+ssl://", ca=self.ca, cert=self.cert, key=self.key)
        if not any(name.startswith("ssl.") for name in self.client):  # which may have the certificate
            paired(("cert", self.cert), ("key", self.key))

    def transport(self) -> KafkaTransport:
        from .transport import KafkaTransport

        return KafkaTransport(self)

    @property
    def servers(self) -> str:
        return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)

    def config_for(self, complained: Callable[[Any], None]) -> dict[str, Any]:
        """What all clients share."""
        config: dict[str, Any] = {
            "bootstrap.servers": self.servers,
            "client.id": "tidings",
            "error_cb": complained,
            "logger": log,
            "reconnect.backoff.max.ms": 1000,
            "topic.metadata.refresh.fast.interval.ms": 50,
            "socket.keepalive.enable": True,
        }
        protocol = ("SASL_" if self.user else "") + ("SSL" if self.tls else "PLAINTEXT")
        config["security.protocol"] = protocol
        if self.user:
            config |= {"sasl.mechanism": self.mechanism, "sasl.username": self.user, "sasl.password": self.password}
        files = {"ssl.ca.location": self.ca, "ssl.certificate.location": self.cert, "ssl.key.location": self.key}
        return config | {name: value for name, value in files.items() if value} | dict(self.client)

    def producing(self, config: Mapping[str, Any], largest: int) -> dict[str, Any]:
        return {
            "enable.idempotence": True,
            "topic.metadata.refresh.interval.ms": 30_000,
            "acks": "all",
            "linger.ms": 1,
            "partitioner": "murmur2_random",
            "compression.type": self.compression,
            "message.max.bytes": largest,
            "delivery.timeout.ms": int(seconds(self.publish_wait) * 1000),
            **config,
        }

    def consuming(self, config: Mapping[str, Any]) -> dict[str, Any]:
        session, refresh = seconds(self.session), seconds(self.refresh)
        return {
            # a topic or partition that was not known yet when the group last shared out its partitions waits so long
            "topic.metadata.refresh.interval.ms": int(max(refresh, 0.1) * 1000),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,  # a transaction's end has an offset, and is no record
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": int(session * 1000),
            "heartbeat.interval.ms": int(min(session / 5, 3.0) * 1000),
            "max.poll.interval.ms": int(max(self.max_poll, session) * 1000),
            "fetch.wait.max.ms": 100,
            "fetch.queue.backoff.ms": 10,
            "fetch.error.backoff.ms": 50,
            "queued.min.messages": 10_000,
            "queued.max.messages.kbytes": 16_384,
            **config,
        }
