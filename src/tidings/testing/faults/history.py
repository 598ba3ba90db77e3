"""What the processes of a run did: each writes lines to a file of its own, and here they become one list.

A line is one ``write`` to a file opened for appending, so that it survives ``kill -9`` once the call has returned.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that happened. ``what`` is one of:

    of publishers     ``try`` (about to publish), ``accepted`` (publish has returned), ``unknown`` (it raised)
    of handlers       ``begin``, ``end``, ``fail`` (it raised, or was cancelled), ``reject``, ``die`` (about to exit)
    of transports     ``received``, ``settled`` (``detail``: ack, dead, retry, release), ``unsettled`` (``detail``:
                      fenced, rejected, unknown), ``event`` (``detail``: its kind, ``n``: how many)
    of processes      ``ready``, ``stopped`` (drained), ``log`` (``detail``: the level), ``total`` (so many, ``n``,
                      were ``detail``: fenced), ``point`` (``detail``: the fail point at which it acts now)
    of the run        ``started``, ``armed`` (``detail``: its fail points), ``fault`` (``detail``: what was done to it,
                      after which it may lose what it had), ``action`` (what may not cost it anything), ``exited``
                      (``n``: its status), ``stored`` (found on the bus), ``letter`` (a dead letter found), ``stuck``
                      (``why``; ``n``: how much the bus had left, -1: nobody knows)
    """

    what: str
    at: float = 0.0  # monotonic seconds, the same clock for all processes of the machine
    wall: float = 0.0
    process: str = ""
    pid: int = 0
    group: str = ""
    id: str = ""
    key: str | None = None
    n: int = -1  # the message's number
    attempt: int = 0
    due: float = 0.0  # wall clock: not before
    detail: str = ""
    why: str = ""


class Journal:
    """One process's side: lines are in the file when ``write`` returns."""

    def __init__(self, path: Path, process: str) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.process, self.pid = process, os.getpid()

    def write(self, what: str, **fields: Any) -> None:
        self.extend([Line(what=what, **fields)])

    def extend(self, lines: Iterable[Line]) -> None:
        """Several at once; process, pid and times are filled in where they are not given."""
        at, wall = time.monotonic(), time.time()
        filled = (
            replace(line, at=at, wall=wall, process=line.process or self.process, pid=line.pid or self.pid)
            for line in lines
        )
        data = b"".join(msgspec.json.encode(line) + b"\n" for line in filled)
        while data:
            data = data[os.write(self.file, data) :]

    def close(self) -> None:
        os.close(self.file)


class Histories:
    """All journals of a folder, read as they grow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines: list[Line] = []
        self._sorted = True
        self._read: dict[Path, int] = {}

    @property
    def lines(self) -> list[Line]:
        """What was read so far, in the order of time."""
        if not self._sorted:
            self._lines.sort(key=lambda line: line.at)
            self._sorted = True
        return self._lines

    def poll(self) -> list[Line]:
        """What is new. A torn last line waits for its rest, which a killed process never writes.

        Raises ``ValueError`` for a torn line in the middle of a file.
        """
        new: list[Line] = []
        for path in sorted(self.folder.glob("*.jsonl")):
            before = self._read.get(path, 0)
            if path.stat().st_size == before:
                continue
            with path.open("rb") as file:
                file.seek(before)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = before + len(whole) + len(newline)
            new += [_line(path, text) for text in whole.splitlines()]
        self._lines += new
        self._sorted = not new and self._sorted
        return new


def _line(path: Path, text: bytes) -> Line:
    try:
        return msgspec.json.decode(text, type=Line)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {text!r} is no line of a history") from error


def read(folder: Path) -> list[Line]:
    """The whole history of a run, in the order of time."""
    histories = Histories(folder)
    histories.poll()
    return histories.lines
