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


class Hasty(Faults):
    """Does not wait long for what a broken bus has lost."""

    __test__ = False
    within = 15.0


@pytest.mark.parametrize(
    ("mutant", "killer", "rule"),
    [
        ("ack-early", "test_kill_9_at_random", "lost"),
        ("never-redeliver", "test_sigterm_under_load", "lost"),
        ("duplicate-all", "test_sigterm_under_load", "committed"),
        ("no-fence", "test_frozen_past_its_lease", "committed"),
        ("no-hold", "test_members_of_an_ordered_group_come_and_go", "order"),
        ("blind-mark", "test_poison_and_innocents", "poison"),
    ],
)
def test_mutant_is_found(mutant: str, killer: str, rule: str, tmp_path: Path) -> None:
    patient = rule == "poison"  # that one ends by itself
    test: Callable[[Bus], None] = getattr(Hasty() if not patient else TestSQLiteFaults(), killer)
    with pytest.raises(AssertionError) as found:
        test(replace(sqlite(tmp_path), mutant=mutant))
    assert f"\n  {rule}: " in str(found.value), str(found.value)
