"""A real job: four years of twelve stations through a SQLite bus, three groups at once, processes that die on the way.

What each handler noted before it returned is held against what the files say. Nothing may be missing; nothing may be
there twice, except what a killed process had handled and not settled.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from math import fsum
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.jobs import air

from tidings import App
from tidings.kernel.transport import GroupInfo, Inspectable

ROOT = Path(__file__).parents[2]
UNFLUSHED = 512  # handled and not yet settled, per process and group (docs/architecture.md, settling)
RUNNING = {
    "air.count": air.CONCURRENCY,
    "air.daily": air.CONCURRENCY + air.CONCURRENCY * air.DAILY_BATCH,
    "air.alert": air.ALERT_THREADS,
}
PATIENCE = 120.0  # seconds until a condition must hold
HOLDS = """SELECT EXISTS (SELECT 1 FROM member JOIN claim ON claim.member = member.id WHERE pid = :pid)
    OR EXISTS (SELECT 1 FROM member JOIN parked ON parked.member = member.id WHERE pid = :pid)"""


def data() -> Path:
    """The folder with the station files, beside the repository or where ``TIDINGS_SHARED`` says."""
    given = os.environ.get("TIDINGS_SHARED")
    shared = [Path(given)] if given else [parent / "shared" for parent in Path(__file__).resolve().parents]
    for folder in shared:
        if (found := folder / "data" / "iot_beijing_air").is_dir():
            return found
    pytest.skip("no shared/data/iot_beijing_air beside the repository, and TIDINGS_SHARED names none")


def stations(*names: str) -> tuple[Path, ...]:
    """All station files, or those of ``names``."""
    files = sorted(data().glob("PRSA_Data_*.csv.gz"))
    chosen = tuple(path for path in files if not names or path.name.split("_")[2] in names)
    assert len(chosen) == (len(names) or 12)
    return chosen


# -- figures


Means = dict[str, float | None]


class Figures(NamedTuple):
    """What the job is for."""

    counted: Counter[str]  # rows of each station
    daily: Means  # mean PM2.5 of each station and day
    alerts: frozenset[str]  # hours of one station above the limit


def means(values: Iterable[tuple[str, float | None]]) -> Means:
    """Exactly rounded sums, so that the order of the rows does not matter."""
    days: defaultdict[str, list[float]] = defaultdict(list)
    for day, value in values:
        days[day] += () if value is None else (value,)
    return {day: fsum(known) / len(known) if known else None for day, known in days.items()}


@cache
def true_figures(files: Sequence[Path]) -> tuple[Figures, dict[str, frozenset[str]]]:
    """Straight from the files; and the ids that each group has to handle."""
    rows = [reading for path in files for reading in air.readings(path)]
    of_station = [row for row in rows if row.station == air.ALERT_STATION]
    figures = Figures(
        Counter(row.station for row in rows),
        means((f"{row.station} {row.date}", row.pm25) for row in rows),
        frozenset(row.id for row in of_station if row.pm25 is not None and row.pm25 > air.ALERT),
    )
    everything = frozenset(row.id for row in rows)
    return figures, {
        "air.count": everything,
        "air.daily": everything,
        "air.alert": frozenset(row.id for row in of_station),
    }


class Ledgers:
    """What the processes of one run have noted, by group: each id's value, how often, and by whom.

    A ``kill -9`` can cut the write that is going on, which is the last of its ledger: that handler had not returned.
    """

    def __init__(self, folder: Path, killed: set[int]) -> None:
        self.values: dict[str, dict[str, str]] = {group: {} for group in air.GROUPS}
        self.times: dict[str, Counter[str]] = {group: Counter() for group in air.GROUPS}
        self.by: dict[int, Counter[str]] = {}
        for path in folder.iterdir():
            whole, _, cut = path.read_text().rpartition("\n")
            assert not cut or int(path.name) in killed, f"{path.name} was not killed, and its ledger ends with {cut!r}"
            lines = [line.split("\t") for line in whole.splitlines()]
            for group, id, value in lines:
                assert self.values[group].setdefault(id, value) == value
                self.times[group][id] += 1
            self.by[int(path.name)] = Counter(group for group, _, _ in lines)

    @property
    def handled(self) -> int:
        return sum(counter.total() for counter in self.times.values())

    def duplicates(self, group: str) -> int:
        return self.times[group].total() - len(self.times[group])

    def figures(self) -> Figures:
        daily = (value.rsplit(" ", 1) for value in self.values["air.daily"].values())
        return Figures(
            Counter(self.values["air.count"].values()),
            means((day, None if value == "None" else float(value)) for day, value in daily),
            frozenset(id for id, value in self.values["air.alert"].items() if value == "True"),
        )


# -- a run


class Run:
    """One bus, its processes, and an eye on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ledgers = folder, folder / "ledgers"
        self.ledgers.mkdir()
        self.url = f"sqlite:///{folder / 'air.db'}"
        self.consumers: list[asyncio.subprocess.Process] = []
        self.events: Counter[str] = Counter()

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        kept = {name: value for name, value in os.environ.items() if name != "TIDINGS_URL"}
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.jobs.air", *arguments),
            cwd=ROOT,
            env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))},
            stdin=pipe,
            stdout=pipe,
        )

    async def consumer(self) -> asyncio.subprocess.Process:
        process = await self.start("consume", self.url, str(self.ledgers))
        self.consumers.append(process)
        return process

    @asynccontextmanager
    async def publisher(self, files: Sequence[Path]) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await self.start("publish", self.url, *map(str, files))
        try:
            yield process
            told, _ = await process.communicate()
            assert process.returncode == 0
            self.events.update(json.loads(told))
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def stop(self) -> None:
        """Let the living end by themselves, and tell what happened to them."""
        for process in self.consumers:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        for process in self.consumers:
            told, _ = await process.communicate()
            if process.returncode == 0:
                self.events.update(json.loads(told))

    def noted(self, process: asyncio.subprocess.Process) -> int:
        """How much a process has noted, in bytes."""
        path = self.ledgers / str(process.pid)
        return path.stat().st_size if path.exists() else 0


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that must become true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        await asyncio.sleep(0.002)


async def groups(bus: Inspectable) -> list[GroupInfo]:
    return [group for group in await bus.groups() if group.name in air.GROUPS]


async def until_groups(bus: Inspectable, condition: Callable[[GroupInfo], bool], what: str) -> None:
    """Wait until it holds for all three groups at once."""
    deadline = time.monotonic() + PATIENCE
    while not (len(now := await groups(bus)) == len(air.GROUPS) and all(map(condition, now))):
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}: {now}"
        await asyncio.sleep(0.02)


async def kill_at_work(run: Run, bus: Any, victim: asyncio.subprocess.Process) -> None:
    """``kill -9`` once it has handled some, and has more in hand: it stands still while that is looked at.

    With nothing in hand nothing would be recovered; and what the last victim recovered, it told nobody.
    """

    def caught() -> bool:
        victim.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, victim.pid, os.WSTOPPED)
        if bus.client.execute(HOLDS, {"pid": victim.pid}).get:
            return True
        victim.send_signal(signal.SIGCONT)
        return False

    await until(lambda: run.noted(victim) > 20_000 and caught(), "the victim works")
    victim.kill()
    assert await victim.wait() == -signal.SIGKILL


async def go(publisher: asyncio.subprocess.Process) -> None:
    """Let it publish its next part."""
    assert publisher.stdin
    publisher.stdin.write(b"go\n")
    await publisher.stdin.drain()


async def work(folder: Path, files: Sequence[Path], processes: int, kills: int) -> tuple[Ledgers, Run]:
    """The whole job. With ``kills``, a process dies in the middle of each of so many parts, and is started again."""
    run = Run(folder)  # its lease is long: a death is known by the pid, and who is merely slow is not dead
    watch = App("watch", run.url)
    try:
        async with watch.connect(), run.publisher(files) as publisher:
            bus = watch.bus()
            assert isinstance(bus, Inspectable)
            victim = await run.consumer()
            for _ in range(processes - 1):
                await run.consumer()
            for part in range(air.PARTS):
                if part <= kills:
                    await until_groups(bus, lambda group: group.members == processes, "everybody has joined")
                await go(publisher)
                if part < kills:
                    await kill_at_work(run, bus, victim)
                    victim = await run.consumer()
            assert await publisher.wait() == 0
            await until_groups(bus, lambda g: g.lag == g.in_flight == g.parked == 0, "everything is settled")
            await run.stop()
            assert [group.dead for group in await groups(bus)] == [0, 0, 0]
        run.events.update(watch.events)  # whoever is first notices a death: the watcher and the publisher, too
    finally:
        for process in run.consumers:
            if process.returncode is None:
                process.kill()
                await process.wait()
    killed = {process.pid for process in run.consumers if process.returncode == -signal.SIGKILL}
    return Ledgers(run.ledgers, killed), run


def check(ledgers: Ledgers, run: Run, files: Sequence[Path], processes: int, kills: int) -> None:
    figures, wanted = true_figures(tuple(files))
    for group in air.GROUPS:
        missing = wanted[group].difference(ledgers.values[group])
        assert not missing, f"{group}: {len(missing)} missing, as {sorted(missing)[:5]}"
        assert wanted[group].issuperset(ledgers.values[group])
        bound = kills * (RUNNING[group] + UNFLUSHED)
        assert ledgers.duplicates(group) <= bound, f"{group}: more than {bound} twice; {run.events}"
    assert ledgers.figures() == figures
    assert len({process.pid for process in run.consumers}) == len(ledgers.by) == processes + kills
    ends = [process.returncode for process in run.consumers]
    assert (ends.count(-signal.SIGKILL), ends.count(0)) == (kills, processes)
    for pid, by in ledgers.by.items():
        assert by["air.count"] > 0, f"{pid} counted nothing: {ledgers.by}"
        if not kills:
            assert all(by[group] > 0 for group in air.GROUPS), ledgers.by
    assert (run.events["recovered"] > 0) == (kills > 0), run.events
    assert run.events["fenced"] == 0, run.events


async def job(folder: Path, files: Sequence[Path], processes: int, kills: int) -> None:
    began = time.monotonic()
    ledgers, run = await work(folder, files, processes, kills)
    took = time.monotonic() - began
    check(ledgers, run, files, processes, kills)
    twice = {group: ledgers.duplicates(group) for group in air.GROUPS}
    print(f"\n{ledgers.handled:,} handled in {took:.1f} s, {ledgers.handled / took:,.0f}/s; twice: {twice}")


@pytest.mark.parametrize(("processes", "kills"), [(1, 0), (2, 0), (2, 2)], ids=["one process", "two", "killed twice"])
async def test_two_stations(tmp_path: Path, processes: int, kills: int) -> None:
    await job(tmp_path, stations(air.ALERT_STATION, "Tiantan"), processes, kills)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_all_stations_and_two_kills(tmp_path: Path) -> None:
    files = stations()
    assert true_figures(files)[0].counted.total() == 420_768
    await job(tmp_path, files, processes=2, kills=2)
