"""Virtual time: an event loop that jumps to its next timer when nothing else is ready.

Everything of Tidings that opens on such a loop takes its time from it, so backoffs, delays, leases and schedules of
hours pass in microseconds, always in the same order. Time advances by itself: there is nothing to call; awaiting
``asyncio.sleep`` is how a test waits for a moment. Time stands still while code runs, and it does not wait for threads
or processes: a timer may fire before a thread reports back, unless ``patience`` gives it real seconds before each jump.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from tidings.kernel.clock import Clock

T = TypeVar("T")

START = 1_767_225_600.0  # 2026-01-01T00:00:00Z, the wall clock of every new loop
ORIGIN = 1_000.0  # and its monotonic clock: not 0, which code may take for "never"


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop with its own ``time()`` and ``clock``."""

    def __init__(self, patience: float = 0.0) -> None:
        self._elapsed = 0.0
        self.patience = patience
        self.clock = Clock(now=lambda: START + self._elapsed, monotonic=self._look)
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return ORIGIN + self._elapsed

    def _look(self) -> float:
        """Each look at the clock takes a microsecond, so that code which takes turns by the clock does take turns."""
        self._elapsed += 1e-6
        return self.time()

    def advance(self, seconds: float) -> None:
        """Let time pass without giving anything a chance to run: what a blocked loop or a stepped clock looks like."""
        self._elapsed += seconds


class _Jumping(selectors.DefaultSelector):
    """A selector that, instead of waiting for the next timer, moves its loop's time there."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(self.loop.patience)
        if not ready:
            self.loop.advance(timeout)
        return ready


def run_virtual(main: Coroutine[Any, Any, T], *, patience: float = 0.0) -> T:
    """``asyncio.run`` in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(patience)) as runner:
        return runner.run(main)
