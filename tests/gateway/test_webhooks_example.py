"""The example of webhooks runs, by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "webhooks.py"


@pytest.mark.slow
def test_example(tmp_path: Path) -> None:
    """It ends with an assert of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS")}
    command = [sys.executable, "-W", "error", EXAMPLE]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "shop.orders.placed Order(id=7, cents=4200)\n"
    assert "Warning" not in done.stderr, "what was left open"
