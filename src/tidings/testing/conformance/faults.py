"""Level 1 of the suite: processes on one bus are killed, frozen, poisoned and ended, and nothing accepted is lost.

For transports whose ``Bus`` has a ``url``. In a pytest file of a transport's author::

    from tidings.testing.conformance import Bus, Faults

    class TestMineUnderFaults(Faults):
        @pytest.fixture
        def bus(self, tmp_path):
            return Bus(options=..., url=lambda lease: f"mine://{tmp_path}/bus?lease={lease}s")

What is checked follows the transport's ``Capabilities``; ``tidings.testing.faults`` says how. Bounds come from the
claims: without ``atomic_settle`` an output may be there twice, without ``crash_count`` no poison is sent, without
``ordered`` asking for it is refused.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tidings.testing.faults import Fate, Group, Nemesis, Report, Scenario, nemeses, perform

from .bus import Rig, Suite, has, needs, scenario

POINTS = ("spi.publish.before", "spi.publish.after", "spi.receive.after", "spi.settle.before", "spi.settle.after")
CHAIN = (Group(name="bill", to="orders.billed"), Group(name="sink", topic="orders.billed"))
BOOK = Group(name="book", ordered=True)
FATES = (Fate(group="bill", every=31, fails=1, retry=1.05), Fate(every=17, fails=2))
REJECTED = Fate(group="sink", at=(7,), rejects=True)


class Faults(Suite):
    """Subclass it, with a fixture ``bus``. ``lease``: of the bus, in seconds; ``within``: what one run may take.

    ``seed``: of every run, to play one again (None: a new one each time). ``folder``: for journals of one that failed.
    """

    lease: float = 1.0
    within: float = 45.0
    seed: int | None = None
    folder: Path

    @pytest.fixture(autouse=True)
    def _somewhere(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "faults"

    def _pace(self, rig: Rig) -> float:
        """There must still be work when c0 has joined, or joined again."""
        return 0.05 * rig.bus.patience**2

    @scenario
    async def test_kill_9_at_random(self, rig: Rig) -> None:
        await self.held(rig, nemeses.kills(3), delayed=29, expects=("killed",))

    @scenario
    async def test_kill_9_at_the_interface(self, rig: Rig) -> None:
        """Before and after publishing and settling, and after receiving."""
        points = {
            "p0": tuple(f"{point}=kill@3" for point in POINTS[:2]),
            "c0": tuple(f"{point}=kill@3" for point in POINTS[2:]),
        }
        await self.held(rig, points=points, messages=300, pace=self._pace(rig), expects=("killed",))

    @scenario
    @needs("fence")
    async def test_frozen_past_its_lease(self, rig: Rig) -> None:
        """Its late settlement is fenced: what it was handling is somebody else's by then."""
        groups = tuple(Group(name=group.name, topic=group.topic, to=group.to, takes=0.05) for group in CHAIN)
        more: dict[str, Any] = {"messages": 120, "pace": self._pace(rig)}
        await self.held(rig, nemeses.freeze, groups=groups, expects=("frozen", "fenced"), **more)

    @scenario
    @needs("crash_count")
    async def test_poison_and_innocents(self, rig: Rig) -> None:
        """A message that ends its process at each attempt ends in the dead letters, and nothing beside it does."""
        fates = (Fate(group="bill", at=(70,), dies=True),)
        await self.held(rig, fates=fates, attempts=3, restarts=8, expects=("died", "letters"))

    @scenario
    async def test_sigterm_under_load(self, rig: Rig) -> None:
        """Nothing dead, nothing twice."""
        await self.held(rig, nemeses.drain, fates=FATES, expects=("terminated",))

    @scenario
    @needs("ordered")
    async def test_members_of_an_ordered_group_come_and_go(self, rig: Rig) -> None:
        groups = (Group(name="book", ordered=True, takes=0.005),)
        more: dict[str, Any] = {"keys": 8, "messages": 300, "pace": 0.04, "expects": ("terminated", "failed")}
        await self.held(rig, nemeses.come_and_go, groups=groups, fates=FATES, **more)

    async def held(self, rig: Rig, nemesis: Nemesis | None = None, **declared: Any) -> Report:
        """Play it once, and assert that all that must hold did."""
        if rig.bus.url is None:
            pytest.skip("a bus of one process: Bus has no url")
        capabilities = (await rig.open()).capabilities
        claims = {
            "first": has(capabilities, "start"),
            "atomic": capabilities.atomic_settle,
            "peek": has(capabilities, "peek"),
            "resolution": capabilities.delay_resolution,
        }
        if not has(capabilities, "delay"):
            declared["delayed"] = 0
        groups = (*CHAIN, BOOK) if has(capabilities, "ordered") else CHAIN
        declared = {
            "groups": groups,
            "fates": (REJECTED, *FATES),
            "pace": 0.02,
            "mutant": rig.bus.mutant,
            **claims,
            **declared,
        }
        play = Scenario(url=rig.bus.url(self.lease), **declared)
        seed = random.randrange(2**31) if self.seed is None else self.seed
        report = await perform(play, self.folder, nemesis, seed=seed, within=self.within * rig.bus.patience)
        assert report.held, f"{report}\nagain: with seed = {seed} in the class"
        shutil.rmtree(self.folder)
        return report
