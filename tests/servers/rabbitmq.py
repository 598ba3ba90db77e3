"""RabbitMQ with management, MQTT, AMQP 1.0 and streams: Debian's ``rabbitmq-server``."""

from __future__ import annotations

import base64
import http.client
import os
import subprocess
from typing import Any
from urllib.parse import urlsplit

from .base import HOST, Missing, Server, binary

BIN = "/usr/lib/rabbitmq/bin"  # not the wrappers of /usr/sbin, which insist on the system's user and folders
PLUGINS = ("rabbitmq_management", "rabbitmq_mqtt", "rabbitmq_amqp1_0", "rabbitmq_stream", "rabbitmq_stream_management")


class RabbitMQ(Server):
    """``settings`` are lines of rabbitmq.conf: ``fresh("rabbitmq", default_pass="secret")``; and ``plugins``.

    AMQP 1.0 is spoken on the main port, too. Without the MQTT plug-in a first start, or one after a kill, takes half
    the time: ``fresh("rabbitmq", plugins=("rabbitmq_management",))``; management must be among them.

    A quorum queue declared less than a second before a SIGKILL is without a leader for ever (3.10 writes its registry
    of them late): sleep two between.
    """

    name, scheme, tls_scheme, patience = "rabbitmq", "amqp", "amqps", 90.0
    listeners = ("main", "stream", "mqtt", "management", "distribution", "names")
    packages = ("rabbitmq-server",)
    schemes = {"stream": "rabbitmq-stream", "mqtt": "mqtt", "management": "http"}  # noqa: RUF012

    @classmethod
    def program(cls) -> str:
        binary("erl")
        if not os.access(f"{BIN}/rabbitmq-server", os.X_OK):
            raise Missing("rabbitmq-server is missing: python -m tests.servers --install")
        return f"{BIN}/rabbitmq-server"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.plugins: tuple[str, ...] = self.settings.pop("plugins", PLUGINS)

    def prepare(self) -> None:
        p = self.ports
        lines = {
            f"listeners.{'ssl' if self.tls else 'tcp'}.1": f"{HOST}:{p['main']}",
            "management.tcp.ip": HOST,
            "management.tcp.port": p["management"],
            "disk_free_limit.absolute": "100MB",
        }
        if "rabbitmq_mqtt" in self.plugins:
            lines |= {"mqtt.listeners.tcp.1": f"{HOST}:{p['mqtt']}"}
        if "rabbitmq_stream" in self.plugins:
            lines |= {"stream.listeners.tcp.1": f"{HOST}:{p['stream']}"}
            lines |= {"stream.advertised_host": HOST, "stream.advertised_port": p["stream"]}
        if self.tls:
            lines |= {"listeners.tcp": "none", "ssl_options.cacertfile": self.tls / "ca.pem"}
            lines |= {"ssl_options.certfile": self.tls / "server.pem", "ssl_options.keyfile": self.tls / "server.key"}
        (self.folder / "rabbitmq.conf").write_text("".join(f"{k} = {v}\n" for k, v in (lines | self.settings).items()))
        (self.folder / "enabled_plugins").write_text(f"[{','.join(self.plugins)}].\n")
        (self.folder / "env.conf").touch()

    def argv(self) -> list[str]:
        return [self.program()]

    def env(self) -> dict[str, str]:
        f = self.folder
        own = {
            "CONFIG_FILE": f / "rabbitmq.conf",
            "ADVANCED_CONFIG_FILE": f / "advanced.config",
            "CONF_ENV_FILE": f / "env.conf",
            "ENABLED_PLUGINS_FILE": f / "enabled_plugins",
            "FEATURE_FLAGS_FILE": f / "feature_flags",
            "GENERATED_CONFIG_DIR": f / "generated",
            "MNESIA_BASE": f / "data",
            "LOG_BASE": f,
            "LOGS": "-",
            "PID_FILE": f / "pid",
            "DIST_PORT": self.ports["distribution"],
            "NODENAME": f"t{self.port}@localhost",
            "SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",  # no busy waiting
        }
        erlang = {"HOME": f, "ERL_EPMD_PORT": self.ports["names"], "ERL_EPMD_ADDRESS": HOST}
        return {f"RABBITMQ_{k}": str(v) for k, v in own.items()} | {k: str(v) for k, v in erlang.items()}

    @property
    def login(self) -> str:
        return f"{self.settings.get('default_user', 'guest')}:{self.settings.get('default_pass', 'guest')}"

    def url_at(self, port: int) -> str:
        return super().url_at(port).replace("//", f"//{self.login}@") + "/"

    def url_of(self, listener: str) -> str:
        return f"{self.schemes[listener]}://{self.login}@{HOST}:{self.ports[listener]}"

    def check(self) -> None:
        """Its own health check says that all listeners and plug-ins are up."""
        for listener in ("main", "stream", "mqtt"):
            if listener == "main" or f"rabbitmq_{listener}" in self.plugins:
                self.api("GET", f"/api/health/checks/port-listener/{self.ports[listener]}")

    def api(self, method: str, path: str, body: str | None = None) -> str:
        """Ask the management interface. Raises ``OSError`` unless it says 2xx."""
        at = urlsplit(self.url_of("management"))
        basic = base64.b64encode(f"{at.username}:{at.password}".encode()).decode()
        connection = http.client.HTTPConnection(at.hostname or HOST, at.port, timeout=30)
        try:
            connection.request(method, path, body, {"Authorization": f"Basic {basic}", "content-type": "text/json"})
            response = connection.getresponse()
            text = response.read().decode()
        except http.client.HTTPException as e:
            raise OSError(f"{method} {path}: {e!r}") from e
        finally:
            connection.close()
        if response.status >= 300:
            raise OSError(f"{method} {path}: {response.status} {text}")
        return text

    def control(self, *arguments: str) -> str:
        """``rabbitmqctl``; slow, so ``api`` where that will do."""
        self.pids()  # ours, or the test is skipped
        command = [f"{BIN}/rabbitmqctl", *arguments]
        return subprocess.run(
            command, env=os.environ | self.env(), check=True, capture_output=True, text=True, timeout=60
        ).stdout
