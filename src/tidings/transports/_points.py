"""Fail points: named places in a transport where a test makes the process die, stop, stall or fail.

``TIDINGS_FAIL_POINTS="commit.before=kill@3 claim=stall:0.5"``: at the third passage of ``commit.before`` the process is
killed (SIGKILL), at the first of ``claim`` it sleeps for half a second. Actions: ``kill``, ``stop`` (SIGSTOP),
``error`` (an ``OSError``), ``stall:SECONDS``; each happens once. Without the variable ``passed`` is an empty function,
called a few times per transaction and never per message.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

VARIABLE = "TIDINGS_FAIL_POINTS"
Point = Callable[[str], None]
witnesses: list[Point] = []  # called with a point's name before it acts


def points(plan: str) -> Point:
    """What a point does under ``plan``. Raises ``ValueError`` for a plan that cannot be read."""
    actions = dict(_action(part) for part in plan.split())
    if not actions:
        return lambda name: None
    passages = Counter[str]()

    def passed(name: str) -> None:
        if name in actions:
            passages[name] += 1
            act, passage = actions[name]
            if passages[name] == passage:
                for tell in witnesses:
                    tell(name)
                act()

    return passed


def _action(part: str) -> tuple[str, tuple[Callable[[], None], int]]:
    name, _, rest = part.partition("=")
    what, _, passage = rest.partition("@")
    kind, _, seconds = what.partition(":")
    known: dict[str, Callable[[], None]] = {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "stop": lambda: signal.pthread_kill(threading.get_ident(), signal.SIGSTOP),  # here, not a moment later
        "error": _fail,
        "stall": lambda: time.sleep(float(seconds)),
    }
    if not name or kind not in known or (kind == "stall") != bool(seconds):
        raise ValueError(f"{VARIABLE}: {part!r} is no plan; write point=kill|stop|error|stall:SECONDS, then @passage")
    return name, (known[kind], int(passage or 1))


def _fail() -> None:
    raise OSError(errno.EIO, "a fail point")


passed = points(os.environ.get(VARIABLE, ""))
