"""docs/transports.md says what the transports' code says."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.transport_table import ENGINES, page
from tests.servers import server

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_table_is_fresh() -> None:
    said = page({name: server(name).url for name in ENGINES})
    assert (ROOT / "docs" / "transports.md").read_text() == said, "run: make docs-tables"
