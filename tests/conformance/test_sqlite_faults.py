"""``sqlite:///`` under faults, and that the faults find what is broken."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from msgspec.structs import replace

from tidings.testing.conformance import Bus, Faults
from tidings.testing.conformance.bus import Rig, scenario
from tidings.testing.conformance.buses import sqlite
from tidings.testing.faults import Group, Run
from tidings.urls import options_for

LIVES = 8  # so often c0 may stop with the lock in hand

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class TestSQLiteFaults(Faults):
    @pytest.fixture
    def bus(self, tmp_path: Path) -> Bus:
        return sqlite(tmp_path)

    @scenario
    async def test_frozen_as_it_settles(self, rig: Rig) -> None:
        """Past its lease, and it goes on settling: nothing but the fence is left. At another place its worker may hear
        of the loss first, and drop all by itself."""
        self.lease = 3.0  # longer than c1 is silent on a machine that has much else to do
        points = {"c0": ("spi.settle.before=stop@3",) * LIVES}
        groups = (Group(name="bill", to="orders.billed", takes=0.01), Group(name="sink", topic="orders.billed"))
        more: dict[str, Any] = {"groups": groups, "fates": (), "messages": 4000, "pace": 0.05, "expects": ("fenced",)}
        await self.held(rig, frozen_as_it_settles, points=points, **more)


async def frozen_as_it_settles(run: Run) -> None:
    """One that stops with the file's lock in hand, so that nobody can go on, is killed: its next life stops again."""
    path = options_for(run.scenario.url).path  # type: ignore[attr-defined]

    def inherited() -> bool:
        begun = {(line.group, line.id) for line in run.of("c0") if line.what == "begin"}
        return any(line.detail == "suspect" and (line.group, line.id) in begun for line in run.of("c1"))

    for life in range(LIVES):
        await run.until(lambda life=life: run.count("point", "c0") > life, "c0 settles")  # type: ignore[misc]
        if not await asyncio.to_thread(locked, path):
            break
        run.kill("c0")
    await run.until(inherited, "c1 gets what c0 had")
    run.thaw("c0")
    for name in run.alive.keys() & {"p0", "p1"}:  # there was work for as long as it took
        await run.terminate(name)


def locked(path: str) -> bool:
    """Whether somebody has the write lock for longer than a transaction takes; but not for a lease."""
    con = apsw.Connection(path)
    con.set_busy_timeout(300)
    try:
        con.execute("BEGIN IMMEDIATE; ROLLBACK")
    except apsw.BusyError:
        return True
    finally:
        con.close()
    return False


MUTANTS = {
    "ack-early": ("test_kill_9_at_random", "lost"),
    "never-redeliver": ("test_sigterm_under_load", "lost"),
    "duplicate-all": ("test_sigterm_under_load", "committed"),
    "no-fence": ("test_frozen_as_it_settles", "committed"),
    "no-hold": ("test_members_of_an_ordered_group_come_and_go", "order"),
    "blind-mark": ("test_poison_and_innocents", "poison"),
}


def hasty(killer: str, folder: Path) -> Callable[[Bus], None]:
    """A test that does not wait long for what a broken bus has lost; of one that loses nothing it ends by itself."""
    suite = TestSQLiteFaults()
    suite.folder, suite.seed = folder / "faults", 1
    suite.within = 15.0 if (killer, "lost") in MUTANTS.values() else 45.0
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
    assert re.search(rf"^\s+{rule}: ", str(found.value), re.MULTILINE), str(found.value)
