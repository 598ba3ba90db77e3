"""mypy --strict and pyright accept right uses of the public API, and refuse each wrong one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
Check = Callable[[str], set[int]]


def run(*command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=HERE, capture_output=True, text=True, check=False
    ).stdout


def mypy(name: str) -> set[int]:
    """The lines of a file that mypy refuses."""
    out = run("mypy", "--strict", "--no-incremental", "--output", "json", name)
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]  # and "Success: ..."
    return {error["line"] for error in found if error["severity"] == "error" and error["file"] == name}


def pyright(name: str) -> set[int]:
    """The lines of a file that pyright refuses."""
    found = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, name))
    assert found["summary"]["filesAnalyzed"] == 1
    return {d["range"]["start"]["line"] + 1 for d in found["generalDiagnostics"] if d["severity"] == "error"}


@pytest.mark.slow
@pytest.mark.parametrize("check", [mypy, pyright])
def test_right_uses_are_accepted(check: Check) -> None:
    assert check("right.py") == set()


@pytest.mark.slow
@pytest.mark.parametrize("check", [mypy, pyright])
def test_each_wrong_use_is_refused(check: Check) -> None:
    lines = (HERE / "wrong.py").read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if "# wrong" in line}
    assert len(wrong) == 33
    assert check("wrong.py") == wrong
