"""The suite that every transport passes. In a pytest file of a transport's author::

    from tidings.testing.conformance import Bus, Conformance

    class TestMine(Conformance):
        @pytest.fixture
        def bus(self, tmp_path):
            return Bus(options=lambda lease: Mine(path=tmp_path / "bus", lease=lease))

Which tests run follows the transport's ``Capabilities``: a claim adds tests and never removes any, and of what is
"unavailable" it is tested that asking for it is refused. What a transport is known to fail is named, with the reason,
in ``opt_outs = {"test_priority": "..."}``: a strict expected failure, which shows in the capability table.

``Faults`` is its second level, a class of its own, for it takes minutes: real processes, killed, frozen and poisoned.
"""

from __future__ import annotations

from .bus import Bus, Rig, Suite, Tap, needs, scenario
from .delivering import Delivering
from .faults import Faults
from .handling import Handling
from .ledger import Ledger
from .processes import Processes
from .settling import Settling

__all__ = ["Bus", "Conformance", "Faults", "Ledger", "Rig", "Tap", "needs", "scenario"]


class Conformance(Delivering, Settling, Handling, Processes, Suite):
    """Subclass it, with a fixture ``bus``."""
