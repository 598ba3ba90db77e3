"""What all servers have in common: files, ports, a keeper, and waiting until it answers.

Theory of operation. A server is a folder, some ports and a command. `Server.prepare` writes the configuration into the
folder, a *keeper* (keeper.py) runs the command and ends it when nobody uses it any more, and `Server.check` asks the
server something in its own protocol until it answers. The folder holds everything (data, log, sockets), so removing
it removes the server.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, ClassVar

from tidings.testing.faults import Proxy

HOST = "127.0.0.1"
SBIN = ("/usr/sbin", "/usr/local/sbin")  # where Debian has daemons, and few users look


class Missing(Exception):
    """A server that cannot be had here; says how to get it."""


class NotStarted(Exception):
    """It was started, and does not answer; carries the end of its log."""


_given = set[int]()


def free_port() -> int:
    """Below the ports that outgoing connections are given, so that it stays free while its server is down: nor is it
    given twice by this process, or by another of xdist's workers.
    """
    first = 20_000 + 1500 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8)
    for port in random.sample(range(first, first + 1500), 1500):
        if port not in _given:
            with closing(socket.socket()) as sock, suppress(OSError):
                sock.bind((HOST, port))
                _given.add(port)
                return port
    raise OSError(f"no free port between {first} and {first + 1500}")


def binary(name: str, *folders: str) -> str:
    """The path of a program, in ``PATH`` or ``folders``. Raises ``Missing``."""
    if found := shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *folders))):
        return found
    raise Missing(f"{name} is missing: python -m tests.servers --install")


class Server:
    """One server, on the loopback interface. Subclasses say what is particular.

    ``settings`` are the server's own, by its own names, and override those chosen here.
    """

    name: ClassVar[str]
    scheme: ClassVar[str]
    listeners: ClassVar[tuple[str, ...]] = ("main",)
    """Names of the ports; the first is the one of ``url``."""
    schemes: ClassVar[Mapping[str, str]] = {}
    """URL schemes of other listeners."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Names of the servers that must run before, found in ``behind``."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Debian's packages that it takes."""
    patience: ClassVar[float] = 60.0
    """Seconds in which it must answer."""
    tls_scheme: ClassVar[str] = ""
    """Of ``url``, with the setting ``tls=True``; "": it is not offered."""
    ours: bool = True
    """False: somebody else's, which is not ours to stop."""

    def __init__(self, folder: Path, ports: Mapping[str, int], behind: Mapping[str, Server], settings: Any) -> None:
        self.folder, self.ports, self.behind = folder, dict(ports), dict(behind)
        self.settings: dict[str, Any] = dict(settings)
        self.tls = Path(folder, "tls") if self.settings.pop("tls", False) else None
        """With ``tls=True``: the folder with ca.pem, server.pem and server.key, client.pem and client.key."""
        self.took = 0.0
        """Seconds that the last start took."""
        self._keeper: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None  # the keeper, if we started it
        self._one = threading.Lock()  # question at a time

    # -- what is particular -----------------------------------------------------------------------------------------

    @classmethod
    def program(cls) -> Any:
        """What it takes to run it. Raises ``Missing``."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Write the configuration into ``folder``."""

    def argv(self) -> list[str]:
        raise NotImplementedError

    def env(self) -> dict[str, str]:
        """Variables beside those of this process."""
        return {}

    def check(self) -> None:
        """Ask it something. Raises ``OSError`` while it does not answer rightly."""
        raise NotImplementedError

    user: str | None = None
    """Who runs it; None: who runs this."""
    stop_signal = signal.SIGTERM
    last_signal: int | None = None
    """How it ends when nobody uses it; None: SIGKILL."""
    sweep: tuple[str, ...] = ()
    """A command that removes what lies outside the folder."""

    # -- where it is ----------------------------------------------------------------------------------------------

    @property
    def host(self) -> str:
        return HOST

    @property
    def port(self) -> int:
        return self.ports[self.listeners[0]]

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """The URL, were the server at another port (of a proxy)."""
        return f"{self.tls_scheme if self.tls else self.scheme}://{HOST}:{port}"

    def url_of(self, listener: str) -> str:
        """The URL of another listener: ``mqtt``, ``stream``, ``management``, ..."""
        return f"{self.schemes[listener]}://{HOST}:{self.ports[listener]}"

    @property
    def ca(self) -> Path | None:
        """The authority that signed its certificate, with ``tls=True``."""
        return self.tls and self.tls / "ca.pem"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    # -- its life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it, with what it had stored, and wait until it answers."""
        begun = time.monotonic()
        self.launch()
        self.wait()
        self.took = time.monotonic() - begun

    def launch(self) -> None:
        """Start it without waiting."""
        self._ask("start")

    def stop(self) -> None:
        """End it as its operator would."""
        self._ask("stop")

    def kill(self) -> None:
        """SIGKILL for every process of it; back when they are gone."""
        self._ask("kill")

    def restart(self) -> None:
        """``kill``, then ``start`` on the same ports and data."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and silent until ``resume``."""
        self._ask("pause")

    def resume(self) -> None:
        self._ask("resume")

    @property
    def running(self) -> bool:
        return bool(self._ask("running"))

    def pids(self) -> list[int]:
        """Every process of it."""
        return list(self._ask("pids"))

    def wait(self) -> None:
        """Until it answers. Raises ``NotStarted`` when it ends before, or takes longer than ``patience``."""
        try:
            wait_for(self.check, self.patience, lambda: self.running)
        except TimeoutError as e:
            raise NotStarted(f"{self.name} at {self.url}: {e}\n{self.tail()}") from None

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @asynccontextmanager
    async def proxied(self) -> AsyncIterator[tuple[str, Proxy]]:
        """A misbehaving network in front of it: ``async with server.proxied() as (url, proxy)``."""
        async with Proxy(HOST, self.port) as proxy:
            yield self.url_at(proxy.port), proxy

    # -- its keeper -----------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        behind: Mapping[str, Server],
        settings: Mapping[str, Any],
        ports: Mapping[str, int] | None = None,
        note: Path | None = None,
    ) -> Server:
        """A new one, prepared and not yet started, in a new folder. ``note`` is removed with it. Raises ``Missing``."""
        cls.program()
        folder = Path(tempfile.mkdtemp(prefix=f"tidings-{cls.name}-"))
        folder.chmod(0o755)  # it may run as another user
        server = cls(folder, ports or {listener: free_port() for listener in cls.listeners}, behind, settings)
        try:
            if server.tls:
                assert cls.tls_scheme, f"{cls.name} has no tls=True"
                certificates(server.tls)
            server.prepare()
            server._keep(note)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return server

    def _keep(self, note: Path | None) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("COV_", "PYTHON"))}
        command = {
            "argv": self.argv(),
            "env": inherited | self.env(),
            "user": self.user,
            "stop": int(self.stop_signal),
            "grace": 20.0,
            "last": self.last_signal,
            "sweep": self.sweep,
            "note": None if note is None else str(note),
        }
        (self.folder / "command.json").write_text(json.dumps(command))
        with socket.socket(socket.AF_UNIX) as listener, (self.folder / "keeper.log").open("wb") as log:
            listener.bind(str(self.folder / "keeper"))
            listener.listen()
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    str(Path(__file__).with_name("keeper.py")),
                    str(listener.fileno()),
                    str(self.folder),
                ],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,  # never ours, which somebody may read to its end
                stderr=log,
                start_new_session=True,  # Ctrl-C is not for it
                cwd="/",
            )
            self.join()

    def join(self) -> None:
        """Become one of its users. Raises ``OSError`` when it is gone."""
        self._keeper = socket.socket(socket.AF_UNIX)
        self._keeper.connect(str(self.folder / "keeper"))
        self._ask("running")

    def leave(self) -> None:
        """Use it no longer; the last one to leave ends it. ``left`` waits for that."""
        if self._keeper is not None:
            with suppress(OSError):
                self._keeper.shutdown(socket.SHUT_WR)

    def left(self) -> None:
        if self._keeper is not None:
            with suppress(OSError):
                while self._keeper.recv(4096):
                    pass
            self._keeper.close()
            self._keeper = None
        if self._process is not None:
            if self._process.poll() is None and self.folder.exists():
                self._process.returncode = 0  # others use it: it is theirs to end, and no cause for a warning
            else:
                self._process.wait()
                shutil.rmtree(self.folder, ignore_errors=True)  # of a keeper that was killed
            self._process = None

    def _ask(self, what: str) -> Any:
        if self._keeper is None:
            raise OSError(f"{self.name} has been left")
        with self._one:
            self._keeper.sendall(json.dumps({"do": what}).encode() + b"\n")
            line = b""
            while not line.endswith(b"\n"):
                if not (part := self._keeper.recv(4096)):
                    raise OSError(f"the keeper of {self.name} is gone")
                line += part
        answer = json.loads(line)
        if answer["error"]:
            raise NotStarted(f"{self.name}: {what}: {answer['error']}")
        return answer["result"]


def wait_for(check: Callable[[], None], patience: float, going_on: Callable[[], bool] = lambda: True) -> None:
    """Until ``check`` no longer raises ``OSError``. Raises ``TimeoutError``, with its last complaint."""
    deadline, pause = time.monotonic() + patience, 0.01
    while going_on():
        try:
            return check()
        except (OSError, EOFError) as e:
            why = f"{type(e).__name__}: {e}"
        if time.monotonic() > deadline:
            raise TimeoutError(f"no right answer in {patience:.0f} s: {why}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.2)
    raise TimeoutError("it ended")


def certificates(folder: Path) -> None:
    """A new authority (ca.pem), and what it signed for the server and for a client named "client"."""
    folder.mkdir()
    openssl = binary("openssl")
    authority = ["-CA", "ca.pem", "-CAkey", "ca.key"]
    for name, more in (
        ("ca", ["-subj", "/CN=Tidings tests"]),
        ("server", ["-subj", "/CN=localhost", "-addext", f"subjectAltName=IP:{HOST},DNS:localhost", *authority]),
        ("client", ["-subj", "/CN=client", *authority]),
    ):
        command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        if name != "ca":
            command += ["-addext", "basicConstraints=critical,CA:FALSE"]
        command += ["-days", "2", "-keyout", f"{name}.key", "-out", f"{name}.pem", *more]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        (folder / f"{name}.key").chmod(0o644)  # of no worth to anybody, and read by servers that are other users


def connected(port: int, ca: Path | None, timeout: float) -> socket.socket:
    sock = socket.create_connection((HOST, port), timeout)
    if ca is None:
        return sock
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(ca.with_name("client.pem"), ca.with_name("client.key"))  # for servers that ask for one
    return context.wrap_socket(sock, server_hostname=HOST)


def exchange(port: int, data: bytes, until: bytes, ca: Path | None = None, timeout: float = 2.0) -> bytes:
    """Send ``data`` and read until ``until`` has come; over TLS, given its authority. Raises ``OSError``."""
    with connected(port, ca, timeout) as sock:
        sock.sendall(data)
        got = b""
        while until not in got:
            if not (part := sock.recv(65536)):
                raise OSError(f"the connection was closed after {got!r}")
            got += part
            if len(got) > 1 << 20:
                raise OSError(f"no {until!r} in {got[:200]!r}")
        return got
