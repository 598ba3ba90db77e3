"""What the harness found in the embedded bus, each as a test of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.transports.consuming import settle, take
from tests.transports.sqlite.helpers import bus, group, message

from tidings.kernel.transport import Event
from tidings.testing.faults import Processes
from tidings.transports.sqlite import connect
from tidings.transports.sqlite.writer import HOUSEKEEPING


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``meanwhile(n, act)``: before the n-th statement of the next connection ``act()`` runs, as another process."""

    def arrange(number: int, act: Any) -> None:
        def hook(con: apsw.Connection) -> None:
            count = 0

            def trace(cursor: Any, statement: str, bindings: Any) -> bool:
                nonlocal count
                count += 1
                if count == number:
                    apsw.connection_hooks.remove(hook)
                    act()
                return True

            con.exec_trace = trace

        monkeypatch.setattr(apsw, "connection_hooks", [hook])

    return arrange


@pytest.mark.parametrize("statement", range(1, 4))
def test_two_processes_make_the_file_at_once(statement: int, tmp_path: Path, meanwhile: Any) -> None:
    """Four processes started at once: one said "another program's database" (kill -9 at random, seed 6)."""
    path, made = tmp_path / "bus.db", list[str]()

    def act() -> None:
        connect(path).close()
        made.append("by another process")

    meanwhile(statement, act)
    con = connect(path)
    assert con.execute("PRAGMA application_id").get
    con.close()
    assert made, f"inconclusive: opening has fewer than {statement} statements"


HOLD = """
import fcntl, sys
with open(sys.argv[1], "r+b") as shared:
    fcntl.lockf(shared, fcntl.LOCK_EX, 1, 121)  # SQLite's WAL_CKPT_LOCK
    print("held", flush=True)
    sys.stdin.readline()
"""


async def test_another_process_copies_the_log_into_the_file(tmp_path: Path) -> None:
    """Nothing was lost, but "bus lost: database is locked" was told, and housekeeping put off (kill -9, seed 0)."""
    told: list[Event] = []
    (tmp_path / "hold.py").write_text(HOLD)
    async with bus(tmp_path, told) as b, Processes() as processes:
        consumer = await b.subscribe(group())
        path = {"PYTHONPATH": str(tmp_path)}
        holder = await processes.start("hold", str(tmp_path / "bus.db-shm"), environment=path)
        await holder.line("held")
        for n in range(20):
            await b.publish([message(n)])
            await settle(consumer, await take(consumer, 1))
            await asyncio.sleep(2 * HOUSEKEEPING / 20)
        assert holder.returncode is None
        await holder.write()
    assert [event for event in told if event.kind == "lost"] == []
