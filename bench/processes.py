"""1, 2, 4 processes on one file: consuming one backlog together, and publishing together.

``python -m bench.processes consume <url>`` and ``… publish <url> <messages>`` are one of them: it says when it is
ready, begins when told, and says how far it is, ``<monotonic time> <messages>`` a line.
"""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from tidings import App

from .harness import Figure, Scenario, Subject
from .measure import bus_folder
from .payload import order
from .sqlite import BATCH, consuming, placed, publish_all, url

PROCESSES = (1, 2, 4)
PATIENCE = 120.0
TOLD_EVERY = 0.005  # seconds


# -- one of them


async def told_to_begin() -> None:
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)


def tell(messages: int) -> None:
    print(time.monotonic(), messages, flush=True)


async def consume(bus: str) -> None:
    """Until its standard input ends."""
    app, began = consuming(bus)
    await told_to_begin()
    async with app:
        stats, told = app.stats()["bench.noop"], 0
        over = asyncio.ensure_future(asyncio.to_thread(sys.stdin.readline))
        while not over.done():
            if began and not told:
                print(time.monotonic() - (time.perf_counter() - began[0]), 0, flush=True)
            if stats.handled > told:
                told = stats.handled
                tell(told)
            await asyncio.sleep(TOLD_EVERY)


async def publish(bus: str, messages: str) -> None:
    app, drafts = App("bench", bus), [placed(order(n)) for n in range(BATCH)]
    async with app.connect():
        await told_to_begin()
        tell(0)
        await publish_all(app, drafts, int(messages))
        tell(int(messages))


# -- all of them


class Worker:
    """A process that was started: when it began, and how far it was when."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.said = list[tuple[float, int]]()

    @classmethod
    async def start(cls, *words: str) -> Worker:
        command = (sys.executable, "-m", "bench.processes", *words)
        worker = cls(await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE))
        if await worker.line() != "ready":
            raise RuntimeError("a process did not get ready")
        return worker

    async def line(self) -> str:
        assert self.process.stdout
        return (await self.process.stdout.readline()).decode().strip()

    def begin(self) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"\n")

    async def listen(self) -> None:
        while line := await self.line():
            at, messages = line.split()
            self.said.append((float(at), int(messages)))

    @property
    def done(self) -> int:
        return self.said[-1][1] if self.said else 0

    async def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        if await self.process.wait():
            raise RuntimeError("a process failed")


async def together(commands: Sequence[tuple[str, ...]], messages: int) -> float:
    """Messages a second, from the first message of any process to the last of all."""
    workers = [await Worker.start(*words) for words in commands]
    listening = [asyncio.create_task(worker.listen()) for worker in workers]
    for worker in workers:
        worker.begin()
    deadline = time.monotonic() + PATIENCE
    while sum(worker.done for worker in workers) < messages:
        if time.monotonic() > deadline:
            raise RuntimeError("the processes do not get done")
        await asyncio.sleep(0.01)
    for worker in workers:
        await worker.end()
    await asyncio.gather(*listening)
    if (total := sum(worker.done for worker in workers)) != messages:
        raise RuntimeError(f"{messages} messages, but {total} were handled")
    told = [at for worker in workers for at, _ in worker.said]
    return messages / (max(told) - min(told))


async def consuming_together(folder: Path, processes: int, messages: int) -> float:
    app = App("bench", url(folder))
    async with app.connect():
        await publish_all(app, [placed(order(n)) for n in range(BATCH)], messages)
    return await together([("consume", url(folder))] * processes, messages)


async def publishing_together(folder: Path, processes: int, messages: int) -> float:
    async with App("bench", url(folder)).connect():
        return await together([("publish", url(folder), str(messages // processes))] * processes, messages)


def scenario(quick: bool) -> Scenario:
    messages = 20_000 if quick else 400_000

    def subject(work: str, processes: int) -> Subject:
        one = publishing_together if work == "publish" else consuming_together

        def measured() -> tuple[float]:
            with bus_folder() as folder:
                return (asyncio.run(one(folder, processes, messages)),)

        name = f"{work}, {processes} {'process' if processes == 1 else 'processes'}"
        beside = (f"{work}, 1 process",) if processes > 1 else ()
        return Subject(name, (Figure("rate", "msg/s", ratio_to=beside),), measured, series=work, at=processes)

    subjects = (subject(work, processes) for processes in PROCESSES for work in ("publish", "consume"))
    return Scenario(tuple(subjects), rounds=3, grows="processes")


PARTS: dict[str, Any] = {"consume": consume, "publish": publish}


def part(name: str, *given: str) -> Coroutine[Any, Any, None]:
    found: Coroutine[Any, Any, None] = PARTS[name](*given)
    return found


if __name__ == "__main__":
    asyncio.run(part(*sys.argv[1:]))
