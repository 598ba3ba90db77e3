"""``sqlite:///`` passes the suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidings.testing.conformance import Bus, Conformance
from tidings.testing.conformance.buses import sqlite


class TestSQLite(Conformance):
    @pytest.fixture
    def bus(self, tmp_path: Path) -> Bus:
        return sqlite(tmp_path)
