"""Rounds of a scenario on one SQLite file, added up to a row of the table."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
from tests.faults.report import Seen

from tidings.testing.faults import Fate, Group, Nemesis, Report, Scenario, Violation, perform

CHAIN = (Group(name="bill", to="orders.billed"), Group(name="sink", topic="orders.billed"))
BOOK = Group(name="book", ordered=True)
GROUPS = (*CHAIN, BOOK, Group(name="index", batch=10))
FATES = (
    Fate(group="book", at=(7, 23), rejects=True),
    Fate(group="bill", every=31, fails=1, retry=1.05),  # goes back to the bus
    Fate(every=17, fails=2),
)

COUNTED = ("lost", "order", "overlap", "duplicates")  # these have columns of their own

Declare = Callable[[str, int], tuple[Scenario, Nemesis | None]]
"""From the URL of a new bus, and the seed of the round, to what is played on it."""


def mixed(**more: Any) -> Scenario:
    """Everything: a chain, an ordered group, a batch group, failures, rejections, delays."""
    return Scenario(**{"groups": GROUPS, "fates": FATES, "delayed": 29, "pace": 0.02, **more})


async def play(folder: Path, seed: int, declare: Declare, *, options: str = "lease=1s", within: float = 60.0) -> Report:
    """One round, and whether the file it leaves is whole."""
    scenario, nemesis = declare(f"sqlite:///{fresh(folder)}/bus.db?{options}", seed)
    report = await perform(scenario, folder / "run", nemesis, seed=seed, within=within)
    if (found := integrity(folder / "bus.db")) != "ok":
        report.verdict.violations.append(Violation("integrity", found))
    return report


def fresh(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def integrity(path: Path) -> str:
    """``ok``, or what is wrong with the file."""
    con = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        return str(con.execute("PRAGMA integrity_check").get)
    except apsw.Error as error:
        return str(error)
    finally:
        con.close()


class Rounds:
    """What was seen so far. Folders of rounds in which all held are removed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = Seen(rounds=0, accepted=0, lost=0)
        self.evidence = Counter[str]()
        self.missed: list[str] = []

    def add(self, report: Report, folder: Path) -> None:
        seen, verdict = self.seen, report.verdict
        seen.rounds += 1
        seen.accepted += verdict.accepted
        seen.lost += verdict.lost
        seen.duplicated += verdict.duplicated
        seen.bound += verdict.bound
        seen.disorder += verdict.disorder
        if verdict.recovered is not None:
            seen.recovered = max(seen.recovered or 0.0, verdict.recovered)
        self.evidence += verdict.evidence
        others = [violation for violation in verdict.violations if violation.rule not in COUNTED]
        missed = verdict.of("nothing", "missed")
        self.missed += [violation.what for violation in missed]
        seen.faults += [f"{violation.rule}: {violation.what}" for violation in others if violation not in missed]
        print("." if report.held else "x", end="", file=sys.stderr, flush=True)
        if report.held:
            shutil.rmtree(folder)
        else:
            seen.note = f"{seen.note} seed {report.seed}: python -m tests.faults '{self.name}' --seed {report.seed} "
            seen.note += f"--rounds 1; {report.folder}/report.txt"

    def row(self, *evidence: str) -> Seen:
        """The row; ``evidence``: what of it to tell. A round that missed makes all inconclusive."""
        told = ", ".join(f"{self.evidence[what]:,} {what}" for what in evidence if self.evidence[what])
        self.seen.evidence = "" if self.missed else told
        self.seen.note = f"{self.seen.note} {'; '.join(self.missed[:3])}".strip()
        return self.seen


async def rounds(name: str, where: tuple[Path, int, int], declare: Declare, *evidence: str, **options: Any) -> Seen:
    """``where``: folder, seed, number of rounds. Round i has seed + i."""
    folder, seed, count = where
    total = Rounds(name)
    for number in range(seed, seed + count):
        total.add(await play(folder / f"seed-{number}", number, declare, **options), folder / f"seed-{number}")
    return total.row(*evidence)
