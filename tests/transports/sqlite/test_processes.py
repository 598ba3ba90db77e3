"""Several processes on one file: killed, frozen, and taking turns."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.transports.consuming import settle, take, until
from tests.transports.sqlite.helpers import bodies, bus, group, message

from tidings.kernel.errors import BusForked
from tidings.kernel.transport import Event

WORKER = Path(__file__).with_name("worker.py")
SOURCE = Path(__file__).parents[3] / "src"


class Process:
    def __init__(self, folder: Path, what: str, lease: str = "30s") -> None:
        self.told = folder / f"told-{what}-{time.monotonic_ns()}"
        command = [sys.executable, str(WORKER), str(folder / "bus.db"), lease, what]
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        self.out = self.told.open("w")
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self.out, stderr=subprocess.STDOUT, env=environment
        )

    def lines(self, kind: str) -> list[list[str]]:
        whole, _, _unfinished = self.told.read_text().rpartition("\n")
        return [words for line in whole.splitlines() if (words := line.split()) and words[0] == kind]

    def numbers(self, kind: str) -> list[int]:
        return [int(words[1]) for words in self.lines(kind)]

    async def wait(self, kind: str, count: int = 1) -> None:
        await until(lambda: len(self.lines(kind)) >= count, f"{count} x {kind} in: {self.told.read_text()}")

    def end(self) -> None:
        self.child.kill()
        self.child.communicate()
        self.out.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[Process] = []

    def start(what: str, **more: str) -> Process:
        started.append(Process(tmp_path, what, **more))
        return started[-1]

    yield start
    for process in started:
        process.end()


async def test_what_a_killed_process_held_comes_back_at_once(tmp_path: Path, start: Any) -> None:
    told: list[Event] = []
    async with bus(tmp_path, told) as b:
        worker = start("hold")
        await worker.wait("ready")
        await b.publish([message(n) for n in range(5)])
        await worker.wait("start", 5)
        worker.child.kill()
        killed = time.monotonic()
        consumer = await b.subscribe(group())
        got = []
        for _ in range(5):  # suspects come one at a time
            (delivery,) = await take(consumer, 1)
            assert delivery.suspect
            assert delivery.crashes == 0
            assert await consumer.mark(delivery)
            await settle(consumer, [delivery])
            got.append(delivery)
        assert sorted(bodies(got)) == [0, 1, 2, 3, 4]
        assert time.monotonic() - killed < 5.0
        await until(lambda: any(e.kind == "recovered" and e.count == 5 for e in told))


async def test_an_idle_consumer_notices_a_death_by_itself(tmp_path: Path, start: Any) -> None:
    async with bus(tmp_path) as b:
        worker = start("hold")
        await worker.wait("ready")
        await b.publish([message(1)])
        await worker.wait("start")
        consumer = await b.subscribe(group())
        waiting = asyncio.ensure_future(take(consumer, 1))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        worker.child.kill()
        (delivery,) = await asyncio.wait_for(waiting, 5.0)
        assert delivery.suspect


async def test_a_message_that_kills_its_process_is_counted_and_its_neighbours_are_not(
    tmp_path: Path, start: Any
) -> None:
    async with bus(tmp_path) as b:
        worker = start("die")
        await worker.wait("ready")
        await b.publish([message(n) for n in (11, 12, 13, 14, 15)])
        seen = []
        for _ in range(3):
            await until(lambda worker=worker: worker.child.poll() == 3)
            seen += [words for words in worker.lines("start") if words[1] == "13"]
            worker = start("die")
        await until(lambda: worker.child.poll() == 3)
        consumer = await b.subscribe(group())
        (poison,) = await take(consumer, 1)
        assert bodies([poison]) == [13]
        assert [words[2] for words in seen] == ["0", "0", "1"]  # the first run was not marked
        assert poison.crashes == 3
        await settle(consumer, [poison])
        for _ in range(2):
            (innocent,) = await take(consumer, 1)
            assert (innocent.suspect, innocent.crashes) == (True, 0)
            await settle(consumer, [innocent])
        (info,) = await b.groups()
        assert (info.lag, info.parked, info.in_flight) == (0, 0, 0)


async def test_a_frozen_process_is_fenced_and_goes_on(tmp_path: Path, start: Any) -> None:
    told: list[Event] = []
    async with bus(tmp_path, told, lease="500ms") as b:
        worker = start("freeze", lease="500ms")
        await worker.wait("ready")
        await b.publish([message(1)])
        await worker.wait("frozen")
        os.kill(worker.child.pid, signal.SIGSTOP)
        consumer = await b.subscribe(group())
        (delivery,) = await take(consumer, 1)
        assert delivery.suspect
        await consumer.mark(delivery)
        await settle(consumer, [delivery])
        await consumer.close()
        os.kill(worker.child.pid, signal.SIGCONT)
        worker.child.stdin.write(b"\n")
        worker.child.stdin.flush()
        await worker.wait("fenced")
        assert worker.lines("fenced") == [["fenced", "1", "False"]]
        assert ["event", "fenced", "1"] in worker.lines("event")
        await b.publish([message(2)])
        await worker.wait("frozen", 2)
        worker.child.stdin.write(b"\n")
        worker.child.stdin.flush()
        await worker.wait("done")
        assert worker.numbers("done") == [2]


async def test_two_processes_take_turns(tmp_path: Path, start: Any) -> None:
    async with bus(tmp_path) as b:
        workers = [start("work"), start("work")]
        for worker in workers:
            await worker.wait("ready")
        for n in range(200):
            await b.publish([message(n)])
        await until(lambda: sum(len(w.numbers("done")) for w in workers) == 200)
        assert sorted(n for w in workers for n in w.numbers("done")) == list(range(200))
        assert all(w.numbers("done") for w in workers)


async def test_ordered_processes_come_and_go(tmp_path: Path, start: Any) -> None:
    """A joins, B joins, A is killed: every key stays in order, and only what the dead one held comes twice."""
    async with bus(tmp_path) as b:
        one = start("ordered")
        await one.wait("ready")
        count = 0

        async def publish(n: int) -> None:
            nonlocal count
            for _ in range(n):
                await b.publish([message(count, key=f"k{count % 10}")])
                count += 1

        await publish(60)
        await one.wait("done", 20)
        two = start("ordered")
        await two.wait("ready")
        await publish(200)
        await one.wait("done", 60)
        await two.wait("done", 20)
        one.child.kill()
        await publish(60)
        # the killed one may have settled its last message and not lived to say so
        handled = lambda: set(one.numbers("done") + two.numbers("done") + one.numbers("start")[-1:])  # noqa: E731
        await until(lambda: handled() == set(range(count)), "not all were handled")
        while (left := (await b.groups())[0]) and left.lag + left.in_flight + left.parked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for worker in (one, two):
            for key in range(10):
                mine = [n for n in worker.numbers("done") if n % 10 == key]
                assert mine == sorted(mine)
        twice = set(one.numbers("done")) & set(two.numbers("done"))
        assert len(twice) <= 5
        assert two.numbers("done")


async def test_a_fork_may_not_use_its_parents_bus(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                b.writer.submit(lambda: None)
            except BusForked:
                code = 7
            os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        await b.publish([message(1)])
        await settle(consumer, await take(consumer, 1))


async def test_idle_costs_next_to_nothing(tmp_path: Path) -> None:
    """An order of magnitude, not the budget: that is for the benchmark."""
    async with bus(tmp_path) as b:
        groups = [group(f"orders.n{n}", f"g.{n}", ordered=n % 2 == 0) for n in range(200)]
        consumers = [await b.subscribe(each) for each in groups]
        tasks = [asyncio.ensure_future(c.receive(1)) for c in consumers]
        await asyncio.sleep(0.5)
        process = psutil.Process()
        before = sum(process.cpu_times()[:2])
        await asyncio.sleep(1.0)
        assert sum(process.cpu_times()[:2]) - before < 0.15
        for consumer in consumers:
            consumer.stop()
        assert await asyncio.gather(*tasks) == [()] * 200


async def test_another_process_is_heard_soon(tmp_path: Path, start: Any) -> None:
    async with bus(tmp_path) as b:
        worker = start("work")
        await worker.wait("ready")
        await asyncio.sleep(0.5)
        published = time.monotonic()
        await b.publish([message(1)])
        await worker.wait("done")
        assert time.monotonic() - published < 1.0
