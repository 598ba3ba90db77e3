"""What a soak looks at, once a second, and what it makes of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import linear_regression
from typing import Literal

import psutil
from msgspec import Struct

from tidings.kernel.transport import GroupInfo, Inspectable
from tidings.testing.faults import Run
from tidings.urls import options_for


class Sample(Struct, frozen=True, kw_only=True):
    """One second. Bytes; ``cpu``: percent of one core; ``sent`` and ``handled``: a second, since the sample before."""

    at: float
    sent: float
    handled: float
    lag: int
    parked: int
    dead: int
    file: int
    wal: int
    rss: dict[str, int]
    files: dict[str, int]
    cpu: dict[str, float]


class Fault(Struct, frozen=True):
    """Something that was done, at a second. ``harmful``: it may have cost a process what it had in hand."""

    at: float
    what: str
    process: str
    harmful: bool


class Soak(Struct, kw_only=True):
    """What a soak found. ``growth``: of the steady processes over the second half."""

    seed: int
    seconds: float
    held: bool
    problems: list[str]
    counts: dict[str, int]
    rss_growth: dict[str, float]
    files_growth: dict[str, float]
    most_wal: int
    faults: list[Fault]
    samples: list[Sample]


class Watch:
    """Samples a run once a second, from ``start`` to ``stop``."""

    def __init__(self, run: Run, path: Path) -> None:
        self.run, self.path = run, path
        self.began, self.samples = time.monotonic(), list[Sample]()
        self.known: dict[int, psutil.Process] = {}
        self.before, self.looked = Counter[str](), self.began

    def start(self) -> None:
        self.looking = asyncio.ensure_future(self._look())

    async def stop(self) -> None:
        """Raises what went wrong."""
        self.looking.cancel()
        with suppress(asyncio.CancelledError):
            await self.looking

    def faults(self) -> list[Fault]:
        return [
            Fault(line.at - self.began, line.detail, line.process, line.what == "fault")
            for line in self.run.histories.lines
            if line.what in ("fault", "action")
        ]

    async def _look(self) -> None:
        transport = options_for(self.run.scenario.url).transport()
        await transport.open(lambda event: None)
        assert isinstance(transport, Inspectable)
        try:
            while True:
                await asyncio.sleep(1.0)
                self.samples.append(self._sample(await transport.groups("faults.*")))
        finally:
            await transport.close()

    def _sample(self, groups: Sequence[GroupInfo]) -> Sample:
        self.run.poll()
        now, seen = time.monotonic(), Counter(line.what for line in self.run.histories.lines)
        passed, before = now - self.looked, self.before
        self.before, self.looked = seen, now
        processes = dict(self._processes())
        return Sample(
            at=now - self.began,
            sent=(seen["accepted"] - before["accepted"]) / passed,
            handled=(seen["end"] - before["end"]) / passed,
            lag=sum(group.lag for group in groups),
            parked=sum(group.parked for group in groups),
            dead=sum(group.dead for group in groups),
            file=_size(self.path),
            wal=_size(self.path.with_name(f"{self.path.name}-wal")),
            rss={name: rss for name, (rss, _, _) in processes.items()},
            files={name: files for name, (_, files, _) in processes.items()},
            cpu={name: cpu for name, (_, _, cpu) in processes.items()},
        )

    def _processes(self) -> Iterator[tuple[str, tuple[int, int, float]]]:
        for name, process in sorted(self.run.alive.items()):
            with suppress(psutil.Error):
                seen = self.known.setdefault(process.pid, psutil.Process(process.pid))
                yield name, (seen.memory_info().rss, seen.num_fds(), seen.cpu_percent())


def growth(samples: Sequence[Sample], what: Literal["rss", "files"], name: str) -> float:
    """Of a process over the second half: the slope of its line, times the time."""
    half = [sample for sample in samples[len(samples) // 2 :] if name in sample.rss]
    if len(half) < 3:
        return 0.0
    values = [(sample.rss if what == "rss" else sample.files)[name] for sample in half]
    times = [sample.at for sample in half]
    return linear_regression(times, values).slope * (times[-1] - times[0])


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
