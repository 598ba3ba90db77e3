"""``sqlite:///`` under faults, and that the faults find what is broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from tidings.testing.conformance import Bus, Faults
from tidings.testing.conformance.buses import sqlite

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class TestSQLiteFaults(Faults):
    @pytest.fixture
    def bus(self, tmp_path: Path) -> Bus:
        return sqlite(tmp_path)


MUTANTS = {
    "ack-early": ("test_kill_9_at_random", "lost"),
    "never-redeliver": ("test_sigterm_under_load", "lost"),
    "duplicate-all": ("test_sigterm_under_load", "committed"),
    "no-fence": ("test_frozen_past_its_lease", "committed"),
    "no-hold": ("test_members_of_an_ordered_group_come_and_go", "order"),
    "blind-mark": ("test_poison_and_innocents", "poison"),
}


def hasty(killer: str, folder: Path) -> Callable[[Bus], None]:
    """A test that does not wait long for what a broken bus has lost."""
    suite = Faults()
    suite.folder, suite.seed = folder / "faults", 1
    suite.within = 45.0 if killer == "test_poison_and_innocents" else 15.0  # that one ends by itself
    test: Callable[[Bus], None] = getattr(suite, killer)
    return test


@pytest.mark.parametrize("killer", sorted({killer for killer, _ in MUTANTS.values()}))
def test_a_sound_bus_is_fast_enough(killer: str, tmp_path: Path) -> None:
    hasty(killer, tmp_path)(sqlite(tmp_path))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_found(mutant: str, tmp_path: Path) -> None:
    killer, rule = MUTANTS[mutant]
    with pytest.raises(AssertionError) as found:
        hasty(killer, tmp_path)(replace(sqlite(tmp_path), mutant=mutant))
    assert f"\n  {rule}: " in str(found.value), str(found.value)
