"""docs/transports.md says what the transports' code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tidings.kernel.transport import Capabilities

ROOT = Path(__file__).parents[2]


def script():
    spec = importlib.util.spec_from_file_location("transport_table", ROOT / "scripts" / "transport_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_is_fresh() -> None:
    assert (ROOT / "docs" / "transports.md").read_text() == script().page(), "run: make docs-tables"


def test_every_capability_is_explained() -> None:
    assert set(script().EXPLAINED) == set(Capabilities.__struct_fields__) - {"delay_max", "delay_resolution"}
