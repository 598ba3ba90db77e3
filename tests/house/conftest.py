"""What the tests of documentation share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which ``tidings`` and ``pip`` are those of a new environment with the wheel installed."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "pip", "install", "-q", wheel], check=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV", "TIDINGS"))}
    return {**kept, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
