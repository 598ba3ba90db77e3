"""What the harness found in the embedded bus, each as a test of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.transports.sqlite.helpers import ack, bus, group, message, take, until

from tidings.kernel.transport import Event
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


async def test_another_process_copies_the_log_into_the_file(tmp_path: Path) -> None:
    """Nothing was lost, but "bus lost: database is locked" was told, and housekeeping put off (kill -9, seed 0)."""
    told: list[Event] = []
    async with bus(tmp_path, told) as b:
        consumer = await b.subscribe(group())
        reader, copier = connect(tmp_path / "bus.db", read=True), connect(tmp_path / "bus.db")
        reader.execute("BEGIN; SELECT * FROM meta").fetchall()  # so that the copier has to wait
        await b.publish([message(n) for n in range(5)])
        busy, enough = threading.Event(), threading.Event()

        def wait(tries: int) -> bool:
            busy.set()
            return not enough.wait(0.01)

        copier.set_busy_handler(wait)
        copying = asyncio.ensure_future(asyncio.to_thread(_copy, copier))
        await until(busy.is_set, "the copier waits, with its lock in hand")
        deliveries = await take(consumer, 5)
        for delivery in deliveries:
            await ack(consumer, [delivery])
            await asyncio.sleep(2 * HOUSEKEEPING / 5)
        enough.set()
        await copying
        reader.close()
        copier.close()
    assert [event for event in told if event.kind == "lost"] == []


def _copy(con: apsw.Connection) -> None:
    with contextlib.suppress(apsw.BusyError):
        con.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
