"""Redis, writing each command to disk before it answers; with replica and Sentinel: Debian's ``redis-server``."""

from __future__ import annotations

from .base import HOST, Server, binary, exchange


class Redis(Server):
    """``settings`` are directives, with ``_`` for ``-``: ``fresh("redis", appendfsync="everysec")``."""

    name, scheme, tls_scheme = "redis", "redis", "rediss"
    listeners = ("main", "bus")
    packages = ("redis-server",)

    @classmethod
    def program(cls) -> str:
        return binary("redis-server")

    def prepare(self) -> None:
        (self.folder / "data").mkdir()
        directives = {"bind": HOST, "port": self.port, "dir": self.folder / "data", "save": '""'}
        directives |= {"appendonly": "yes", "appendfsync": "always", "cluster-port": self.ports["bus"]}
        directives |= {"repl-diskless-sync-delay": 0}
        if self.tls:
            directives |= {"port": 0, "tls-port": self.port, "tls-auth-clients": "no"}
            directives |= {"tls-cert-file": f"{self.tls}/server.pem", "tls-key-file": f"{self.tls}/server.key"}
            directives |= {"tls-ca-cert-file": f"{self.tls}/ca.pem"}
        directives |= {key.replace("_", "-"): value for key, value in self.settings.items()}
        (self.folder / "redis.conf").write_text("".join(f"{k} {v}\n" for k, v in directives.items()))

    def argv(self) -> list[str]:
        return [self.program(), str(self.folder / "redis.conf")]

    def url_at(self, port: int) -> str:
        password = self.settings.get("requirepass")
        return super().url_at(port).replace("//", f"//:{password}@" if password else "//")

    def ask(self, command: str, until: str = "\r\n") -> str:
        """The answer to a command, read until it holds ``until``. Raises ``OSError``."""
        password = self.settings.get("requirepass")
        login = f"AUTH {password}\r\n" if password else ""
        answer = exchange(self.port, f"{login}{command}\r\n".encode(), until.encode(), self.ca).decode()
        return answer.removeprefix("+OK\r\n") if login else answer

    def check(self) -> None:
        self.ask("PING", "+PONG")


class Primary(Redis):
    """What a Sentinel watches."""

    name = "redis_primary"


class Replica(Redis):
    name, needs = "redis_replica", ("redis_primary",)

    def prepare(self) -> None:
        self.settings |= {"replicaof": f"{HOST} {self.behind['redis_primary'].port}"}
        super().prepare()

    def check(self) -> None:
        self.ask("INFO replication", "master_link_status:up")


class Sentinel(Redis):
    """One Sentinel (which is a majority of one) of a primary called "tidings" and its replica, both in ``behind``."""

    name, scheme, tls_scheme = "sentinel", "redis+sentinel", ""
    needs = ("redis_primary", "redis_replica")

    def prepare(self) -> None:
        lines = [
            f"bind {HOST}",
            f"port {self.port}",
            f"sentinel monitor tidings {HOST} {self.behind['redis_primary'].port} 1",
            "sentinel down-after-milliseconds tidings 1000",
            "sentinel failover-timeout tidings 5000",
        ]
        (self.folder / "redis.conf").write_text("\n".join([*lines, ""]))  # it keeps its own state there

    def argv(self) -> list[str]:
        return [*super().argv(), "--sentinel"]

    def url_at(self, port: int) -> str:
        return f"{super().url_at(port)}/tidings"

    def check(self) -> None:
        """It knows primary and replica."""
        self.ask("INFO sentinel", "slaves=1")
