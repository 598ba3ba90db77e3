"""``tidings demo``: the machine it runs on, watched through Tidings. ``app.py`` is the example to read."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress

from tidings.kernel.errors import MissingExtra

__all__ = ["main"]

SWITCH = 0.0005  # seconds: beside a busy thread, the bus's own is not kept waiting


def main(url: str | None, duration: float | None, plain: bool) -> None:
    """Run the demo on ``url`` (default: a file in this folder) until it is stopped, or for ``duration`` seconds.

    ``plain``: lines instead of a screen, as without a terminal. Raises ``MissingExtra``; ``BusError`` when the bus
    cannot be opened.
    """
    try:
        import psutil  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise MissingExtra("the demo needs psutil", why=str(error), mend="pip install 'tidings[demo]'") from None
    from .app import app
    from .run import run

    sys.setswitchinterval(SWITCH)
    if url is not None:
        app.use(url)
    dumb = not sys.stdout.isatty() or os.environ.get("TERM") == "dumb"
    try:
        with suppress(KeyboardInterrupt):  # before it has begun
            asyncio.run(run(duration, plain=plain or dumb))
    except BrokenPipeError:  # whoever read our lines has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
