"""Every nemesis, in its quick form: what `python -m tests.faults --quick` runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.faults.__main__ import load
from tests.faults.report import NEMESES

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
