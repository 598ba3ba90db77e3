"""Devices: ``python -m bench.serving.meters <port> <devices> <seconds>`` is thousands of MQTT clients in one process.

Each is a client of Eclipse Paho's library, in a loop of ours: it publishes with QoS 1 once a second, when it is due,
whatever became of what it published before. It says ``ready`` when all are connected, begins when it is told, and ends
with how many were acknowledged and how long that took.
"""

from __future__ import annotations

import selectors
import sys
import time
from typing import Any

import msgspec
import paho.mqtt.client as paho
from msgspec import Struct
from paho.mqtt.enums import CallbackAPIVersion

from ..pacer import Stamped
from ..peers._shared import encode
from .processes import allow_files

HOST = "127.0.0.1"
FILES = 3  # of a client: its connection, and a pair of sockets that Paho wakes itself with
PATIENCE = 60.0  # seconds until what was not acknowledged is lost


class Acknowledged(Struct):
    """How many of what was published, and how long that took: seconds from when it was due, in order."""

    count: int
    delays: list[float]


class Crowd:
    """All devices, in one loop."""

    def __init__(self, port: int, devices: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.connected = 0
        self.waiting: dict[tuple[int, int], float] = {}  # by device and packet
        self.delays: list[float] = []
        self.devices = [self._device(number, port) for number in range(devices)]
        self._until(lambda: self.connected == devices, "are connected")

    def _device(self, number: int, port: int) -> Any:
        client: Any = paho.Client(
            CallbackAPIVersion.VERSION2, f"meter-{number}", userdata=number, protocol=paho.MQTTv311
        )
        client.on_connect, client.on_publish = self._on_connect, self._on_publish
        client.on_disconnect = self._on_disconnect
        client.connect(HOST, port, keepalive=300)
        self.selector.register(client.socket(), selectors.EVENT_READ, client)
        self._read(0.0)
        return client

    def _on_connect(self, client: Any, number: int, flags: Any, code: Any, properties: Any) -> None:
        if code.is_failure:
            raise ConnectionRefusedError(str(code))
        self.connected += 1

    def _on_disconnect(self, client: Any, number: int, flags: Any, code: Any, properties: Any) -> None:
        if code.is_failure:
            raise ConnectionError(f"device {number} was disconnected: {code}")

    def _on_publish(self, client: Any, number: int, packet: int, code: Any, properties: Any) -> None:
        self.delays.append(time.monotonic() - self.waiting.pop((number, packet)))

    def _read(self, timeout: float) -> None:
        for key, _ in self.selector.select(timeout):
            if code := key.data.loop_read():
                raise ConnectionError(paho.error_string(code))

    def _until(self, done: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not all {what} within {PATIENCE:g} s")
            self._read(0.1)

    def publish(self, seconds: int) -> None:
        """Message m is of device m modulo their number, and due at start + m / their number."""
        start, many = time.monotonic() + 0.1, len(self.devices)
        for number in range(many * seconds):
            due, device = start + number / many, number % many
            while (left := due - time.monotonic()) > 0:
                self._read(left)
            stamp = encode(Stamped(due, number))
            # The answer is read by this thread, so it cannot come before its number is known here.
            told = self.devices[device].publish(f"sensors/meter-{device}/reading", stamp, qos=1)
            self.waiting[device, told.mid] = due
        self._until(lambda: not self.waiting, "were acknowledged")

    def leave(self) -> None:
        for device in self.devices:
            device.disconnect()


def main(port: str, devices: str, seconds: str) -> None:
    allow_files(int(devices) * FILES)
    crowd = Crowd(int(port), int(devices))
    print("ready", flush=True)
    sys.stdin.readline()
    crowd.publish(int(seconds))
    acknowledged = Acknowledged(len(crowd.delays), sorted(crowd.delays))
    print(msgspec.json.encode(acknowledged).decode(), flush=True)
    sys.stdin.readline()
    crowd.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
