"""A page of the documentation, played: its files written, its commands typed, what they print compared.

- ```` ```python title="shop.py" ````: a file, written when the page comes to it; any language will do.
- ```` ```console ````: a terminal. ``$ `` is what is typed; a line without it must be printed next, other lines may
  come before it; ``…`` in it is anything. ``^C`` interrupts what runs. A last command that prints nothing must succeed.
- ```` ```console title="another terminal" ````: a terminal of its own; what runs in the others goes on.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

PATIENCE = 60.0  # seconds until a line comes
FENCE = re.compile(r'^```(\w+)(?:[ ]+title="([^"]+)")?[^\n]*\n(.*?)^```', re.MULTILINE | re.DOTALL)
DONE = "played-to-the-end"


class Block(NamedTuple):
    line: int
    language: str
    title: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    for found in FENCE.finditer(page):
        yield Block(page.count("\n", 0, found.start()) + 1, found[1], found[2] or "", found[3])


class Terminal:
    """A shell of its own session; what it and its commands print comes line by line."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        reading, self.keyboard = os.pipe()
        self.shell = subprocess.Popen(
            ["bash", f"/dev/fd/{reading}"],
            cwd=folder,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(reading,),
        )
        os.close(reading)
        self.rest, self.said = b"", list[str]()
        self.type("trap : INT")

    def type(self, command: str) -> None:
        try:
            os.write(self.keyboard, f"{command}\n".encode())
        except BrokenPipeError:
            raise AssertionError(f"nobody is there to be told {command!r}") from None

    def interrupt(self) -> None:
        os.killpg(self.shell.pid, signal.SIGINT)

    def until(self, wanted: str) -> str:
        """The next line that is as wanted. Raises ``AssertionError`` with what came instead."""
        pattern = re.compile(".*".join(map(re.escape, re.split("…", wanted.strip()))))
        end, came = time.monotonic() + PATIENCE, list[str]()
        while (line := self._line(end)) is not None:
            came.append(line)
            if pattern.fullmatch(line.strip()):
                return line
        raise AssertionError(f"{wanted!r} did not come, but:\n" + "\n".join(came))

    def _line(self, end: float) -> str | None:
        assert self.shell.stdout
        while b"\n" not in self.rest:
            ready, _, _ = select.select([self.shell.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready or not (some := os.read(self.shell.stdout.fileno(), 65536)):
                return None
            self.rest += some
        line, _, self.rest = self.rest.partition(b"\n")
        return line.decode(errors="replace")

    def close(self) -> None:
        """End all that was started here."""
        os.close(self.keyboard)
        with suppress(ProcessLookupError):
            os.killpg(self.shell.pid, signal.SIGKILL)
        self.shell.wait()
        if self.shell.stdout:
            self.shell.stdout.close()


def play(page: str, folder: Path, env: Mapping[str, str]) -> None:
    """Do what a page says, in an empty folder. Raises ``AssertionError`` that begins with the line of the page."""
    terminals: dict[str, Terminal] = {}
    with ExitStack() as stack:
        for block in blocks(page):
            if block.language != "console":
                if block.title:
                    path = folder / block.title
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(block.text)
                continue
            if block.title not in terminals:
                terminals[block.title] = terminal = Terminal(folder, env)
                stack.callback(terminal.close)
            try:
                _play(block.text.splitlines(), terminals[block.title])
            except AssertionError as error:
                raise AssertionError(f"line {block.line}: {error}") from None


def _play(lines: Sequence[str], terminal: Terminal) -> None:
    silent = False
    for line in lines:
        if line == "^C":
            terminal.interrupt()
        elif line.startswith("$ "):
            terminal.type(line[2:])
        elif line.strip():
            terminal.until(line)
        silent = line.startswith("$ ")
    if silent:
        terminal.type(f"echo {DONE} $?")
        ended = terminal.until(f"{DONE} …")
        assert ended == f"{DONE} 0", f"{lines[-1]!r} ended with exit code {ended.split()[-1]}"
