"""mypy --strict and pyright accept right uses of bridge, gateway, adapters and consumer, and refuse each wrong one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE, NAME = Path(__file__).parent, "endpoints_typed.py"


def run(*command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=HERE, capture_output=True, text=True, check=False
    ).stdout


def mypy() -> set[int]:
    out = run("mypy", "--strict", "--no-incremental", "--output", "json", NAME)
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {error["line"] for error in found if error["severity"] == "error" and error["file"] == NAME}


def pyright() -> set[int]:
    found = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, NAME))
    assert found["summary"]["filesAnalyzed"] == 1
    return {d["range"]["start"]["line"] + 1 for d in found["generalDiagnostics"] if d["severity"] == "error"}


@pytest.mark.slow
@pytest.mark.parametrize("check", [mypy, pyright])
def test_each_wrong_use_is_refused_and_no_other(check: Callable[[], set[int]]) -> None:
    lines = (HERE / NAME).read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if "# wrong" in line}
    assert len(wrong) == 17
    assert check() == wrong
