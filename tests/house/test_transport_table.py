"""docs/transports.md says what the transports' code says."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.transport_table import ENGINES, EXPLAINED, page
from tests.servers import server

from tidings.kernel.transport import Capabilities

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_table_is_fresh() -> None:
    said = page({name: server(name).url for name in ENGINES})
    assert (ROOT / "docs" / "transports.md").read_text() == said, "run: make docs-tables"


def test_every_capability_is_explained() -> None:
    assert set(EXPLAINED) == set(Capabilities.__struct_fields__) - {"delay_max", "delay_resolution"}
