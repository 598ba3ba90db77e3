"""Delays counted in logarithmic buckets: small enough to keep all of them, fine enough to plot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct

FIRST = 1e-6  # seconds: where bucket 0 ends
STEPS = 16  # buckets an octave: each is 4.4 % wide


class Histogram(Struct, frozen=True):
    """How many delays fell into each bucket; bucket k ends at 1 µs × 2^(k/16)."""

    counts: dict[int, int]

    def quantile(self, part: float) -> float:
        """Seconds that ``part`` (0 to 1) of all delays did not exceed, to the width of a bucket."""
        left = part * sum(self.counts.values())
        for bucket in sorted(self.counts):
            left -= self.counts[bucket]
            if left <= 0:
                return end_of(bucket)
        return end_of(max(self.counts))


class Timed(Struct, frozen=True):
    """What a measurement of delays yields: its figures (``TIMED`` of ``harness.py``, then others), and all delays."""

    values: tuple[float, ...]
    histogram: Histogram


def end_of(bucket: int) -> float:
    return float(FIRST * 2 ** (bucket / STEPS))


def counted(delays: Iterable[float]) -> Histogram:
    """Delays in seconds; what is less than 1 µs, or none, counts as 1 µs."""
    return Histogram(Counter(max(0, math.ceil(math.log2(max(delay, FIRST) / FIRST) * STEPS)) for delay in delays))


def together(histograms: Iterable[Histogram]) -> Histogram:
    """The delays of several rounds."""
    total = Counter[int]()
    for histogram in histograms:
        total.update(histogram.counts)
    return Histogram(total)


def timed(delays: Sequence[float], *more: float) -> Timed:
    """p50, p99, p99.9 and the largest of delays in seconds, as milliseconds; then ``more``. Raises on no delays."""
    if not delays:
        raise RuntimeError("nothing arrived")
    ordered = sorted(delays)
    parts = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1e3 for part in (0.5, 0.99, 0.999, 1.0)]
    return Timed((*parts, *more), counted(delays))
