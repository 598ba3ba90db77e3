"""Soak: a mixed load over several processes on one file, for a given time, with random faults all along.

``python -m tests.faults.soak --for 10m --seed 7 --out FOLDER`` writes ``soak.png``, ``soak.json`` and the journals, and
says whether all held: nothing lost or out of order (``tidings.testing.faults.checker``), memory and open files of the
processes that were never killed not growing, the write-ahead log bounded.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import apsw
import msgspec
from tests.faults.soak_plot import plot
from tests.faults.soak_watch import Fault, Sample, Soak, Watch, growth

from tidings.kernel.message import seconds
from tidings.testing.faults import Fate, Group, Run, Scenario, perform

LEASE = 2.0
MESSAGES, FASTEST = 24_000, 50.0  # at most so many in all, for the checker reads them all; and a second
FAULTS, SOONEST = 150, 1.5  # about so many in all; seconds between them, at least
STEADY = ("p1", "c2")  # never killed, so that what grows is seen
RSS_GROWTH, FILES_GROWTH = 16 * 2**20, 3.0  # over the second half; handlers note every message they have met
MOST_WAL = 128 * 2**20

GROUPS = (
    Group(name="bill", to="orders.billed"),
    Group(name="sink", topic="orders.billed", takes=0.0),
    Group(name="fast", takes=0.0),
    Group(name="slow", takes=0.04),
    Group(name="scan", thread=True),
    Group(name="book", ordered=True),
    Group(name="index", batch=20),
    Group(name="flaky"),
)
FATES = (
    Fate(group="flaky", every=97, rejects=True),
    Fate(group="flaky", every=3, fails=1),
    Fate(group="book", every=61, fails=1, retry=1.05),
    Fate(every=41, fails=2),
)


# -- load and faults


def scenario_of(folder: Path, duration: float) -> Scenario:
    rate = min(FASTEST, MESSAGES / duration)
    return Scenario(
        url=f"sqlite:///{folder}/bus.db?lease={LEASE:g}s",
        groups=GROUPS,
        fates=FATES,
        publishers=2,
        consumers=3,
        messages=int(rate * duration * 1.5),  # they are stopped when the time is over
        keys=10,
        pace=2 * 5 / rate,
        burst=8,
        priorities=3,
        delayed=13,
        delay=1.0,
    )


class Faults:
    """Whatever may happen, at random moments, until the time is over; then the publishers end."""

    def __init__(self, run: Run, path: Path, until: float) -> None:
        self.run, self.path, self.until = run, path, until
        self.kinds: list[Callable[[], Awaitable[None]]] = [self.kill, self.kill, self.freeze, self.drain]
        self.kinds += [self.snapshot, self.busy]

    async def strike(self, gap: float) -> None:
        run = self.run
        deck: list[Callable[[], Awaitable[None]]] = [self.kill]  # first: without harm a soak proves nothing
        while (left := self.until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, run.random.uniform(0.5, 1.5) * gap))
            if time.monotonic() < self.until - LEASE:
                await deck.pop()()
                deck = deck or run.random.sample(self.kinds, len(self.kinds))
        for name in [name for name in run.alive if name.startswith("p")]:
            if name in run.alive:  # or it ended while another one did
                await run.terminate(name)

    def _victim(self, start: str = "") -> str:
        return self.run.random.choice(sorted(n for n in self.run.alive if n not in STEADY and n.startswith(start)))

    async def kill(self) -> None:
        self.run.kill(self._victim())

    async def freeze(self) -> None:
        """Past its lease, or nearly so."""
        process = self.run.alive[name := self._victim("c")]
        self.run.freeze(name)
        await asyncio.sleep(self.run.random.uniform(0.5, 2) * LEASE)
        if self.run.alive.get(name) is process:
            self.run.thaw(name)

    async def drain(self) -> None:
        name = self._victim("c")
        await self.run.terminate(name)
        await self.run.start(name)

    async def snapshot(self) -> None:
        """A reader that keeps its view, so that the log cannot be taken over into the file."""
        await self._hold("BEGIN; SELECT count(*) FROM meta", "snapshot held", self.run.random.uniform(1, 4))

    async def busy(self) -> None:
        """Somebody else has the write lock."""
        await self._hold("BEGIN IMMEDIATE", "file locked", self.run.random.uniform(0.2, 1.5))

    async def _hold(self, statement: str, what: str, during: float) -> None:
        con = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            con.set_busy_timeout(5000)
            await asyncio.to_thread(con.execute, statement)
            self.run.note(what)
            await asyncio.sleep(during)
        except apsw.BusyError:
            self.run.note(f"{what}: no")
        finally:
            con.close()


# -- the verdict


def problems_of(samples: Sequence[Sample], faults: Sequence[Fault]) -> list[str]:
    """What did not hold, beside what the checker says."""
    found = []
    for name in STEADY:
        if (grown := growth(samples, "rss", name)) > RSS_GROWTH:
            found.append(f"memory: {name} grew by {grown / 2**20:.0f} MiB in the second half")
        if (more := growth(samples, "files", name)) > FILES_GROWTH:
            found.append(f"open files: {name} had {more:.0f} more at the end of the second half")
        if sum(name in sample.rss for sample in samples) * 2 < len(samples):
            found.append(f"nothing: {name} was not there for most of the time")
    if (most := max((sample.wal for sample in samples), default=0)) > MOST_WAL:
        found.append(f"log: it grew to {most / 2**20:.0f} MiB")
    if not any(fault.harmful for fault in faults):
        found.append("nothing: no fault took place")
    return found


async def soak(folder: Path, seed: int, duration: float) -> Soak:
    """Run it in an empty folder, which gets ``soak.json``, and judge it."""
    scenario, watches = scenario_of(folder, duration), list[Watch]()

    async def nemesis(run: Run) -> None:
        watches.append(watch := Watch(run, folder / "bus.db"))
        watch.start()
        await run.until(lambda: run.count("end") > 0, "work is under way")
        await Faults(run, folder / "bus.db", watch.began + duration).strike(max(SOONEST, duration / FAULTS))

    try:
        report = await perform(scenario, folder / "run", nemesis, seed=seed, within=2 * duration + 120)
    finally:
        for watch in watches:
            await watch.stop()
    if not watches:
        raise RuntimeError(f"the soak did not begin:\n{report}")
    watch = watches[0]
    problems = [f"{violation.rule}: {violation.what}" for violation in report.verdict.violations]
    problems += problems_of(watch.samples, watch.faults())
    found = Soak(
        seed=seed,
        seconds=report.seconds,
        held=not problems,
        problems=problems,
        counts={"accepted": report.verdict.accepted, "handled": report.verdict.ended, **report.verdict.evidence},
        rss_growth={name: growth(watch.samples, "rss", name) for name in STEADY},
        files_growth={name: growth(watch.samples, "files", name) for name in STEADY},
        most_wal=max((sample.wal for sample in watch.samples), default=0),
        faults=watch.faults(),
        samples=watch.samples,
    )
    (folder / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    return found


def told(found: Soak) -> str:
    """The verdict, in lines."""
    grown = ", ".join(f"{name} {size / 2**20:+.1f} MiB" for name, size in found.rss_growth.items())
    files = ", ".join(f"{name} {more:+.1f}" for name, more in found.files_growth.items())
    seen = ", ".join(f"{count:,} {what}" for what, count in found.counts.items())
    lines = [
        f"seed {found.seed}, {found.seconds:.0f} s: {seen}",
        f"second half: memory {grown}; open files {files}; the log had at most {found.most_wal / 2**20:.1f} MiB",
        *found.problems[:20],
        "held" if found.held else "BROKEN",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--for", dest="duration", default="10m", help="how long: 30s, 10m, 2h")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "soak", metavar="FOLDER")
    asked = parser.parse_args()
    shutil.rmtree(asked.out, ignore_errors=True)
    asked.out.mkdir(parents=True)
    print(f"seed {asked.seed}", flush=True)
    found = asyncio.run(soak(asked.out.absolute(), asked.seed, seconds(asked.duration)))
    plot(found, asked.out / "soak.png")
    print(told(found), asked.out / "soak.png", sep="\n")
    return int(not found.held)


if __name__ == "__main__":
    sys.exit(main())
