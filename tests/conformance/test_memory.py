"""``memory://`` passes the suite, in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidings.testing.conformance import Bus, Conformance
from tidings.testing.conformance.buses import memory


class TestMemory(Conformance):
    @pytest.fixture
    def bus(self, tmp_path: Path) -> Bus:
        return memory(tmp_path)
