"""The only place that decides a message's fate: pure tables, no I/O, no clock of its own.

``decide`` turns what a handler did into one of five fates:

=========  ====================================================================
``Ack``      done
``Wait``     again in place: the key's lane waits, the slot does not
``Retry``    back to the transport, with the number of failures
``Release``  back to the transport, nothing counted
``Dead``     to the dead letters, with the reason
=========  ====================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from random import random

from msgspec import Struct
from msgspec.structs import force_setattr

from .errors import Defer, DeliveryError, Duration, InvalidOption, Reject, Skip, Undecodable, WrongReturn, text_of
from .errors import Retry as RetryAsked
from .message import seconds
from .transport import ACK, Ack, Delivery, Release, Retry

IN_PLACE = 1.0  # seconds; a shorter wait happens in place
DEFER_LIMIT = 7 * 86_400.0  # seconds; a message deferred for longer is dead


def _check(policy: Struct, rules: str, good: Callable[[], bool], *durations: str) -> None:
    """Turn ``durations`` into seconds; raises ``InvalidOption`` unless all is good."""
    for name in durations:
        force_setattr(policy, name, seconds(getattr(policy, name), name))
    with suppress(TypeError):  # "5" is no number
        if good():
            return
    raise InvalidOption(f"{policy!r} means nothing", mend=rules)


class Backoff(Struct, frozen=True, kw_only=True):
    """When a failed message is tried again: ``first × factor^n`` up to ``limit``, plus up to ``jitter`` of it.

    ``attempts`` counts runs, the first included. Exceptions in ``give_up`` go to the dead letters at once.
    """

    attempts: int = 8
    first: Duration = 0.2
    factor: float = 4.0
    limit: Duration = 600.0
    jitter: float = 0.25
    give_up: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        _check(self, "attempts >= 1, factor >= 1, 0 <= jitter <= 1, give_up=(SomeError,)", self._good, "first", "limit")

    def _good(self) -> bool:
        return self.attempts >= 1 <= self.factor and 0 <= self.jitter <= 1 and not isinstance(None, self.give_up)

    def delay(self, failures: int) -> float:
        """Seconds to wait after the ``failures``-th failure."""
        first, limit = float(self.first), float(self.limit)  # type: ignore[arg-type]
        return min(first * self.factor ** min(failures - 1, 64), limit) * (1.0 + self.jitter * random())


class Wait(Struct, frozen=True):
    """Again in place after ``delay`` seconds."""

    delay: float
    failures: int


class Dead(Struct, frozen=True):
    """To the dead letters of the group."""

    reason: str


Fate = Ack | Wait | Retry | Release | Dead


class Kind(Enum):
    """What a handler's exception says about its message."""

    FAILED = "failed"
    REJECTED = "rejected"
    UNDECODABLE = "undecodable"
    WRONG_RETURN = "wrong return type"
    DEFERRED = "deferred"
    SKIPPED = "skipped"


_KINDS = {Skip: Kind.SKIPPED, Defer: Kind.DEFERRED, Reject: Kind.REJECTED, Undecodable: Kind.UNDECODABLE}
_KINDS |= {WrongReturn: Kind.WRONG_RETURN, DeliveryError: Kind.REJECTED}


def classify(error: BaseException, backoff: Backoff) -> Kind:
    """The kind of an exception; everything unknown is a failure."""
    told = next((kind for known, kind in _KINDS.items() if isinstance(error, known)), None)
    return told or (Kind.REJECTED if isinstance(error, backoff.give_up) else Kind.FAILED)


def decide(error: BaseException, delivery: Delivery, backoff: Backoff, *, broken: bool, room: bool, now: float) -> Fate:
    """The fate of a delivery whose handler raised ``error``.

    ``broken``: the breaker is open, so a failure says nothing about the message. ``room``: it may wait in place.
    ``now``: Unix seconds. The handler's other outcome, returning, is always ``Ack``.
    """
    kind = classify(error, backoff)
    if kind is Kind.SKIPPED:
        return ACK
    if kind is Kind.DEFERRED:
        if delivery.message.time and now - delivery.message.time > DEFER_LIMIT:
            return Dead("deferred for too long")
        return Release(seconds(error.delay, "delay"))  # type: ignore[attr-defined]
    if kind is not Kind.FAILED:
        return Dead(kind.value)
    if broken:
        return Release()
    failures = delivery.failures + 1
    if failures + delivery.crashes >= backoff.attempts:
        return Dead("failed")
    asked = error.delay if isinstance(error, RetryAsked) else None
    delay = backoff.delay(failures) if asked is None else seconds(asked, "delay")
    if delay <= IN_PLACE and room:
        return Wait(delay, failures)
    return Retry(delay, failures, f"{type(error).__name__}: {text_of(error)}"[:200])


def before(delivery: Delivery, backoff: Backoff, now: float) -> Fate | None:
    """The fate of a delivery that must not start: expired, or crashed too often. ``None``: it may."""
    expires = delivery.message.expires_at
    if expires is not None and expires <= now:
        return Dead("expired") if delivery.failures or delivery.crashes else ACK
    return Dead("crashed" if delivery.crashes else "failed") if delivery.attempt > backoff.attempts else None


class Breaker(Struct, kw_only=True):
    """Stops a group whose messages nearly all fail: ``ratio`` of at least ``least`` deliveries in ``window`` seconds.

    Closed, it counts. Open, it pauses for ``pause`` seconds (doubled after each failed probe, up to ``limit``), then
    lets one message through: a success closes it. What only concerns one message (``Reject``, undecodable) is not
    counted.
    """

    ratio: float = 0.5
    least: int = 20
    window: float = 60.0
    pause: float = 1.0
    limit: float = 60.0
    until: float | None = None  # open: no probe before
    pauses: int = 0
    buckets: list[tuple[float, int, int]] = []  # msgspec copies it

    def __post_init__(self) -> None:
        _check(self, "0 < ratio <= 1 <= least", lambda: 0 < self.ratio <= 1 <= self.least, "window", "pause", "limit")

    @property
    def open(self) -> bool:
        return self.until is not None

    def wait(self, now: float) -> float:
        """Seconds until a message may start; 0 when closed, or when a probe is due."""
        return max(0.0, self.until - now) if self.until is not None else 0.0

    def record(self, succeeded: int, failed: int, now: float) -> bool:
        """Count what has ended; True when this opens the breaker, or keeps it open after a probe."""
        if self.until is not None:
            return self._probed(succeeded, failed, now)
        if not self.buckets or now - self.buckets[-1][0] >= self.window / 6:
            self.buckets = [*(b for b in self.buckets if now - b[0] < self.window), (now, 0, 0)]
        began, good, bad = self.buckets[-1]
        self.buckets[-1] = (began, good + succeeded, bad + failed)
        bad = sum(b[2] for b in self.buckets)
        total = bad + sum(b[1] for b in self.buckets)
        if failed and total >= self.least and bad >= self.ratio * total:
            self.until, self.pauses = now + self.pause, 1
            return True
        return False

    def _probed(self, succeeded: int, failed: int, now: float) -> bool:
        if self.wait(now):
            return False
        if failed:
            self.until, self.pauses = now + min(self.pause * 2**self.pauses, self.limit), self.pauses + 1
        elif succeeded:
            self.until, self.pauses, self.buckets = None, 0, []
        return failed > 0
