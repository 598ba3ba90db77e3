"""What ``run`` and ``dev`` say of a handler that failed and is tried again: dead letters are told by the kernel."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from tidings import App
from tidings.kernel.errors import text_of, users
from tidings.kernel.handler import Many, One, Outcome, Outgoing
from tidings.kernel.transport import Delivery
from tidings.middleware import Group, instrument
from tidings.middleware.log import Log

log = logging.getLogger("tidings")

MOST, WHILE = 20, 10.0  # failures of a group that are told in so many seconds: a log is not a second queue


def tell_failures(app: App) -> None:
    """Log what handlers raise, unless the app does so itself or nobody would see it."""
    used = (*app.middleware, *(one for r in app.registrations for one in r.middleware))
    if log.isEnabledFor(logging.WARNING) and not any(isinstance(one, Log) for one in used):
        instrument(app, Failures(Group()))


class Failures:
    """An observer that logs failures: the first attempt with its traceback."""

    def __init__(self, group: Group) -> None:
        self.group, self.since, self.told = group, 0.0, 0

    def of(self, group: Group) -> Failures:
        return Failures(group)

    def attach(self, app: Any) -> None:
        """Nothing: it needs no more of an app."""

    def __call__(self, one: One) -> One:
        failed = self._failed

        async def told(delivery: Delivery) -> Outgoing:
            try:
                return await one(delivery)
            except Exception as error:
                failed(delivery, error)
                raise

        return told

    def many(self, many: Many) -> Many:
        async def told(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            try:
                outcomes = await many(deliveries)
            except Exception as error:
                if len(deliveries) == 1:  # several are tried again one by one
                    self._failed(deliveries[0], error)
                raise
            for delivery, outcome in zip(deliveries, outcomes, strict=False):
                if isinstance(outcome, Exception):
                    self._failed(delivery, outcome)
            return outcomes

        return told

    def _failed(self, delivery: Delivery, error: Exception) -> None:
        if self.group.outcome(delivery, error) != "retry" or not self._room():
            return
        most = f" of {self.group.backoff.attempts}" if self.group.backoff else ""
        cause = users(error) if delivery.attempt == 1 else None
        what = self.group.name, delivery.attempt, most, type(error).__name__, text_of(error)
        log.warning("%s failed, attempt %d%s, and is tried again: %s: %s", *what, exc_info=cause)

    def _room(self) -> bool:
        """Whether one more may be told now."""
        if (now := time.monotonic()) - self.since >= WHILE:
            self.since, self.told = now, 0
        self.told += 1
        if self.told == MOST + 1:
            log.warning("%s fails often: what else fails in these %.0f s is not told", self.group.name, WHILE)
        return self.told <= MOST
