"""What is imported when, and by whom."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = {"apsw", "rich", "cyclopts", "cronsim", "psutil", "pydantic", "pytest", "hypothesis"} | {
    *("starlette", "uvicorn", "grpc", "httpcore"),
}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_tidings_loads_nothing_heavy(record_property) -> None:
    loaded = python("import sys, tidings; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert HEAVY.isdisjoint(loaded)
    best = min(
        float(python("import time; t = time.perf_counter(); import tidings; print(time.perf_counter() - t)"))
        for _ in range(3)
    )
    record_property("import_tidings_ms", round(best * 1e3, 1))  # reported; a wall clock asserts nothing


def test_import_rules_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_every_transport_is_under_the_rule_of_independence() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rules = settings["tool"]["importlinter"]["contracts"]
    (rule,) = [rule for rule in rules if rule["type"] == "independence"]
    folder = ROOT / "src" / "tidings" / "transports"
    transports = {path.stem for path in folder.iterdir() if re.fullmatch(r"[a-z]\w*(\.py)?", path.name)}
    assert {f"tidings.transports.{name}" for name in transports} <= set(rule["modules"])
    named = settings["project"]["entry-points"]["tidings.transports"].values()
    assert {target.partition(":")[0] for target in named} <= set(rule["modules"])
