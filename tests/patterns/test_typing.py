"""mypy --strict and pyright accept right uses of the patterns, and refuse each wrong one and no other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WRONG = {"construction_typed.py": 10, "endpoints_typed.py": 17, "management_typed.py": 10}


def run(*command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=HERE, capture_output=True, text=True, check=False
    ).stdout


def mypy(name: str) -> set[int]:
    out = run("mypy", "--strict", "--no-incremental", "--output", "json", name)
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {error["line"] for error in found if error["severity"] == "error" and error["file"] == name}


def pyright(name: str) -> set[int]:
    found = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, name))
    assert found["summary"]["filesAnalyzed"] == 1
    return {d["range"]["start"]["line"] + 1 for d in found["generalDiagnostics"] if d["severity"] == "error"}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("check", [mypy, pyright])
def test_each_wrong_use_is_refused_and_no_other(check: Callable[[str], set[int]], name: str) -> None:
    lines = (HERE / name).read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if "# wrong" in line}
    assert len(wrong) == WRONG[name]
    assert check(name) == wrong
