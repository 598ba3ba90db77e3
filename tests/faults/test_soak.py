"""The soak, for ten seconds: it runs, it judges, it draws; and what it judges by can tell good from bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.faults.soak import MOST_WAL, STEADY, problems_of, soak, told
from tests.faults.soak_plot import plot
from tests.faults.soak_watch import Fault, Sample, Soak

SEED = 3


@pytest.mark.slow
async def test_ten_seconds(tmp_path: Path) -> None:
    found = await soak(tmp_path, SEED, 10.0)
    assert found.held, told(found)
    assert found.counts["accepted"] > 100
    assert any(fault.harmful for fault in found.faults)
    assert len(found.samples) >= 8
    assert msgspec.json.decode((tmp_path / "soak.json").read_bytes(), type=Soak) == found
    plot(found, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


STRUCK = [Fault(3.0, "killed", "c0", harmful=True)]
MIB = 2**20


def minute(**more: Any) -> list[Sample]:
    """Sixty seconds in which nothing grows; ``more``: functions of the second."""
    steady = {"rss": lambda at: dict.fromkeys(STEADY, 40 * MIB), "files": lambda at: dict.fromkeys(STEADY, 12)}
    made = [{name: value(at) for name, value in {**steady, **more}.items()} for at in range(60)]
    plain = dict.fromkeys(("sent", "handled", "lag", "parked", "dead", "file"), 0)
    return [Sample(at=at, cpu={}, **{**plain, "wal": MIB, **fields}) for at, fields in enumerate(made)]


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ({}, ""),
        ({"rss": lambda at: dict.fromkeys(STEADY, (30 + min(at, 20)) * MIB)}, ""),  # warming up
        ({"rss": lambda at: {STEADY[0]: 40 * MIB, STEADY[1]: (40 + at) * MIB}}, "memory"),
        ({"files": lambda at: {STEADY[0]: 12 + at // 6, STEADY[1]: 12}}, "open files"),
        ({"wal": lambda at: MOST_WAL + 1 if at == 7 else 0}, "log"),
        ({"rss": lambda at: {STEADY[0]: 40 * MIB}}, "nothing"),
    ],
)
def test_what_grows_is_found(more: dict[str, Any], rule: str) -> None:
    assert [problem.partition(":")[0] for problem in problems_of(minute(**more), STRUCK)] == [rule] * bool(rule)


def test_a_soak_without_faults_says_nothing() -> None:
    calm = [Fault(3.0, "thawed", "c0", harmful=False)]
    assert problems_of(minute(), calm) == ["nothing: no fault took place"]
