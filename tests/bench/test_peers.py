"""Each peer of the benchmark does each of its works, small. One that is not installed is skipped with the reason, in CI
too: ``make test`` installs none of them, ``scripts/bench_setup.sh`` all.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import psutil
import pytest
from bench.payload import order
from bench.peers._shared import Delays, Tally, encode, paced

from bench import servers

ROOT = Path(__file__).parents[2]
SOURCES = {path.stem: path.read_text() for path in sorted((ROOT / "bench" / "peers").glob("[!_]*.py"))}
WORKS = {  # work: what it is given besides the folder
    "concurrent": (48, 4),
    "publish": (48,),
    "backlog": (48,),
    "end_to_end": (48,),
    "latency": (100.0, 0.5),
}
DONE = [(name, work) for name, source in SOURCES.items() for work in WORKS if f"def {work}(" in source]
UNSYNCED = {"faststream", "kombu"}
SERVERS = {"redis": (servers.redis, "redis-server"), "nats": (servers.nats, "nats-server")}


def peer(name: str) -> ModuleType:
    """It, or a skip. What other libraries warn of on import is not for us to mend."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(f"bench.peers.{name}")
        module.VERSION()
    except (ImportError, FileNotFoundError) as missing:
        pytest.skip(f"{name}: {missing}; scripts/bench_setup.sh installs it")
    return module


def perform(name: str, work: str, folder: Path) -> tuple[float | list[float], list[str]]:
    """The result, and which processes it left behind. Runs in a process of its own."""
    result = getattr(importlib.import_module(f"bench.peers.{name}"), work)(folder, *WORKS[work])
    return result, [child.name() for child in psutil.Process().children(recursive=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "work"), DONE)
def test_a_peer_does_its_work_and_stops_its_server(name: str, work: str, tmp_path: Path) -> None:
    peer(name)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        result, left = pool.submit(perform, name, work, tmp_path).result()
    delays = result if isinstance(result, list) else [result]
    assert all(value > 0 for value in delays)
    assert len(delays) == (50 if work == "latency" else 1)
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_a_peer_says_what_it_is_and_what_is_durable(name: str) -> None:
    module = peer(name)
    assert module.NAME
    assert any(letter.isdigit() for letter in module.VERSION())
    assert ("nothing" in module.DURABLE) == (name in UNSYNCED)
    assert name in dict(DONE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, work in DONE if work == "concurrent"])
def test_what_is_called_durable_is_synced(name: str, tmp_path: Path) -> None:
    """One publisher, so nothing can share a sync: there is one for each message at least, or none at all."""
    peer(name)
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace, folder = tmp_path / "trace", tmp_path / "data"
    folder.mkdir()
    program = f"import pathlib, bench.peers.{name} as peer; peer.concurrent(pathlib.Path({str(folder)!r}), 40, 1)"
    traced = ("strace", "-f", "-o", str(trace), "-e", "trace=fsync,fdatasync", sys.executable, "-c", program)
    done = subprocess.run(traced, cwd=ROOT, capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    syncs = trace.read_text().count("sync(")
    assert syncs == 0 if name in UNSYNCED else syncs >= 40


# -- the servers


def answers(url: str) -> bool:
    at = urlsplit(url)
    try:
        with socket.create_connection((at.hostname or "", at.port or 0), timeout=1.0):
            return True
    except ConnectionError:
        return False


def server(name: str) -> Callable[[Path], AbstractContextManager[str]]:
    start, program = SERVERS[name]
    try:
        servers.program(program)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    return start


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_listens_on_loopback_while_it_is_wanted(name: str, tmp_path: Path) -> None:
    start = server(name)
    with start(tmp_path) as url:
        assert urlsplit(url).hostname == "127.0.0.1"
        (process,) = (child for child in psutil.Process().children() if child.name() == SERVERS[name][1])
        assert {at.laddr.ip for at in process.net_connections() if at.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        assert answers(url)
    assert not answers(url)
    assert not process.is_running()
    assert any((tmp_path / name).iterdir())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="only setpriv ties a server to its process")
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_ends_when_its_process_is_killed(name: str, tmp_path: Path) -> None:
    server(name)
    program = (
        "import sys, time; from pathlib import Path; from bench import servers\n"
        f"with servers.{name}(Path({str(tmp_path)!r})) as url: print(url, flush=True); sys.stdin.read()"
    )
    starter = subprocess.Popen(
        (sys.executable, "-c", program), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with starter:
        assert starter.stdout is not None
        url = starter.stdout.readline().strip()
        assert answers(url)
        os.kill(starter.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20.0
    while answers(url):
        assert time.monotonic() < deadline, "the server outlived its process"
        time.sleep(0.05)


# -- what the peers share


def test_a_tally_accepts_each_once_and_nothing_else() -> None:
    def tally(*numbers: int) -> Tally:
        seen = Tally(3)
        for n in numbers:
            seen.take(encode(order(n)))
        return seen

    tally(2, 0, 1).check(left=0)
    for wrong, left in ((tally(0, 1), 0), (tally(0, 1, 1), 0), (tally(0, 1, 2, 2), 0), (tally(0, 1, 2), 1)):
        with pytest.raises(RuntimeError, match="3 published"):
            wrong.check(left)


def test_what_a_stall_delays_is_late_from_when_it_was_due() -> None:
    """The second is taken 0.2 s late: it and those behind it count from their own due times."""
    delays, pacing = Delays(100.0, 0.05), paced(100.0, 0.05)
    delays.take(next(pacing))
    time.sleep(0.2)
    for body in pacing:
        delays.take(body)
    assert not delays.more()
    first, *others = delays.values
    assert all(late > 0.1 for late in others)
    assert others == sorted(others, reverse=True)
    assert first < others[0]
    with pytest.raises(RuntimeError, match="twice"):
        delays.take(body)


def test_the_body_of_an_order_is_what_tidings_sends() -> None:
    assert encode(order(7)).startswith(b'{"id":"order-0000007","n":7')
