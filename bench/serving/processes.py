"""A server in a process of its own, on a core of its own; this process, which is its clients, has another one.

So a rate is one of one core, and what the clients cost does not slow the server down. Where there is one core only, or
no Linux, they share what there is.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from ..harness import python_path

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
FIRST, LAST = 0, -1
PATIENCE = 30.0  # seconds to end
SPARE = 200  # files beside connections
OURS = ("-c", "from tidings.cli import main; main()", "serve", "--json", "--port", "0", "--grpc", "127.0.0.1:0")


class Server(Struct, frozen=True):
    """One that runs: where it listens, by what its first line said."""

    process: subprocess.Popen[bytes]
    port: int = 0  # of HTTP
    grpc: str = ""

    def memory(self) -> float:
        """Bytes that are resident now."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> float:
        """Seconds of processor time so far, user and system."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


class Listens(Struct):
    """The line of JSON by which a server says where it listens."""

    http: list[str] = []
    grpc: list[str] = []


@contextmanager
def running(*words: str, folder: Path) -> Iterator[Server]:
    """``python *words`` in a folder, until the end; it has to end well."""
    keep_to(LAST)
    process = subprocess.Popen((sys.executable, *words), cwd=folder, stdout=subprocess.PIPE, env=environment())
    try:
        keep_to(FIRST, process.pid)
        assert process.stdout
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {process.wait()} before it listened")
        told = msgspec.json.decode(line, type=Listens)
        port = int(told.http[0].rpartition(":")[2]) if told.http else 0
        yield Server(process, port, told.grpc[0] if told.grpc else "")
        process.terminate()
        if (code := process.wait(PATIENCE)) not in (0, -signal.SIGTERM):
            raise RuntimeError(f"the server ended with {code}")
    finally:
        process.kill()
        process.wait()


def environment() -> dict[str, str]:
    """Nothing of it configures the server, which may be one of ``bench``."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")}
    return plain | {"PYTHONPATH": python_path()}


def keep_to(core: int, pid: int = 0) -> None:
    """One of ``CORES``, from the first or the last; threads that are started later inherit it."""
    if len(CORES) > 1:
        os.sched_setaffinity(pid, {CORES[core]})


def allow_files(connections: int) -> None:
    """Raise the soft limit of open files to the hard one; children inherit it. ``RuntimeError``: it is too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < connections + SPARE:
        raise RuntimeError(f"{connections:,} connections need more open files than {hard:,}: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
