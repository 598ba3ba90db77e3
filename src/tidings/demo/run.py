"""Running the demo: the app serves, and beside it something shows how it goes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Protocol

from rich.console import Console

from .app import app, view
from .board import Board, Snapshot, waiting
from .meter import Meter
from .plain import Plain
from .screen import Screen

SOURCE = "demo.sample"
PATIENCE = 3.0  # seconds for what is under way at the end


class Display(Protocol):
    """Shows snapshots."""

    interval: float

    async def show(self, snapshot: Snapshot) -> None: ...
    def end(self, snapshot: Snapshot, published: Mapping[str, int], left: int) -> None: ...


class Said(logging.Handler):
    """Keeps what is logged off the screen, but for the last line; dead letters are seen there anyway."""

    def __init__(self, board: Board) -> None:
        super().__init__(logging.WARNING)
        self.board = board

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().splitlines()[0]
        if not text.startswith("dead letter of"):
            self.board.said, self.board.heard = text, time.monotonic()


async def run(duration: float | None, *, plain: bool) -> None:
    """Until SIGTERM or SIGINT, or for so many seconds."""
    meter, found = Meter(app), await waiting(app)
    serving = asyncio.create_task(app.serve())
    while not serving.done() and len(app.stats()) < len(app.registrations):  # not yet open
        await asyncio.wait({serving}, timeout=0.005)
    if not serving.done():
        board = Board(app, meter, view, found)
        display: Display = Plain() if plain else Screen(Console())
        said = Said(board)
        if not plain:
            logging.getLogger("tidings").addHandler(said)
        try:
            await _show(board, display, serving, duration)
        finally:
            app.stop()
            await serving
            logging.getLogger("tidings").removeHandler(said)
        display.end(board.snapshot(), meter.sent, await waiting(app))
    await serving


async def _show(board: Board, display: Display, serving: asyncio.Task[None], duration: float | None) -> None:
    end = time.monotonic() + duration if duration is not None else float("inf")
    while not serving.done() and time.monotonic() < end:
        await board.refresh()
        await display.show(board.snapshot())
        await asyncio.wait({serving}, timeout=min(display.interval, max(0.0, end - time.monotonic())))
    if not serving.done():
        await settle(board, serving)
        await display.show(board.snapshot())


async def settle(board: Board, serving: asyncio.Task[None]) -> None:
    """Measure no more, and let what is under way arrive: a run that ends by itself leaves nothing behind."""
    app, gauge = board.app, board.meter.gauges[SOURCE]
    app.pause(SOURCE)
    end = time.monotonic() + PATIENCE
    while not serving.done() and time.monotonic() < end:
        await board.refresh(every=0.0)
        busy = sum(g.lag + g.in_flight + g.parked for name, g in board.groups.items() if name != SOURCE)
        if not busy and not board.meter.running and board.stats[SOURCE].handled == gauge.done:
            return
        await asyncio.wait({serving}, timeout=0.02)
