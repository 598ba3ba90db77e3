"""What nemeses of the environment share: a folder with a bus and a wall clock, workers on it, and a count of it all."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tests.faults.report import Seen
from tests.faults.stepped import Wall, Work, work

from tidings import App
from tidings.kernel.transport import Event
from tidings.testing.faults.history import Histories, Line
from tidings.testing.faults.process import Process, Processes
from tidings.transports.sqlite import SQLite
from tidings.transports.sqlite.transport import SQLiteTransport

LEASE = 1.0
ALIGNED = 3600.0  # every wall clock starts a little before a full hour
BEFORE = 12.0  # seconds before it


class Stage:
    """One round: its bus, its wall clock, its processes, and what the worker has told."""

    def __init__(self, folder: Path, seed: int, processes: Processes, options: str = "") -> None:
        self.folder, self.luck, self.processes = folder, random.Random(seed), processes
        self.path = folder / "bus.db"
        self.url = f"sqlite:///{self.path}?lease={LEASE:g}s{options}"
        self.wall = Wall(folder / "wall")
        self.wall.step(ALIGNED - BEFORE - self.wall.now() % ALIGNED)
        self.histories = Histories(folder)
        self.errors = folder / "stderr.txt"
        self.accepted: dict[int, Work] = {}

    async def worker(self, name: str = "worker") -> Process:
        """A process with the app of ``stepped``, ready."""
        process = await self.start(name)
        await process.line("ready")
        return process

    async def start(self, name: str = "worker") -> Process:
        arguments = (self.url, str(self.folder / "wall"), str(self.folder / f"{name}.jsonl"))
        return await self.processes.start("tests.faults.stepped", *arguments, errors=self.errors)

    @asynccontextmanager
    async def publisher(self) -> AsyncIterator[App]:
        """An app of this process, under the same wall clock as the others."""
        with self._walled():
            async with App("shop", self.url).connect() as app:
                yield app

    @asynccontextmanager
    async def bus(self, told: list[Event]) -> AsyncIterator[SQLiteTransport]:
        """A bare bus of this process, under the same wall clock; what it tells."""
        with self._walled():
            transport = SQLite.from_url(self.url).transport()
            await transport.open(told.append)
            try:
                yield transport
            finally:
                await transport.close()

    @contextmanager
    def _walled(self) -> Iterator[None]:
        loop: Any = asyncio.get_running_loop()
        loop.clock = self.wall.clock
        try:
            yield
        finally:
            del loop.clock

    async def publish(self, app: App, count: int, delay: float = 0.0, **fields: float) -> set[int]:
        """So many messages; their numbers."""
        numbers = range(len(self.accepted), len(self.accepted) + count)
        meta: dict[str, Any] = {"delay": delay} if delay else {}
        await app.publish_many([work(Work(n, **fields), id=f"m{n}", **meta) for n in numbers])
        self.accepted |= {n: Work(n, **fields) for n in numbers}
        return set(numbers)

    def of(self, what: str, detail: str = "") -> list[Line]:
        self.histories.poll()
        return [line for line in self.histories.lines if line.what == what and detail in ("", line.detail)]

    def ended(self) -> Counter[int]:
        return Counter(line.n for line in self.of("end"))

    async def handled(self, numbers: set[int], within: float = 20.0) -> None:
        await until(lambda: numbers <= self.ended().keys(), within, f"{len(numbers)} messages are handled")

    def seen(self, faults: Sequence[str] = (), evidence: str = "", recovered: float | None = None) -> Seen:
        """Of this round."""
        ended = self.ended()
        return Seen(
            rounds=1,
            accepted=len(self.accepted),
            lost=len(self.accepted.keys() - ended.keys()),
            duplicated=sum(count - 1 for count in ended.values()),
            faults=list(faults),
            evidence=evidence,
            recovered=recovered,
        )


@asynccontextmanager
async def stage(folder: Path, seed: int, round: int, options: str = "") -> AsyncIterator[Stage]:
    place = folder / f"round{round}"
    place.mkdir(parents=True)
    async with Processes() as processes:
        yield Stage(place, seed * 1000 + round, processes, options)


async def until(condition: Callable[[], object], within: float, what: str) -> None:
    """Raises ``TimeoutError``."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within:g} s: {what}")
        await asyncio.sleep(0.02)


def together(rounds: Iterable[Seen], note: str = "") -> Seen:
    """All rounds of a nemesis as one."""
    rounds = list(rounds)
    recovered = [one.recovered for one in rounds if one.recovered is not None]
    whole = all(one.evidence for one in rounds)
    return Seen(
        rounds=len(rounds),
        accepted=sum(one.accepted for one in rounds),
        lost=sum(one.lost for one in rounds),
        duplicated=sum(one.duplicated for one in rounds),
        bound=sum(one.bound for one in rounds),
        disorder=sum(one.disorder for one in rounds),
        recovered=max(recovered, default=None),
        evidence=rounds[-1].evidence if rounds and whole else "",
        faults=[fault for one in rounds for fault in one.faults],
        note=note,
    )
