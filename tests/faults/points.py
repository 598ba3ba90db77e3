"""Processes that die, or meet an error, at every fail point of the embedded bus and of its interface.

The points are found in the sources. Each process has a plan for each of its lives: it dies at the point of that life,
and is started again for the next.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from random import Random

from tests.faults.report import Seen, nemesis
from tests.faults.rounds import BOOK, FATES, Declare, Rounds, mixed, play

from tidings.testing.faults import Group, Nemesis, Report, Run, Scenario, nemeses, read

SOURCES = Path(__file__).parents[2] / "src" / "tidings"
POINT = re.compile(r"""passed\("([a-z.]+)"\)""")
PLANNED = re.compile(r"([a-z.]+)=")

STARTING = ("schema", "group.register")
ENDING = ("close.given", "stop")
DROPPING = ("segment.drop",)  # needs a bus that is full of what everybody has read
FILLING = ("checkpoint",)  # needs 16 MiB in the write-ahead log
MOURNING = ("member.expire", "spi.mark.after")  # need a death
PUBLISHING = ("begin", "commit.before", "commit.after", "spi.publish.before", "spi.publish.after", "segment.roll")
TRIES = 4  # runs, until every point was hit


def points() -> list[str]:
    """All that there are, by name."""
    folders = "transports/sqlite", "testing/faults"
    texts = [path.read_text() for folder in folders for path in sorted((SOURCES / folder).glob("*.py"))]
    return sorted({name for text in texts for name in POINT.findall(text)})


def lives(wanted: Sequence[str], luck: Random) -> dict[str, tuple[str, ...]]:
    """Which process dies where, in each of its lives."""
    plans: dict[str, list[str]] = {name: [] for name in ("p0", "p1", "c0", "c1")}
    for point in luck.sample(wanted, len(wanted)):
        where = f"{point}=kill@{luck.randint(1, 3)}"
        if point in STARTING:
            for plan in (plans["c0"], plans["c1"]) if point == "group.register" else plans.values():
                plan.insert(0, f"{point}=kill")
        elif point in PUBLISHING:
            plans[luck.choice(("p0", "p1"))].append(where)
        if point not in (*STARTING, *ENDING, *DROPPING, *FILLING, *MOURNING) and not point.startswith("spi.publish"):
            plans[luck.choice(("c0", "c1"))].append(where)
    return {name: tuple(plan) for name, plan in plans.items()}


def working(wanted: Sequence[str], luck: Random) -> Declare:
    """Points that are passed while there is work."""

    def declare(url: str, seed: int) -> tuple[Scenario, None]:
        return mixed(url=f"{url}&segment_rows=50", messages=400, pace=0.05, points=lives(wanted, luck)), None

    return declare


def ending(wanted: Sequence[str], luck: Random) -> Declare:
    """Points that are passed when a process ends."""

    async def attack(run: Run) -> None:
        await run.until(lambda: run.count("end") > 50, "work is under way")
        for number, point in enumerate(wanted, 2):
            name = f"c{number}"
            process = await run.start(name, points=f"{point}=kill")
            await process.line("ready")
            await run.terminate(name)

    def declare(url: str, seed: int) -> tuple[Scenario, Nemesis]:
        return mixed(url=url), attack

    return declare


def dropping(wanted: Sequence[str], luck: Random) -> Declare:
    """Points that a bus at its largest size brings about; what publishers are refused there, they do not publish."""

    def declare(url: str, seed: int) -> tuple[Scenario, None]:
        plans = dict.fromkeys(("p0", "p1"), tuple(f"{point}=kill" for point in wanted))
        groups = BOOK, Group(name="bill")
        options = "max_size=32KiB&segment_rows=20"
        return Scenario(url=f"{url}&{options}", groups=groups, fates=FATES, pace=0.03, messages=400, points=plans), None

    return declare


def filling(wanted: Sequence[str], luck: Random) -> Declare:
    """Points that large messages bring about."""

    def declare(url: str, seed: int) -> tuple[Scenario, None]:
        plans = dict.fromkeys(("p0", "p1", "c0"), tuple(f"{point}=kill" for point in wanted))
        return Scenario(url=url, messages=60, size=1_000_000, keys=2, points=plans), None

    return declare


def mourning(wanted: Sequence[str], luck: Random) -> Declare:
    """Points that are passed by those who find out that another has died."""

    async def attack(run: Run) -> None:
        await nemeses.busy(run, "c1")
        run.kill("c1")

    def declare(url: str, seed: int) -> tuple[Scenario, Nemesis]:
        finds, marks = ([f"{point}=kill"] * (point in wanted) for point in MOURNING)
        plans = {"p0": (*finds,), "p1": (*finds,), "c0": (*finds, *marks), "c1": ("", *marks)}
        return mixed(url=url, points=plans), attack

    return declare


def hits(report: Report) -> list[str]:
    """The points that acted. Who got there is chance: that a process did not, is no violation any more."""
    report.verdict.violations = [violation for violation in report.verdict.violations if violation.rule != "missed"]
    return [line.detail for line in read(report.folder / "journals") if line.what == "point"]


@nemesis("kill -9 at every fail point", "processes die at each of the named points of the bus's code", full=10)
async def kill_at_points(folder: Path, seed: int, count: int) -> Seen:
    total, everything, deaths = Rounds("kill -9 at every fail point"), points(), 0
    for number in range(seed, seed + count):
        luck, left = Random(number), set(everything)
        for attempt in range(TRIES):
            for kind in (working, ending, dropping, filling, mourning):
                wanted = sorted(left & set(_belongs(kind, everything)))
                if wanted:
                    place = folder / f"seed-{number}-{attempt}-{kind.__name__}"
                    report = await play(place, number, kind(wanted, luck))
                    found = hits(report)
                    deaths += len(found)
                    left -= set(found)
                    total.add(report, place)
        total.missed += [f"{point} was never hit (seed {number})" for point in sorted(left)]
    total.evidence = total.evidence.__class__({f"deaths at {len(everything)} points": deaths, **total.evidence})
    total.seen.rounds = count
    return total.row(f"deaths at {len(everything)} points", "members", "suspects", "repeated")


def _belongs(kind: object, everything: Sequence[str]) -> list[str]:
    special = {ending: ENDING, dropping: DROPPING, filling: FILLING, mourning: MOURNING}
    others = [point for points in special.values() for point in points]
    return list(special[kind]) if kind in special else [point for point in everything if point not in others]  # type: ignore[index]


ERRORS = {
    "p0": "begin=error@30 commit.before=error@4 spi.publish.before=error@9 spi.publish.after=error@14",
    "p1": "",
    "c0": "commit.before=error@20 claim.taken=error@9 settle.struck=error@3",
    "c1": "",
}
"""Where an error of the system is told to whoever asked, and everything else goes on."""
ANYBODY = "delayed.move=error member.expire=error segment.roll=error@2"  # who gets there first is chance


@nemesis("errors at fail points", "system calls fail at named points: the processes survive, nothing is lost", full=10)
async def errors_at_points(folder: Path, seed: int, count: int) -> Seen:
    async def attack(run: Run) -> None:
        """c1 dies until another one expires it: it does so itself, if it is back before."""
        await run.until(lambda: run.count("ready") == 4, "all are at work")
        while not any(line.detail == "member.expire" for line in run.histories.lines if line.what == "point"):
            await nemeses.busy(run, "c1")
            run.kill("c1")
            ready = run.count("ready")
            await run.until(lambda ready=ready: run.count("ready") > ready, "c1 is back")  # type: ignore[misc]

    def declare(url: str, seed: int) -> tuple[Scenario, Nemesis]:
        plans = {name: (f"{plan} {ANYBODY}",) for name, plan in ERRORS.items()}
        return mixed(url=f"{url}&segment_rows=50", messages=500, points=plans), attack

    total = Rounds("errors at fail points")
    for number in range(seed, seed + count):
        report = await play(folder / f"seed-{number}", number, declare)
        found, told = hits(report), sum("fail point" in line.why for line in read(report.folder / "journals"))
        report.verdict.evidence |= {"errors": len(found), "told": told}
        planned = set(PLANNED.findall(" ".join((*ERRORS.values(), ANYBODY))))
        total.missed += [f"{point} was never hit (seed {number})" for point in sorted(planned - set(found))]
        total.add(report, folder / f"seed-{number}")
    return total.row("errors", "told", "repeated")
