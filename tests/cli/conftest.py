"""The installed console script, on real files, as a user's shell would call it."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any

import psutil
import pytest

SCRIPT = str(Path(sys.executable).with_name("tidings"))
PATIENCE = 30

DRIVER = """
import contextlib, io, json, os, sys
from tidings.cli import main
results = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    results.append([code, out.getvalue(), err.getvalue(), sorted(os.listdir())])
print(json.dumps(results))
"""

SHOP = """
from collections.abc import AsyncIterator
from msgspec import Struct
from tidings import App, Backoff, Service, Topic

class Order(Struct):
    id: str
    total: float

app = App("shop", "sqlite:///shop.db", backoff=Backoff(attempts=1))
placed = Topic("orders.placed", Order)
prices = Service("prices.quote", str, float)

@app.on(placed)
async def bill(order: Order) -> None:
    if order.total < 0:
        raise ValueError("negative total")
    print("billed", order.id, flush=True)

@app.answer(prices)
async def quote(name: str) -> float:
    if not name:
        raise LookupError("quote what?")
    return len(name) * 1.5

@app.answer("count")
async def counting(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number
"""


class Done:
    """What a command left."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def __repr__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


class Running:
    """A command that goes on; what it says (stdout and stderr together) is read line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, list[str]()

    def until(self, text: str) -> str:
        """The next line with ``text``."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"ended without saying {text!r}:\n{''.join(self.lines)}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code after a signal. What does not end says where it is, and is aborted."""
        self.process.send_signal(number)
        assert self.process.stdout
        late = Timer(PATIENCE, self._abort)
        late.start()
        self.lines += self.process.stdout.readlines()
        late.cancel()
        if (code := self.process.wait(PATIENCE)) == -signal.SIGABRT:
            print(*self.lines, sep="")
        return code

    def _abort(self) -> None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process.pid)
            for each in (*process.children(recursive=True), process):
                each.send_signal(signal.SIGABRT)


class Shell:
    """A folder, its environment, and the console script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TIDINGS", "NO_COLOR"))}
        self.env = {**kept, "PYTHONFAULTHANDLER": "1", "TERM": "xterm", "COLUMNS": "140", "TZ": "UTC"}
        self.stack = ExitStack()

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def __call__(self, *words: str, code: int = 0, input: str | bytes = "", folder: Path | None = None) -> Done:
        given = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            [SCRIPT, *words],
            input=given,
            cwd=folder or self.folder,
            env=self.env,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        result = Done(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert result.code == code, result
        assert "Traceback" not in result.err, result
        return result

    def all(self, commands: list[list[str]]) -> list[tuple[int, str, str, list[str]]]:
        """(exit code, stdout, stderr, files afterwards) of each, in one process: starting is what takes time."""
        done = subprocess.run(
            [sys.executable, "-P", "-c", DRIVER],
            cwd=self.folder,
            env=self.env,
            input=json.dumps(commands),
            capture_output=True,
            text=True,
            check=True,
        )
        return [tuple(result) for result in json.loads(done.stdout)]

    def start(self, *words: str) -> Running:
        process = subprocess.Popen(
            [SCRIPT, *words],
            cwd=self.folder,
            env=self.env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.stack.enter_context(_ended(process))
        return Running(process)

    def on_terminal(self, *words: str, keys: str = "", after: str = "") -> Done:
        """Run on a terminal of its own; ``keys`` are typed once ``after`` was shown."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [SCRIPT, *words], cwd=self.folder, env=self.env, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        shown = b""
        with _ended(process), suppress(OSError):  # the terminal is gone with its last process
            while select.select([ours], [], [], PATIENCE)[0]:
                shown += os.read(ours, 65536)
                if keys and after.encode() in shown:
                    os.write(ours, keys.encode())
                    keys = ""
        os.close(ours)
        return Done(process.wait(PATIENCE), shown.decode().replace("\r\n", "\n"), "")


@contextmanager
def _ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    try:
        yield
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@pytest.fixture
def nowhere(tmp_path: Path) -> Iterator[Shell]:
    """An empty folder; no bus is configured."""
    shell = Shell(tmp_path)
    with shell.stack:
        yield shell


@pytest.fixture
def shell(nowhere: Shell) -> Shell:
    """A folder with the shop app; TIDINGS_URL names its bus."""
    nowhere.write("shop.py", SHOP)
    nowhere.env["TIDINGS_URL"] = "sqlite:///shop.db"
    return nowhere


@pytest.fixture
def shop(shell: Shell) -> Running:
    """``tidings run shop``, ready."""
    running = shell.start("run", "shop")
    running.until("listens on")
    return running


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bus files made once: ``known`` has the shop's groups, ``failed`` two dead letters of shop.bill as well."""
    folder = tmp_path_factory.mktemp("templates")
    shell = Shell(folder)
    shell.env["TIDINGS_URL"] = "sqlite:///shop.db"
    shell.write("shop.py", SHOP)
    with shell.stack:
        running = shell.start("run", "shop")
        running.until("listens on")
        assert running.end() == 0, running.lines
        known = Path(shutil.copytree(folder, folder / "known"))
        running = shell.start("run", "shop")
        running.until("listens on")
        for id in ("A1", "A2"):
            order = f'{{"id": "{id}", "total": -1}}'
            shell("publish", "orders.placed", order, "--key", id, "--header", "from=test")
            running.until("dead letter of shop.bill")
        assert running.end() == 0, running.lines
        failed = Path(shutil.copytree(folder, folder / "failed", ignore=shutil.ignore_patterns("known")))
    return {"known": known, "failed": failed}


@pytest.fixture
def known(shell: Shell, templates: dict[str, Path]) -> None:
    """The shop has run here before."""
    shutil.copytree(templates["known"], shell.folder, dirs_exist_ok=True)


@pytest.fixture
def letters(shell: Shell, templates: dict[str, Path]) -> list[dict[str, Any]]:
    """Two dead letters of the shop, A1 and A2."""
    shutil.copytree(templates["failed"], shell.folder, dirs_exist_ok=True)
    found: list[dict[str, Any]] = shell("dead", "ls", "--all", "--json").json
    return found
