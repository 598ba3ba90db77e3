"""Every nemesis, in its quick form: what `python -m tests.faults --quick` runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.faults.__main__ import Kept, load, row, run_one, save
from tests.faults.report import NEMESES, Entry, Seen
from tests.faults.rounds import Rounds, rounds

from tidings.testing.faults import Group, Report, Scenario, Verdict, Violation

load()

SEED = 1
COMMANDS = "python -m tests.faults {name!r} --seed {seed} --rounds {rounds}"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NEMESES)
def test_it_holds(name: str, tmp_path: Path) -> None:
    each = NEMESES[name]
    seen = asyncio.run(each.attack(tmp_path / "rounds", SEED, each.quick))
    command = COMMANDS.format(name=name, seed=SEED, rounds=each.quick)
    assert seen.verdict == "held", f"{name}: {seen.verdict}\n{seen}\nagain: {command}"


async def nothing(folder: Path, seed: int, rounds: int) -> Seen:
    raise KeyError(seed)


ENTRY = Entry("nothing", "it raises", nothing, quick=1, full=5)


def kept(**more: Any) -> Kept:
    return Kept(Seen(**{"rounds": 5, "accepted": 1, "lost": 0, "evidence": "2 killed", **more}), 7, "today", "Python 3")


async def test_a_nemesis_that_raises_is_a_row() -> None:
    seen = await run_one(ENTRY, 7, 1)
    assert seen.verdict == "broken"
    assert "KeyError: 7" in seen.faults[0]


def test_only_full_runs_are_kept(tmp_path: Path) -> None:
    hung, path = NEMESES["hung"], tmp_path / "seen.json"
    assert save(path, hung, kept(), hung.full) == {"hung": kept()}
    assert save(path, hung, kept(rounds=1), 1) == {"hung": kept()}
    assert save(path, hung, kept(rounds=6), hung.full + 1) == {"hung": kept(rounds=6)}


def test_what_was_simulated_is_in_the_table() -> None:
    assert "| 2 killed; writes that fail |" in row(ENTRY, kept(note="writes that fail"))
    assert "/tmp" not in row(ENTRY, kept(note="see /tmp", lost=1))


def test_a_round_in_which_a_point_was_missed_makes_all_inconclusive(tmp_path: Path) -> None:
    total = Rounds("points")
    for rules in ((), ("missed",), ()):
        violations = [Violation(rule, "c0 was never there") for rule in rules]
        verdict = Verdict(
            violations=violations,
            accepted=1,
            ended=1,
            lost=0,
            duplicated=0,
            bound=0,
            disorder=0,
            recovered=None,
            evidence=Counter(killed=1),
        )
        place = tmp_path / str(total.seen.rounds)
        place.mkdir()
        total.add(Report(seed=1, verdict=verdict, log=[], folder=place, seconds=0.0), place)
    assert total.row("killed").verdict == "inconclusive"


def test_rounds_vary_and_are_played_again_by_their_own_seed(tmp_path: Path) -> None:
    """A round was declared by the seed of the first one."""
    met: list[int] = []

    def declare(url: str, seed: int) -> tuple[Scenario, None]:
        met.append(seed)
        return Scenario(url=url, messages=10, groups=(Group(name="bill"),)), None

    seen = asyncio.run(rounds("three", (tmp_path, 7, 3), declare, "members"))
    assert (seen.verdict, met) == ("held", [7, 8, 9])
