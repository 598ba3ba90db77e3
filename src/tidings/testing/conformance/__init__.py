"""The suite that every transport passes. In a pytest file of a transport's author::

    from tidings.testing.conformance import Bus, Conformance

    class TestMine(Conformance):
        @pytest.fixture
        def bus(self, tmp_path):
            return Bus(options=lambda lease: Mine(path=tmp_path / "bus", lease=lease))

Which tests run follows the transport's ``Capabilities``: a claim adds tests and never removes any, and of what is
"unavailable" it is tested that asking for it is refused. What a transport is known to fail is named, with the reason,
in ``opt_outs = {"test_priority": "..."}``: a strict expected failure, which shows in the capability table.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from .bus import Bus, Rig, Tap, needs, scenario
from .delivering import Delivering
from .handling import Handling
from .ledger import Ledger
from .processes import Processes
from .settling import Settling

__all__ = ["Bus", "Conformance", "Ledger", "Rig", "Tap", "needs", "scenario"]


class Conformance(Delivering, Settling, Handling, Processes):
    """Subclass it, with a fixture ``bus``."""

    opt_outs: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        for name, reason in cls.opt_outs.items():
            original = getattr(cls, name)

            def known_to_fail(self: Any, bus: Bus, original: Any = original) -> None:
                original(self, bus)

            setattr(cls, name, pytest.mark.xfail(strict=True, reason=reason)(known_to_fail))
