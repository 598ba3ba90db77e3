"""Asking before something is done that cannot be undone."""

from __future__ import annotations

import signal
import sys

from tidings.kernel.errors import InvalidOption


def agreed(question: str) -> bool:
    """Whether whoever sits at the terminal says yes; raises ``InvalidOption`` where nobody does.

    Ctrl-C ends the question at once: what asyncio makes of the first one would be seen only after an answer.
    """
    if not sys.stdin.isatty():
        raise InvalidOption("nobody is there to be asked", mend="--yes, or --dry-run to see what would be done")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # before anybody can answer
    try:
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    finally:
        signal.signal(signal.SIGINT, before)
