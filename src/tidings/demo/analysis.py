"""What the demo computes, without any messaging: ordinary functions and objects, tested like any others."""

from __future__ import annotations

from cmath import exp, phase, pi
from collections import deque
from collections.abc import Sequence
from math import log
from statistics import fmean, median

from msgspec import Struct

from .sensors import Reading

WINDOW = 96  # readings a value is judged by
ENOUGH = 12  # fewer say nothing
SERIES = 1000  # remembered at most


class Recent:
    """The last values of each series; of too many series, those longest silent are forgotten."""

    def __init__(self, size: int = WINDOW) -> None:
        self.size = size
        self.values: dict[str, deque[float]] = {}

    def add(self, series: str, value: float) -> list[float]:
        """Remember a value; returns it behind those before it."""
        values = self.values.pop(series, None) or deque(maxlen=self.size)
        self.values[series] = values
        values.append(value)
        if len(self.values) > SERIES:
            del self.values[next(iter(self.values))]
        return list(values)


class Minute(Struct, frozen=True):
    """One series in one minute."""

    series: str
    unit: str
    start: float
    count: int
    least: float
    mean: float
    most: float


class Minutes:
    """Readings in, whole minutes out."""

    def __init__(self) -> None:
        self.open: dict[tuple[float, str], list[Reading]] = {}

    def add(self, readings: Sequence[Reading]) -> list[tuple[Reading, Minute]]:
        """The minutes that these readings end, each with its last reading."""
        for reading in readings:
            self.open.setdefault((reading.time // 60 * 60, reading.series), []).append(reading)
        newest = max(start for start, _ in self.open)
        ended = [key for key in self.open if key[0] < newest]
        return [_minute(start, self.open.pop((start, series))) for start, series in ended]


def _minute(start: float, readings: Sequence[Reading]) -> tuple[Reading, Minute]:
    last, values = readings[-1], [reading.value for reading in readings]
    mean = round(fmean(values), 2)
    return last, Minute(last.series, last.unit, start, len(values), min(values), mean, max(values))


def surprise(values: Sequence[float], floor: float) -> float:
    """How much the last value deserves a look: 0 not at all, 5 is worth a note, 16 hard to miss.

    It must be far from the usual (a robust z-score) *and* unexpected as a signal (its spectral residual), so that
    neither noise nor a steady beat raises an alarm. ``floor``: how much such values may spread without meaning.
    """
    if len(values) < ENOUGH:
        return 0.0
    usual = median(values)
    spread = 1.4826 * median(abs(value - usual) for value in values)
    salience = saliency(values)
    unexpected = 4 * salience[-1] / sum(salience)  # of a lone spike: 1
    return float(abs(values[-1] - usual) / max(spread, floor) * min(1.0, unexpected**2))


def saliency(values: Sequence[float]) -> list[float]:
    """The spectral residual (Ren et al., 2019): the signal without what its own spectrum leads one to expect.

    By the definition of the Fourier transform, so in n² steps: this is what keeps the demo's processes busy.
    """
    n, mean = len(values), fmean(values)
    turns = [exp(-2j * pi * k / n) for k in range(n)]
    spectrum = [sum((values[t] - mean) * turns[k * t % n] for t in range(n)) for k in range(n)]
    strongest = max(map(abs, spectrum)) or 1.0
    levels = [log(abs(line) / strongest + 0.01) for line in spectrum]
    usual = [fmean(levels[(k + near) % n] for near in range(-2, 3)) for k in range(n)]
    residual = [exp(levels[k] - usual[k] + 1j * phase(spectrum[k])) for k in range(n)]
    return [abs(sum(residual[k] * turns[-k * t % n] for k in range(n))) / n for t in range(n)]
