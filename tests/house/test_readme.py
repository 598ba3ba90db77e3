"""The README's sixty seconds, as a newcomer has them: an empty folder, a new environment, the wheel."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PROGRAM = re.search(r"^`(\w+\.py)`:\n\n```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]


def test_sixty_seconds_are_complete() -> None:
    assert PROGRAM
    assert [command.split()[:2] for command in COMMANDS] == [
        ["pip", "install"],
        ["tidings", "run"],
        ["tidings", "publish"],
    ]


async def test_a_handler_is_a_plain_function() -> None:
    assert PROGRAM
    shop: dict[str, object] = {"__name__": "shop"}
    exec(compile(PROGRAM[2], PROGRAM[1], "exec", dont_inherit=True), shop)
    order, invoice = shop["Order"]("A7", 50.0), shop["Invoice"]("A7", 60.0)  # type: ignore[operator]
    assert await shop["bill"](order) == shop["invoiced"](invoice, key="A7")  # type: ignore[operator]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert PROGRAM
    (tmp_path / PROGRAM[1]).write_text(PROGRAM[2])
    return tmp_path


@pytest.fixture
def running(environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """``tidings run ...``, ready."""
    (command,) = [shlex.split(line) for line in COMMANDS if line.startswith("tidings run")]
    with subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            said(process, "shop.post")
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], text: str) -> str:
    """What a process says up to the line with ``text``."""
    assert process.stdout
    lines = ""
    for line in process.stdout:
        lines += line
        if text in line:
            return lines
    raise AssertionError(f"ended without saying {text!r}:\n{lines}")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sixty_seconds(environment: dict[str, str], folder: Path, running: subprocess.Popen[str]) -> None:
    for line in COMMANDS:
        if line.startswith("tidings publish"):
            subprocess.run(shlex.split(line), cwd=folder, env=environment, check=True)
    said(running, "invoice for A7: 60.00")
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 0


@pytest.mark.slow
def test_wheel_is_whole(wheel: Path) -> None:
    """Every file of the package is in it: py.typed and the SQL too."""
    files = (path.relative_to(ROOT / "src") for path in (ROOT / "src" / "tidings").rglob("*") if path.is_file())
    wanted = {str(path) for path in files if not any(part.startswith((".", "__pycache__")) for part in path.parts)}
    with zipfile.ZipFile(wheel) as packed:
        assert wanted <= set(packed.namelist())
