"""Logs: a line for what fails and for what is slow; of the rest none, or a sample.

Records of the logger ``tidings.handled`` carry what they say as attributes too (``extra``), for any formatter;
``JSONFormatter`` writes a line of JSON.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from random import random
from typing import Any

import msgspec

from tidings.kernel.errors import Duration, InvalidOption, text_of, users
from tidings.kernel.handler import Many, One, Outcome, Outgoing
from tidings.kernel.message import seconds
from tidings.kernel.transport import Delivery

from . import Group

log = logging.getLogger("tidings.handled")

LEVELS = {"skipped": logging.INFO, "deferred": logging.INFO, "dead": logging.ERROR, "dropped": logging.ERROR}
USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime"}  # of every record


class Log:
    """A middleware that logs: every failure, what took ``slow`` or longer, and a ``sample`` of the rest, a share.

    Failures are warnings, or errors when nothing is tried again; slow ones are warnings; the rest is information.
    Raises ``InvalidOption``.
    """

    def __init__(self, *, sample: float = 0.0, slow: Duration = 1.0, group: Group = Group()) -> None:  # noqa: B008
        if not 0 <= sample <= 1:
            raise InvalidOption(f"sample cannot be {sample!r}", mend="a share: 0 to 1")
        self.sample, self.slow, self.group = sample, seconds(slow, "slow"), group

    def of(self, group: Group) -> Log:
        """The same, around a handler of this group."""
        return Log(sample=self.sample, slow=self.slow, group=group)

    def attach(self, app: Any) -> None:
        """Nothing: it needs no more of an app."""

    def __call__(self, one: One) -> One:
        slow, sample, clock, failed, handled = self.slow, self.sample, time.perf_counter, self._failed, self._handled

        async def logged(delivery: Delivery) -> Outgoing:
            began = clock()
            try:
                outgoing = await one(delivery)
            except BaseException as error:
                failed(delivery, clock() - began, error)
                raise
            took = clock() - began
            if took >= slow or (sample and random() < sample):
                handled(delivery, took)
            return outgoing

        return logged

    def many(self, many: Many) -> Many:
        """The same around a handler of batches: ``seconds`` is what the whole call took."""

        async def logged(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            began = time.perf_counter()
            try:
                outcomes = await many(deliveries)
            except BaseException as error:
                if len(deliveries) == 1:  # several are tried again one by one
                    self._failed(deliveries[0], time.perf_counter() - began, error)
                raise
            took = time.perf_counter() - began
            for delivery, outcome in zip(deliveries, outcomes, strict=False):
                if isinstance(outcome, BaseException):
                    self._failed(delivery, took, outcome)
                elif took >= self.slow or random() < self.sample:
                    self._handled(delivery, took)
            return outcomes

        return logged

    def _handled(self, delivery: Delivery, took: float) -> None:
        level = logging.WARNING if took >= self.slow else logging.INFO
        if log.isEnabledFor(level):
            told = self._told(delivery, took, "handled")
            log.log(
                level, "%s handled %s in %.3f s", self.group.name or "a handler", delivery.message.id, took, extra=told
            )

    def _failed(self, delivery: Delivery, took: float, error: BaseException) -> None:
        outcome = self.group.outcome(delivery, error)
        level = LEVELS.get(outcome, logging.WARNING)
        if log.isEnabledFor(level):
            told = self._told(delivery, took, outcome) | {"error": type(error).__name__, "detail": text_of(error)}
            cause = users(error) if level > logging.INFO else None
            words = self.group.name or "a handler", outcome, delivery.message.id, told["error"], told["detail"]
            log.log(level, "%s: %s, id %s: %s: %s", *words, extra=told, exc_info=cause)

    def _told(self, delivery: Delivery, took: float, outcome: str) -> dict[str, Any]:
        message = delivery.message
        return {
            "group": self.group.name,
            "topic": message.topic,
            "message_id": message.id,
            "correlation_id": message.correlation_id,
            "attempt": delivery.attempt,
            "outcome": outcome,
            "seconds": round(took, 6),
        }


class JSONFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message, whatever ``extra`` held, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in USUAL and value is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()
