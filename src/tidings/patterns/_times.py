"""The last times that something took, and what most of them are below."""

from __future__ import annotations

from collections import deque

LAST = 1_000


class Times:
    """Seconds, of the last 1,000."""

    def __init__(self) -> None:
        self.last: deque[float] = deque(maxlen=LAST)

    def add(self, took: float) -> None:
        """One more."""
        self.last.append(took)

    def below(self, share: float) -> float | None:
        """The percentile: seconds that this share of them is at most; None while there are none."""
        times = sorted(self.last)
        return times[int(len(times) * share)] if times else None
