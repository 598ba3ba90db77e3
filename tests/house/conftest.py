"""What the tests of documentation share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which ``tidings`` and ``pip`` are those of a new environment with the wheel installed.

    Environments that a page makes itself get the wheel, too, from ``pip install tidings``.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "pip", "install", "-q", wheel], check=True)
    constraint = folder / "constraint.txt"
    constraint.write_text(f"tidings=={wheel.name.split('-')[1]}\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV", "TIDINGS"))}
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    pip = {"PIP_FIND_LINKS": str(wheel.parent), "PIP_CONSTRAINT": str(constraint)}
    return {**kept, **pip, "PATH": path, "PYTHONUNBUFFERED": "1"}
