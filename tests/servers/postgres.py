"""PostgreSQL, and PgBouncer in front of it: Debian's ``postgresql`` and ``pgbouncer``."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from .base import HOST, SBIN, NotStarted, Server, binary


def folders() -> list[str]:
    """Where Debian puts the programs, the newest version first."""
    found = Path("/usr/lib/postgresql").glob("*/bin")
    return [str(path) for path in sorted(found, key=lambda path: -float(path.parent.name))]


class NotRoot(Server):
    """Refuses to run as root; so it runs as Debian's user for it."""

    @property
    def user(self) -> str | None:  # type: ignore[override]
        return None if os.getuid() else "postgres"

    def ask(self, sql: str, database: str = "postgres") -> str:
        """What ``psql`` answers. Raises ``OSError``."""
        url = f"{self.url.rpartition('/')[0]}/{database}"
        command = [binary("psql", *folders()), "-XAtqc", sql, url]
        env = os.environ | {"PGCONNECT_TIMEOUT": "5"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=30)
        if done.returncode:
            raise OSError(done.stderr.strip())
        return done.stdout.strip()

    def check(self) -> None:
        self.ask("select 1")


class Postgres(NotRoot):
    """``settings`` are parameters: ``fresh("postgres", max_connections=20)``; and ``password``, for SCRAM."""

    name, scheme, tls_scheme = "postgres", "postgresql", "postgresql"
    packages = ("postgresql",)
    password = ""
    stop_signal = signal.SIGINT  # "fast": sessions are ended
    last_signal = signal.SIGQUIT  # "immediate"; a SIGKILL would leave its shared memory behind
    sweep = ("sh", "-c", "[ -f data/postmaster.pid ] && ipcrm -m $(sed -n '7s/.* //p' data/postmaster.pid)")

    @classmethod
    def program(cls) -> str:
        binary("psql", *folders())
        return binary("postgres", *folders())

    def prepare(self) -> None:
        if self.user:
            shutil.chown(self.folder, self.user)
        if self.tls:
            (self.tls / "server.key").chmod(0o600)
            shutil.chown(self.tls / "server.key", self.user or os.getuid())
        self.password = self.settings.pop("password", "")
        login = ["--auth=trust"]
        if self.password:
            (self.folder / "password").write_text(self.password)
            login = ["--auth=scram-sha-256", f"--pwfile={self.folder / 'password'}"]
        command = [str(Path(self.program()).with_name("initdb")), "--pgdata=data", "--username=postgres", *login]
        done = subprocess.run(
            [*command, "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"],
            cwd=self.folder, user=self.user, group=self.user, extra_groups=[] if self.user else None,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise NotStarted(f"initdb: {done.stdout}{done.stderr}")

    def argv(self) -> list[str]:
        parameters: dict[str, Any] = {
            "port": self.port,
            "listen_addresses": HOST,
            "unix_socket_directories": self.folder,
            "dynamic_shared_memory_type": "mmap",  # in its folder, so that nothing is left elsewhere
        }
        if self.tls:
            parameters |= {"ssl": "on", "ssl_cert_file": self.tls / "server.pem"}
            parameters |= {"ssl_key_file": self.tls / "server.key", "ssl_ca_file": self.tls / "ca.pem"}
        options = [f"--{key}={value}" for key, value in (parameters | self.settings).items()]
        return [self.program(), "-D", str(self.folder / "data"), *options]

    def url_at(self, port: int) -> str:
        return f"postgresql://postgres{f':{self.password}' if self.password else ''}@{HOST}:{port}/postgres"


class PgBouncer(NotRoot):
    """``settings`` are those of its [pgbouncer] section: ``fresh("pgbouncer", pool_mode="session")``."""

    name, scheme = "pgbouncer", "postgresql"
    needs, packages = ("postgres",), ("postgresql", "pgbouncer")

    @classmethod
    def program(cls) -> str:
        Postgres.program()
        return binary("pgbouncer", *SBIN)

    def prepare(self) -> None:
        section = {
            "listen_addr": HOST,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "max_client_conn": 500,
        } | self.settings
        lines = [f"{key} = {value}" for key, value in section.items()]
        server = f"* = host={HOST} port={self.behind['postgres'].port} user=postgres"
        (self.folder / "pgbouncer.ini").write_text("\n".join(["[databases]", server, "[pgbouncer]", *lines, ""]))

    def argv(self) -> list[str]:
        return [self.program(), str(self.folder / "pgbouncer.ini")]

    def url_at(self, port: int) -> str:
        return f"postgresql://postgres@{HOST}:{port}/postgres"
