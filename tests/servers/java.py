"""Kafka and ActiveMQ Artemis, from Maven Central by pom.xml."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tidings.testing.faults import Proxy

from .base import HOST, Missing, NotStarted, Server, binary, exchange

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("TIDINGS_SERVERS") or "~/.cache/tidings/servers").expanduser()
JVM = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-Dlog4j2.configurationFile=log4j2.properties")


class Java(Server):
    packages = ("default-jdk-headless", "maven")

    @classmethod
    def program(cls) -> str:
        if not cls.jars().is_dir():
            raise Missing(f"{cls.name} is missing: python -m tests.servers --install")
        return binary("java")

    @classmethod
    def jars(cls) -> Path:
        """Where its classes are: a new folder when what to fetch has changed."""
        digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in ("pom.xml", "Artemis.java")))
        return CACHE / f"{cls.name}-{digest.hexdigest()[:8]}"

    def main(self, name: str, *options: str) -> list[str]:
        """The command of a Java class."""
        return [self.program(), *JVM, *options, "-cp", f"{HERE}:{self.jars()}:{self.jars()}/*", name]


class Kafka(Java):
    """A node that is broker and controller. ``settings`` are properties with ``_`` for ``.``; and ``sasl="user:pass"``.

    A client goes on to the address that the broker advertises; so there is a listener of its own for those who come
    through ``proxied``, which advertises the proxy's port. One proxy at a time.
    """

    name, scheme, tls_scheme = "kafka", "kafka", "kafka+ssl"
    listeners = ("main", "internal", "controller", "behind_proxy", "proxy")
    sasl = ""

    def prepare(self) -> None:
        own = self.settings
        self.sasl = own.pop("sasl", "")
        self.node = own.pop("node_id", 1)
        voters = own.pop("voters", f"{self.node}@{HOST}:{self.ports['controller']}")
        cluster = own.pop("cluster_id", None) or base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[:22]
        properties = self.addresses(voters) | self.numbers(len(voters.split(","))) | self.security()
        properties |= {key.replace("_", "."): value for key, value in own.items()}
        (self.folder / "server.properties").write_text("".join(f"{k}={v}\n" for k, v in properties.items()))
        command = [
            *self.main("kafka.tools.StorageTool", "-XX:TieredStopAtLevel=1"),
            "format",
            f"--cluster-id={cluster}",  # it may begin with a hyphen
            "-c",
            "server.properties",
        ]
        if self.sasl:
            user, _, password = self.sasl.partition(":")
            command += ["--add-scram", f"SCRAM-SHA-256=[name={user},password={password}]"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotStarted(f"kafka.tools.StorageTool: {done.stdout}{done.stderr}")

    def addresses(self, voters: str) -> dict[str, Any]:
        p, protocol = self.ports, ("SASL_" if self.sasl else "") + ("SSL" if self.tls else "PLAINTEXT")
        seen = f"CLIENT://{HOST}:{p['main']},INTERNAL://{HOST}:{p['internal']},PROXY://{HOST}"
        return {
            "process.roles": "broker,controller",
            "node.id": self.node,
            "controller.quorum.voters": voters,
            "listeners": f"{seen}:{p['behind_proxy']},CONTROLLER://{HOST}:{p['controller']}",
            "advertised.listeners": f"{seen}:{p['proxy']}",
            "inter.broker.listener.name": "INTERNAL",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": (
                f"CLIENT:{protocol},PROXY:{protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT"
            ),
            "log.dirs": self.folder / "data",
        }

    def numbers(self, nodes: int) -> dict[str, Any]:
        """Small ones, so that nobody waits; as many copies as there are nodes."""
        properties: dict[str, Any] = {
            "broker.session.timeout.ms": 1500,  # a killed one comes back only after this
            "broker.heartbeat.interval.ms": 250,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 500,
            "auto.create.topics.enable": "false",
            "num.network.threads": 2,
            "num.io.threads": 4,
            "default.replication.factor": nodes,
            "min.insync.replicas": min(nodes, 2),
            "transaction.state.log.min.isr": min(nodes, 2),
            "share.coordinator.state.topic.min.isr": min(nodes, 2),
        }
        for topic in ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic"):
            properties |= {f"{topic}.replication.factor": nodes, f"{topic}.num.partitions": 3}
        return properties

    def security(self) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        if self.tls:
            both = self.tls / "both.pem"
            both.write_text((self.tls / "server.key").read_text() + (self.tls / "server.pem").read_text())
            properties |= {"ssl.keystore.type": "PEM", "ssl.keystore.location": both}
            properties |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": self.tls / "ca.pem"}
        if self.sasl:
            user, _, password = self.sasl.partition(":")
            package = "org.apache.kafka.common.security"
            for listener in ("client", "proxy"):
                prefix = f"listener.name.{listener}"
                properties |= {
                    f"{prefix}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
                    f"{prefix}.plain.sasl.jaas.config": (
                        f'{package}.plain.PlainLoginModule required user_{user}="{password}";'
                    ),
                    f"{prefix}.scram-sha-256.sasl.jaas.config": f"{package}.scram.ScramLoginModule required;",
                }
        return properties

    def argv(self) -> list[str]:
        return [*self.main("kafka.Kafka"), "server.properties"]

    def check(self) -> None:
        """It names itself among the brokers of a Metadata response (version 1, no topics), and listens to clients."""
        request = struct.pack(">hhihi", 3, 1, 1, -1, 0)
        with socket.create_connection((HOST, self.ports["internal"]), 5) as sock, sock.makefile("rb") as stream:
            sock.sendall(struct.pack(">i", len(request)) + request)
            _, _, brokers = struct.unpack(">iii", stream.read(12).ljust(12, b"\0"))
            known = [self._broker(stream) for _ in range(brokers)]
        if self.node not in known:
            raise OSError(f"brokers {known} are registered, this one, {self.node}, is not yet")
        socket.create_connection((HOST, self.port), 5).close()

    def _broker(self, stream: Any) -> int:
        node, host = struct.unpack(">ih", stream.read(6))
        stream.read(host + 4)
        stream.read(max(0, struct.unpack(">h", stream.read(2))[0]))
        return int(node)

    @asynccontextmanager
    async def proxied(self) -> AsyncIterator[tuple[str, Proxy]]:
        proxy = Proxy(HOST, self.ports["behind_proxy"])
        proxy.port = self.ports["proxy"]
        async with proxy:
            yield self.url_at(proxy.port), proxy


class Artemis(Java):
    """``settings`` are elements of <core> in broker.xml, with ``_`` for ``-``. AMQP 1.0 and its own protocol."""

    name, scheme = "artemis", "amqp"

    def prepare(self) -> None:
        elements = {
            "name": self.name,
            "journal-type": "NIO",
            "security-enabled": "false",
            "max-disk-usage": -1,
            **{f"{what}-directory": self.folder / "data" / what for what in ("journal", "bindings", "paging")},
            "large-messages-directory": self.folder / "data" / "large",
        } | {key.replace("_", "-"): value for key, value in self.settings.items()}
        core = "".join(f"<{k}>{v}</{k}>\n" for k, v in elements.items())
        (self.folder / "broker.xml").write_text(f"""<configuration xmlns="urn:activemq"><core xmlns="urn:activemq:core">
{core}<acceptors><acceptor name="all">tcp://{HOST}:{self.port}?protocols=AMQP,CORE</acceptor></acceptors>
<addresses>
<address name="DLQ"><anycast><queue name="DLQ"/></anycast></address>
<address name="ExpiryQueue"><anycast><queue name="ExpiryQueue"/></anycast></address>
</addresses>
<address-settings><address-setting match="#">
<dead-letter-address>DLQ</dead-letter-address><expiry-address>ExpiryQueue</expiry-address>
</address-setting></address-settings>
</core></configuration>
""")

    def argv(self) -> list[str]:
        return [*self.main("Artemis"), (self.folder / "broker.xml").as_uri()]

    def check(self) -> None:
        """It answers the protocol header of AMQP 1.0 with its own, then says what it offers for SASL."""
        exchange(self.port, b"AMQP\x03\x01\x00\x00", b"ANONYMOUS")
