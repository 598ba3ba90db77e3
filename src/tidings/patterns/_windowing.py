"""Which windows a time is in, and what is kept of those that are open: one record for each key."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import lcm
from typing import Any

import msgspec
from msgspec import Struct

from tidings.kernel.codec import encode
from tidings.kernel.errors import Duration, InvalidOption
from tidings.kernel.message import seconds


class Tumbling(Struct, frozen=True):
    """One after the other, each ``size`` long; ``offset``: where they begin, after the epoch (UTC)."""

    size: Duration
    offset: Duration = 0.0


class Sliding(Struct, frozen=True):
    """Each ``size`` long, a new one ``every`` so long: a time is in several."""

    size: Duration
    every: Duration


class Session(Struct, frozen=True):
    """From the first message to the last that came less than ``gap`` after another."""

    gap: Duration


class Since(Struct, frozen=True):
    """From the first message of a key on, for ``size``; then from its next: a deadline for what has begun.

    The first is the first to come. What is from before it joins it, if it is within the lateness, and is late if not.
    """

    size: Duration


class Window(Struct, frozen=True):
    """A window that is over: whose, and from when until when, in event time (Unix seconds; ``end`` is outside)."""

    key: str
    start: float
    end: float


class Open(Struct, array_like=True):
    """A window that is open. ``body`` and ``kind``: its total as stored, until it is looked at."""

    start: float
    end: float
    body: bytes = b""
    kind: str = ""


class Held:
    """The open windows of one key, in work."""

    __slots__ = ("high", "open", "totals")

    def __init__(self, record: bytes | None) -> None:
        self.high, self.open = _decode(record) if record else (float("-inf"), [])
        self.totals: dict[int, Any] = {}  # by the identity of an open window

    def total(self, window: Open, decode: Callable[[bytes, str], Any]) -> Any:
        if id(window) not in self.totals:
            self.totals[id(window)] = decode(window.body, window.kind) if window.kind else None
        return self.totals[id(window)]

    def record(self) -> bytes:
        for window in self.open:
            if id(window) in self.totals:
                window.body, window.kind = encode(self.totals[id(window)])
        return _encode((self.high, self.open))

    @property
    def due(self) -> float | None:
        """When the first of them ends."""
        return min((window.end for window in self.open), default=None)


Find = Callable[[Held, float, float], list[Open]]
"""From a key's windows, a time and the watermark to the windows that the time belongs to.

Windows that are over by the watermark are closed, even if they are still held: or where batches end would matter.
"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[float, list[Open]]).decode


def places(kind: Tumbling | Sliding) -> Find:
    """A function that finds, or opens, the windows of a time that end after a watermark."""
    size = _positive(kind.size, "size")
    every = size if isinstance(kind, Tumbling) else _positive(kind.every, "every")
    offset = seconds(kind.offset, "offset") if isinstance(kind, Tumbling) else 0.0
    if every > size:
        raise InvalidOption(f"{kind!r} has gaps between its windows", mend="every= at most size=")
    parts = [_fraction(each) for each in (size, every, offset)]
    unit = lcm(*(part.denominator for part in parts))
    span, step, first = (int(part * unit) for part in parts)

    def border(n: int, after: int = 0) -> float:
        # from whole numbers: 0.1 is not exact in binary, and borders that should be one would be two
        return (first + n * step + after) / unit

    def find(held: Held, at: float, watermark: float) -> list[Open]:
        above, below = at.as_integer_ratio()
        n = (above * unit - first * below) // (step * below)
        while border(n + 1) <= at:  # as rounded
            n += 1
        found: list[Open] = []
        while (end := border(n, span)) > at:
            if end > watermark:
                found.append(_known(held, border(n), end))
            n -= 1
        return found

    return find


def _fraction(value: float) -> Fraction:
    """What was meant by a duration: 1/10 for 0.1."""
    return Fraction(value).limit_denominator(10**9)


def _known(held: Held, start: float, end: float) -> Open:
    for window in reversed(held.open):
        if window.start == start:
            return window
    held.open.append(window := Open(start, end))
    return window


def beginning(kind: Since) -> Find:
    """The same for windows that a first message begins."""
    size = _positive(kind.size, "size")

    def find(held: Held, at: float, watermark: float) -> list[Open]:
        for window in held.open:  # those that are not over are in order of time, and apart from each other
            if at < window.end and window.end > watermark:
                return [window] if at >= min(window.start, watermark) else []
        if at + size <= watermark:
            return []
        held.open.append(window := Open(at, at + size))
        return [window]

    return find


def joining(kind: Session, merge: Callable[[Any, Any], Any], decode: Callable[[bytes, str], Any]) -> Find:
    """The same for sessions: those that a time brings together become one."""
    gap = _positive(kind.gap, "gap")

    def find(held: Held, at: float, watermark: float) -> list[Open]:
        near = sorted((w for w in held.open if w.start - gap < at < w.end and w.end > watermark), key=lambda w: w.start)
        if not near:
            if at + gap <= watermark:
                return []
            held.open.append(window := Open(at, at + gap))
            return [window]
        first, *rest = near
        first.start, first.end = min(first.start, at), max(at + gap, *(window.end for window in near))
        for other in rest:
            total = held.total(first, decode)
            held.totals[id(first)] = merge(total, held.total(other, decode))
            del held.totals[id(other)]  # an identity may be used again
            held.open.remove(other)
        return [first]

    return find


def _positive(duration: Duration, name: str) -> float:
    value = seconds(duration, name)
    if value < 1e-6:
        raise InvalidOption(f"{name} cannot be {duration!r}", mend='a duration of at least 1 µs: "5m"')
    return value
