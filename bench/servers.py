"""The servers that some peers need, on free ports of the loopback interface, their data in a folder; ended by pid."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HOST = "127.0.0.1"
PATIENCE = 20.0  # seconds a server may take to start, and to end


def program(name: str) -> str:
    """Where a server's program is: beside this Python, where wheels bring it, or on the path."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: scripts/bench_setup.sh installs it")
    return found


def version(name: str) -> str:
    """As the server says it, such as ``nats-server: v2.11.0``."""
    return subprocess.run((program(name), "--version"), capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """The URL of a Redis that syncs its append-only file before it answers a write."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    data = folder / "redis"
    data.mkdir()
    command = [program("redis-server"), "--bind", HOST, "--port", str(port), "--dir", str(data), "--save", ""]
    durable = ["--appendonly", "yes", "--appendfsync", "always"]

    def answers() -> bool:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")

    with _running([*command, *durable], data / "log", answers):
        yield f"redis://{HOST}:{port}/0"


@contextmanager
def nats(folder: Path) -> Iterator[str]:
    """The URL of a NATS server whose JetStream syncs each message before it acknowledges it."""
    data = folder / "nats"
    data.mkdir()
    settings = {
        "host": HOST,
        "port": -1,  # a free one, which it writes into a file
        "ports_file_dir": str(data),
        "jetstream": {"store_dir": str(data / "jetstream"), "sync_interval": "always"},
    }
    config = data / "nats.conf"
    config.write_text(json.dumps(settings))

    def urls() -> list[str]:
        found = [json.loads(ports.read_text()) for ports in data.glob("*.ports")]
        return [url for ports in found for url in ports["nats"]]

    with _running([program("nats-server"), "--config", str(config)], data / "log", lambda: bool(urls())):
        yield urls()[0]


@contextmanager
def _running(command: Sequence[str], log: Path, answers: Callable[[], bool]) -> Iterator[None]:
    """It also ends when this process is killed, where ``setpriv`` can see to that (Linux)."""
    guard = [found, "--pdeathsig", "TERM", "--"] if (found := shutil.which("setpriv")) else []
    with log.open("wb") as output:
        server = subprocess.Popen([*guard, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        _until(answers, server, log)
        yield
    finally:
        server.terminate()
        try:
            server.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _until(answers: Callable[[], bool], server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if answers():
                return
        except (OSError, ValueError):
            pass  # it does not listen yet, or has written half of the file
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{server.args!r} did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.01)
