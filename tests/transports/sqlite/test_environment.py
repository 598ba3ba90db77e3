"""What the faults of ``tests/faults/environment.py`` and the soak have found, each by itself."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path
from threading import Event as Flag

import apsw
import pytest
from tests.transports.consuming import settle, take, until
from tests.transports.sqlite.helpers import Bench, bus, group, message

from tidings.kernel.clock import Clock
from tidings.kernel.errors import BusForked, NotFound
from tidings.kernel.transport import Event
from tidings.transports._records import freeze


async def test_a_step_of_the_wall_clock_is_told_once(tmp_path: Path) -> None:
    told, offset = list[Event](), 0.0
    asyncio.get_running_loop().clock = Clock(now=lambda: time.time() + offset)  # type: ignore[attr-defined]
    async with bus(tmp_path, told) as b:
        consumer = await b.subscribe(group())
        await b.publish([message(1, deliver_at=time.time() + 300)])
        offset = 0.9  # as a daemon corrects it
        await b.publish([message(2)])
        await settle(consumer, await take(consumer, 1))
        assert told == []
        offset += 600
        await settle(consumer, await take(consumer, 1))
        await until(lambda: len(told) == 1)
        offset -= 600
        await until(lambda: len(told) == 2)
        assert [(event.kind, event.count) for event in told] == [("clock", 1), ("clock", 1)]
        assert "+600.0 s" in told[0].detail
        assert "-600.0 s" in told[1].detail


async def test_a_fork_may_not_open_the_file_its_parent_has_open(tmp_path: Path) -> None:
    """SQLite would count the parent's locks as the child's."""
    async with bus(tmp_path) as b:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                b.options.transport().open(print).send(None)
            except BusForked:
                code = 7
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7
    pid = os.fork()
    if pid == 0:  # once the parent has closed it, the child may
        os._exit(_opens(tmp_path))
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def _opens(folder: Path) -> int:
    async def open_it() -> None:
        async with bus(folder) as b:
            await b.publish([message(1)])

    with asyncio.Runner() as runner:
        asyncio.events._set_running_loop(None)
        runner.run(open_it())
    return 0


async def test_a_group_dropped_under_a_silent_member(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bus.db")
    silent, other = bench.member(), bench.member()
    id = bench.do(silent, silent.register, group())
    bench.now += 31
    bench.do(other, other.beat, bench.now)
    other.gone = lambda mono: [silent.member]  # type: ignore[method-assign]
    bench.do(other, other.drop, "shop.bill")
    with pytest.raises(NotFound, match="dropped while its consumer was silent"):
        bench.do(silent, silent.claim, id, 10)
    bench.con.close()


async def test_who_could_not_write_does_not_call_others_silent(tmp_path: Path) -> None:
    """The file was locked for longer than a lease, or the machine slept: nobody could say that he was there."""
    bench = Bench(tmp_path / "bus.db")
    one, other = bench.member(), bench.member()
    id = bench.do(one, one.register, group())
    bench.do(other, other.register, group())
    bench.do(one, one.log.append, *freeze([message(n) for n in range(3)], bench.now))
    held = bench.do(one, one.claim, id, 2).claim
    bench.now += 31
    bench.do(other, other.expire)
    bench.do(one, one.beat, bench.now)
    assert held.id in one.claims
    assert one.events == []
    for _ in range(4):  # now one of them is silent, while the other one can write
        bench.now += 9
        bench.do(other, other.expire)
    bench.do(one, one.beat, bench.now)
    assert held in one.lost
    bench.con.close()


class Checkpoint:
    """Somebody takes the log over into the file, and waits for a reader meanwhile: ``held``, until ``end``."""

    def __init__(self, path: Path) -> None:
        self.held, self.over = Flag(), Flag()
        self.reader, self.writer = (apsw.Connection(str(path)) for _ in range(2))
        self.writer.execute("SELECT * FROM meta").fetchall()  # it learns that there is a log
        self.reader.execute("BEGIN; SELECT * FROM meta").fetchall()
        self.writer.set_busy_handler(self._wait)

    def _wait(self, tries: int) -> bool:
        self.held.set()
        return not self.over.wait(0.005)

    async def begin(self) -> None:
        self.working = asyncio.ensure_future(asyncio.to_thread(self._work))
        await until(self.held.is_set)

    def _work(self) -> None:
        with suppress(apsw.BusyError):
            self.writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL)

    async def end(self) -> None:
        self.over.set()
        await self.working
        self.reader.close()
        self.writer.close()


async def test_a_checkpoint_of_another_process_is_no_loss_of_the_bus(tmp_path: Path) -> None:
    told, met = list[Event](), False
    async with bus(tmp_path, told) as b:
        consumer = await b.subscribe(group())
        while not met:  # until it begins between a soft commit and the look after it
            checkpoint = Checkpoint(b.path)
            await b.publish([message(1)])
            await settle(consumer, await take(consumer, 1))
            await checkpoint.begin()
            met, looked = b.writer.unsynced, b.writer.housekeeping
            await until(lambda looked=looked: b.writer.housekeeping > looked + 0.6)  # type: ignore[misc]
            await checkpoint.end()
        await until(lambda: not b.writer.unsynced, "once it is over, what was acknowledged goes to the disk")
    assert told == []
