"""Seeded schedules: whatever dies, freezes, fails or is deployed anew, no promise is broken.

The same schedules find each planted bug, so they are not vacuous. ``TIDINGS_SEEDS`` changes how many are run;
``python -m tests.simulation`` runs many more, and replays one.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from tests.simulation.__main__ import fault, kind_of
from tests.simulation.planted import PLANTED
from tests.simulation.schedule import KINDS, Schedule

FAST, SLOW = int(os.environ.get("TIDINGS_SEEDS", "30")), int(os.environ.get("TIDINGS_SEEDS", "120"))

# What must have happened in a hundred schedules; else they were about something else.
HAPPENED = (
    "crashed",
    "dead: crashed",
    "dead: failed",
    "dead: rejected",
    "drop",
    "expired",
    "fenced",
    "marked",
    "part",
    "Release",
    "rename",
    "repatterned",
    "replayed",
    "Retry",
    "rolled back",
    "suspect",
    "swept",
)


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Thousands of dead letters are no news here."""
    log = logging.getLogger("tidings")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    yield
    log.setLevel(level)


def broken(seeds: range) -> tuple[dict[str, str], Counter[str]]:
    """What broke, by the command that shows it again; and what happened."""
    found, seen = {}, Counter[str]()
    for seed in seeds:
        schedule = Schedule(seed, kind_of(seed))
        if what := fault(schedule):
            found[f"python -m tests.simulation --seed {seed} --kind {schedule.kind} --trace"] = what
        seen.update(schedule.oracle.seen)
    return found, seen


def test_no_schedule_breaks_a_promise() -> None:
    found, _ = broken(range(FAST))
    assert found == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_schedules_break_no_promise_and_much_happens_in_them() -> None:
    found, seen = broken(range(FAST, FAST + SLOW))
    assert found == {}
    assert SLOW < 100 or [what for what in HAPPENED if not seen[what]] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str) -> None:
    planted = PLANTED[name]
    for seed in range(planted.within):
        if what := fault(Schedule(seed, planted.kind, planted)):
            print(f"{name}: seed {seed}, {what}")
            assert fault(Schedule(seed, planted.kind)) == ""  # it was the bug, not the schedule
            return
    pytest.fail(f"{name} was not found within {planted.within} seeds")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_one_schedule(kind: str) -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seed", "7", "--kind", kind, "--trace"]
    runs = [
        subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": hash}, check=False)
        for hash in ("1", "2")
    ]
    assert "nothing broke" in runs[0].stdout, runs[0].stdout + runs[0].stderr
    assert runs[0].stdout == runs[1].stdout
