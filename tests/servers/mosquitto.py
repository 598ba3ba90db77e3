"""Mosquitto, an MQTT 3.1.1 and 5 broker, with its command-line clients: Debian's packages of that name."""

from __future__ import annotations

import getpass

from .base import HOST, SBIN, Server, binary, exchange


class Mosquitto(Server):
    """``settings`` are those of its configuration file. What it holds goes to disk once a second, and at a stop."""

    name, scheme, tls_scheme = "mosquitto", "mqtt", "mqtts"
    listeners = ("main", "websocket")
    packages = ("mosquitto", "mosquitto-clients")
    schemes = {"websocket": "ws"}  # noqa: RUF012

    @classmethod
    def program(cls) -> str:
        binary("mosquitto_pub")
        return binary("mosquitto", *SBIN)

    def prepare(self) -> None:
        (self.folder / "data").mkdir()
        options = {
            "user": getpass.getuser(),
            "allow_anonymous": "true",
            "persistence": "true",
            "persistence_location": f"{self.folder}/data/",
            "autosave_interval": 1,
            "max_queued_messages": 0,  # no limit
            "max_inflight_messages": 100,
        } | self.settings
        lines = [f"{key} {value}" for key, value in options.items()]
        lines += [f"listener {self.ports['websocket']} {HOST}", "protocol websockets", f"listener {self.port} {HOST}"]
        if self.tls:
            files = {"cafile": "ca.pem", "certfile": "server.pem", "keyfile": "server.key"}
            lines += [f"{key} {self.tls / file}" for key, file in files.items()]
        (self.folder / "mosquitto.conf").write_text("\n".join([*lines, ""]))

    def argv(self) -> list[str]:
        return [self.program(), "-c", str(self.folder / "mosquitto.conf")]

    def check(self) -> None:
        """CONNECT (MQTT 3.1.1, clean session, client "check") is answered by a CONNACK, whatever it says."""
        exchange(self.port, b"\x10\x11\x00\x04MQTT\x04\x02\x00\x05\x00\x05check", b"\x20\x02", self.ca)
