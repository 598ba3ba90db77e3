"""Each peer of the benchmark does each of its works, small. One that is not installed is skipped with the reason, in CI
too: ``make test`` installs none of them, ``scripts/bench_setup.sh`` all.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from bench.payload import order
from bench.peers._shared import Delays, Tally, encode, paced
from tests.servers import Missing

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


def peer(name: str) -> ModuleType:
    """It, or a skip. What other libraries warn of on import is not for us to mend."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(f"bench.peers.{name}")
        module.VERSION()
    except (ImportError, Missing) as missing:
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
