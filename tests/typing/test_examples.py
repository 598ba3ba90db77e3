"""The examples as a user would write them pass mypy --strict and pyright; wrong payloads in patterns are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRONG = "tests/typing/wrong_patterns.py"


Check = Callable[[str], list[str]]


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # checked, and all well, or not
    return done.stdout


def mypy(path: str) -> list[str]:
    """What mypy --strict refuses in a folder or file, as ``file:line``."""
    out = run("mypy", "--strict", "--no-incremental", "--output", "json", path)
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return [f"{Path(e['file']).name}:{e['line']}" for e in found if e["severity"] == "error"]


def pyright(path: str) -> list[str]:
    found = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, path))["generalDiagnostics"]
    errors = [d for d in found if d["severity"] == "error"]
    return [f"{Path(d['file']).name}:{d['range']['start']['line'] + 1}" for d in errors]


@pytest.mark.slow
@pytest.mark.parametrize("check", [mypy, pyright])
def test_examples_are_typed(check: Check) -> None:
    assert check("examples/patterns") == []


@pytest.mark.slow
@pytest.mark.parametrize("check", [mypy, pyright])
def test_wrong_payloads_in_patterns_are_refused(check: Check) -> None:
    lines = (ROOT / WRONG).read_text().splitlines()
    wrong = [f"wrong_patterns.py:{number}" for number, line in enumerate(lines, 1) if "# wrong" in line]
    assert len(wrong) == 37
    assert sorted(set(check(WRONG))) == sorted(wrong)
