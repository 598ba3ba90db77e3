"""An engine in this process, and MQTT devices: Eclipse Paho's client, which real devices use."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from tests.servers.base import HOST, free_port
from tests.transports.consuming import DEADLINE, until

from tidings import App
from tidings.gateway.engine import Engine, Options


class Got(NamedTuple):
    topic: str
    body: bytes
    qos: int = 0
    retained: bool = False


@asynccontextmanager
async def engine(folder: Path, **options: Any) -> AsyncIterator[Engine]:
    """On free ports."""
    async with Engine(Options(**{"data": str(folder), "port": free_port(), "mqtt": free_port()} | options)) as running:
        yield running


def app(running: Engine) -> App:
    """A member of its bus, whose leases end soon."""
    return App("shop", f"{running.url}&lease=2s")


class Device:
    """``async with Device(engine, "meter-1") as meter``: connected, and what it got is in ``got``."""

    def __init__(self, running: Engine, id: str = "", password: str = "", *, user: str = "", **more: Any) -> None:
        self.port = more.pop("port", running.options.mqtt)
        self.got: list[Got] = []
        self.lost = threading.Event()
        self.refused = ""
        will = more.pop("will", None)
        self.client: Any = paho.Client(
            paho.CallbackAPIVersion.VERSION2, id, more.pop("clean", True), protocol=paho.MQTTv311, **more
        )
        self.client.reconnect_delay_set(0.1, 0.1)
        self.client.max_inflight_messages_set(500)
        if password:
            self.client.username_pw_set(user or id, password)
        if will:
            self.client.will_set(*will)
        self.client.on_message = self._on_message
        self.client.on_disconnect = self._on_disconnect
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_publish = self._on_publish
        self.acknowledged: set[int] = set()
        self.granted: dict[int | None, list[int]] = {}
        self.connected = threading.Event()

    def _on_message(self, client: Any, data: Any, message: paho.MQTTMessage) -> None:
        self.got.append(Got(message.topic, message.payload, message.qos, message.retain))

    def _on_connect(self, client: Any, data: Any, flags: Any, code: Any, properties: Any) -> None:
        if code.is_failure:
            self.refused = str(code)
        else:
            self.connected.set()

    def _on_disconnect(self, client: Any, data: Any, flags: Any, code: Any, properties: Any) -> None:
        self.lost.set()

    def _on_publish(self, client: Any, data: Any, mid: int, code: Any, properties: Any) -> None:
        self.acknowledged.add(mid)

    def _on_subscribe(self, client: Any, data: Any, mid: int, codes: Any, properties: Any) -> None:
        self.granted[mid] = [code.value for code in codes]

    async def __aenter__(self) -> Device:
        await asyncio.to_thread(self.client.connect, HOST, self.port)
        self.client.loop_start()
        await until(lambda: self.connected.is_set() or self.refused, "CONNACK")
        if self.refused:
            self.client.loop_stop()
            raise ConnectionRefusedError(self.refused)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)

    def die(self) -> None:
        """As when its power fails: no DISCONNECT."""
        self.client.loop_stop()
        found = self.client.socket()
        found.shutdown(socket.SHUT_RDWR)
        found.close()

    async def publish(self, topic: str, body: bytes = b"", qos: int = 1, retain: bool = False) -> None:
        """Back when it is acknowledged; while there is no connection the client keeps it."""
        _, mid = self.client.publish(topic, body, qos, retain)
        await until(lambda: mid in self.acknowledged, f"{topic} is acknowledged", DEADLINE)
        self.acknowledged.discard(mid)

    async def subscribe(self, pattern: str, qos: int = 1) -> int:
        """The quality that was granted; 128: it was refused."""
        _, mid = self.client.subscribe(pattern, qos)
        await until(lambda: mid in self.granted, f"SUBACK for {pattern}")
        (code,) = self.granted[mid]
        return code
