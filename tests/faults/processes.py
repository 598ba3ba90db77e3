"""Processes that are killed, frozen, poisoned, ended and hung, on one SQLite file; two publish and two consume."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import msgspec
from tests.faults.report import Seen, nemesis
from tests.faults.rounds import BOOK, CHAIN, FATES, mixed, rounds

from tidings.testing.faults import Fate, Group, Nemesis, Run, Scenario, nemeses

# -- kill -9


@nemesis("kill -9 at random", "any of 4 processes on one file killed 3 times at random moments", quick=2, full=200)
async def kill_at_random(folder: Path, seed: int, count: int) -> Seen:
    def declare(url: str, seed: int) -> tuple[Scenario, Nemesis]:
        return mixed(url=url, expects=("killed",)), nemeses.kills(3)

    evidence = "killed", "members", "suspects", "repeated", "failed"
    return await rounds("kill -9 at random", (folder, seed, count), declare, *evidence)


# -- whoever stops in the middle of something


@nemesis("frozen past its lease", "a busy consumer gets SIGSTOP until others have what it had, then SIGCONT", full=20)
async def zombie(folder: Path, seed: int, count: int) -> Seen:
    slow = [msgspec.structs.replace(group, takes=0.05) for group in (*CHAIN, BOOK)]

    def declare(url: str, seed: int) -> tuple[Scenario, Nemesis]:
        return mixed(url=url, groups=tuple(slow), messages=120, expects=("frozen", "fenced")), nemeses.freeze

    evidence = "frozen", "fenced", "suspects", "repeated"
    return await rounds("frozen past its lease", (folder, seed, count), declare, *evidence)


@nemesis(
    "frozen inside a transaction", "a process stops with the write lock in hand: SIGCONT, or kill -9", quick=2, full=20
)
async def frozen_writer(folder: Path, seed: int, count: int) -> Seen:
    async def attack(run: Run) -> None:
        await run.until(lambda: run.alive["c0"].frozen, "c0 has stopped inside a transaction")
        run.note("frozen", "c0", harmless=False)
        await asyncio.sleep(0.3)  # what was committed before is told
        run.poll()
        before = run.count("accepted")
        await asyncio.sleep(1.0)
        run.poll()
        if run.count("accepted") == before:
            run.note("waited")
        if run.random.random() < 0.5:
            run.thaw("c0")
        else:
            run.kill("c0")
        await run.until(lambda: run.count("accepted") > before, "the others go on")
        run.note("went on")

    def declare(url: str, seed: int) -> tuple[Scenario, Nemesis]:
        armed = {"c0": (f"commit.before=stop@{20 + seed % 20}",)}
        return mixed(url=url, messages=400, points=armed, expects=("frozen", "waited", "went on")), attack

    evidence = "frozen", "waited", "went on", "thawed", "killed", "fenced", "repeated"
    return await rounds("frozen inside a transaction", (folder, seed, count), declare, *evidence)


@nemesis("hung", "handlers run past their timeout: cancelled, or, in threads, left to the lease", full=10)
async def hung(folder: Path, seed: int, count: int) -> Seen:
    groups = (
        Group(name="bill", timeout=0.5),
        Group(name="book", ordered=True, timeout=0.5),
        Group(name="scan", thread=True, timeout=0.5),
    )
    fates = (
        Fate(group="scan", every=37, blocks=3.0),
        Fate(group="bill", every=23, hangs=60),
        Fate(group="book", every=41, hangs=60),
    )

    def declare(url: str, seed: int) -> tuple[Scenario, None]:
        return Scenario(url=url, groups=groups, fates=fates, expects=("failed", "bus recovered", "overdue")), None

    evidence = "failed", "overdue", "bus recovered", "suspects", "repeated"
    return await rounds("hung", (folder, seed, count), declare, *evidence)


@nemesis("blocked event loop", "a handler blocks its event loop past the lease", full=10)
async def blocked(folder: Path, seed: int, count: int) -> Seen:
    fates = (Fate(group="bill", at=(60,), blocks=2.5), *FATES)

    def declare(url: str, seed: int) -> tuple[Scenario, None]:
        return mixed(url=url, fates=fates, expects=("bus fenced", "suspects")), None

    evidence = "bus fenced", "fenced", "suspects", "repeated"
    return await rounds("blocked event loop", (folder, seed, count), declare, *evidence)


# -- coming and going


@nemesis(
    "two claim at once", "consumers released at the same moment on a backlog: nothing twice, nothing fenced", full=20
)
async def barrier(folder: Path, seed: int, count: int) -> Seen:
    async def attack(run: Run) -> None:
        await run.until(lambda: run.idle, "everything is handled")
        received = [line for line in run.histories.lines if line.what == "received"]
        for group in run.scenario.groups:
            claims = [line.process for line in received if line.group == group.full]
            turns = sum(one != other for one, other in pairwise(claims))
            if turns >= len(set(claims)) > 1:  # somebody went on after another had begun
                run.note("claimed by turns")

    def declare(url: str, seed: int) -> tuple[Scenario, Nemesis]:
        expects = ("claimed by turns", "members")
        return mixed(url=url, consumers=3, messages=400, pace=0.0, delayed=0, backlog=True, expects=expects), attack

    return await rounds("two claim at once", (folder, seed, count), declare, "claimed by turns", "members")


@nemesis("SIGTERM under load", "busy consumers drain and are replaced: nothing dead, nothing twice", full=20)
async def sigterm(folder: Path, seed: int, count: int) -> Seen:
    fates = (Fate(group="bill", every=31, fails=1, retry=1.05), Fate(every=17, fails=2))

    def declare(url: str, seed: int) -> tuple[Scenario, Nemesis]:
        return mixed(url=url, fates=fates, expects=("terminated", "released")), nemeses.drain

    return await rounds("SIGTERM under load", (folder, seed, count), declare, "terminated", "released", "failed")


@nemesis("joining and leaving", "members of an ordered group come and go, with retries in flight", full=20)
async def members(folder: Path, seed: int, count: int) -> Seen:
    fates = (Fate(every=19, fails=1, retry=1.05), Fate(every=17, fails=2))
    groups = (msgspec.structs.replace(BOOK, takes=0.005), Group(name="bill"))

    def declare(url: str, seed: int) -> tuple[Scenario, Nemesis]:
        scenario = Scenario(
            url=url, groups=groups, messages=300, keys=8, fates=fates, pace=0.04, expects=("terminated", "failed")
        )
        return scenario, nemeses.come_and_go

    return await rounds("joining and leaving", (folder, seed, count), declare, "terminated", "members", "failed")


@nemesis("poison", "a message that ends its process at each attempt, among others", full=10)
async def poison(folder: Path, seed: int, count: int) -> Seen:
    def declare(url: str, seed: int) -> tuple[Scenario, None]:
        ends = {"bill": 50 + seed % 50, "book": 120 + seed % 50}
        fates = tuple(Fate(group=group, at=(n,), dies=True) for group, n in ends.items())
        return mixed(url=url, attempts=3, fates=fates, expects=("died", "letters")), None

    return await rounds("poison", (folder, seed, count), declare, "died", "letters", "suspects", "repeated")
