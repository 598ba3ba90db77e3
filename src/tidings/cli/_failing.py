"""What ``run`` and ``dev`` say of handlers that fail and are tried again: not all of it, and nothing twice."""

from __future__ import annotations

import logging
import time
from collections import Counter

from tidings import App
from tidings.kernel.settling import log, retried
from tidings.middleware.log import Log

MOST, WHILE = 20, 10.0  # failures of a group that are told in so many seconds: a log is not a second queue


def tell_failures(app: App) -> None:
    """Log failures, but not too many; none if the app logs them itself."""
    used = (*app.middleware, *(one for r in app.registrations for one in r.middleware))
    retried.addFilter(Few())
    retried.disabled = any(isinstance(one, Log) for one in used)


class Few(logging.Filter):
    """Lets pass ``MOST`` records of a group in ``WHILE`` seconds; the group is their first argument."""

    def __init__(self) -> None:
        super().__init__()
        self.since, self.told = time.monotonic(), Counter[object]()

    def filter(self, record: logging.LogRecord) -> bool:
        if (now := time.monotonic()) - self.since >= WHILE:
            self.since, self.told = now, Counter()
        group = record.args[0] if isinstance(record.args, tuple) else ""
        self.told[group] += 1
        if self.told[group] == MOST + 1:
            log.info("%s fails often: what else fails in these %.0f s is not told", group, WHILE)
        return self.told[group] <= MOST
