"""How far something is, on stderr: a bar on a terminal, a line every few seconds in a pipe."""

from __future__ import annotations

import sys
import time
from typing import Any

from . import show

EVERY = 5.0  # seconds


class Progress:
    """A context. ``total``: what ``done`` counts up to, in any unit; None where nobody knows."""

    def __init__(self, what: str, total: float | None) -> None:
        self.what, self.total = what, total or None
        self.began = self.told = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if show.terminal(sys.stderr):
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            known = (TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn()) if self.total else ()
            columns = (BarColumn(), TextColumn("{task.description}"), *known, TimeElapsedColumn())
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task(f"0 {self.what}", total=self.total)
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, count: int, done: float) -> None:
        """``count`` is shown, with its rate."""
        now = time.monotonic()
        if now - self.told < (EVERY if self.bar is None else 0.1):
            return
        self.told = now
        said = f"{count:,} {self.what}, {count / (now - self.began):,.0f}/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=done, description=said)
        else:
            show.note(said + (f", {min(done / self.total, 1):.0%}" if self.total else ""))
