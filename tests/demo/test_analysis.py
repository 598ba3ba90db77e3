"""What the demo computes."""

from __future__ import annotations

import random

import pytest

from tidings.demo.analysis import ENOUGH, SERIES, WINDOW, Minutes, Recent, saliency, surprise
from tidings.demo.sensors import Reading


def reading(value: float, time: float, device: str = "core-0") -> Reading:
    return Reading("h", device, "load", "%", value, time)


def noise(count: int, mean: float = 5.0, spread: float = 2.0) -> list[float]:
    source = random.Random(7)
    return [source.gauss(mean, spread) for _ in range(count)]


def test_recent_values_come_oldest_first_and_only_so_many() -> None:
    recent = Recent(3)
    assert [recent.add("a", value) for value in (1.0, 2.0, 3.0, 4.0)][-1] == [2.0, 3.0, 4.0]
    assert recent.add("b", 9.0) == [9.0]


def test_recent_forgets_the_series_longest_silent() -> None:
    recent = Recent(2)
    recent.add("busy", 1.0)
    for index in range(SERIES + 5):
        recent.add(f"s{index}", 0.0)
        recent.add("busy", 2.0)
    assert len(recent.values) == SERIES
    assert "busy" in recent.values
    assert "s0" not in recent.values


def test_a_minute_comes_out_when_the_next_begins() -> None:
    minutes = Minutes()
    assert minutes.add([reading(1.0, 60.5), reading(4.0, 61.0), reading(7.0, 119.9)]) == []
    ((last, minute),) = minutes.add([reading(9.0, 120.0)])
    assert (last.value, minute.series, minute.start) == (7.0, "core-0.load", 60.0)
    assert (minute.count, minute.least, minute.mean, minute.most) == (3, 1.0, 4.0, 7.0)
    assert len(minutes.open) == 1


def test_a_series_that_fell_silent_gets_its_minute_too() -> None:
    minutes = Minutes()
    minutes.add([reading(1.0, 10.0, "gone"), reading(2.0, 10.0)])
    ended = minutes.add([reading(3.0, 130.0)])
    assert sorted(minute.series for _, minute in ended) == ["core-0.load", "gone.load"]


@pytest.mark.parametrize(
    ("values", "least", "most"),
    [
        pytest.param([5.0] * WINDOW, 0.0, 0.0, id="constant"),
        pytest.param(noise(WINDOW), 0.0, 4.9, id="noise"),
        pytest.param([*noise(WINDOW - 1), 80.0], 10.0, 50.0, id="spike"),
        pytest.param([*noise(WINDOW - 3), 80.0, 81.0, 79.0], 0.0, 10.0, id="what goes on is less of a surprise"),
        pytest.param([60.0 if index % 8 == 7 else 5.0 for index in range(WINDOW)], 0.0, 4.9, id="a steady beat"),
        pytest.param([60.0 if index % 7 == 4 else 5.0 for index in range(WINDOW)], 0.0, 4.9, id="another beat"),
        pytest.param([*noise(ENOUGH - 2), 80.0], 0.0, 0.0, id="too few to tell"),
    ],
)
def test_surprise(values: list[float], least: float, most: float) -> None:
    assert least <= surprise(values, 2.0) <= most


def test_what_wanders_below_the_floor_is_no_surprise() -> None:
    values = [*noise(WINDOW - 1, 1000.0, 10.0), 20_000.0]
    assert surprise(values, 50_000.0) < 1 < surprise(values, 100.0)


def test_saliency_peaks_where_the_signal_breaks() -> None:
    values = [5.0] * 40 + [50.0] + [5.0] * 23
    salience = saliency(values)
    assert salience.index(max(salience)) == 40
