"""Subjects whose figures are known: each measurement takes the next number of a file that all processes share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Figure, Scenario, Subject, timed_figures
from bench.histogram import Timed, timed

LOG, AROUND = "FAKES_LOG", "FAKES_AROUND"


def turn(name: str) -> int:
    """Which measurement of all this is, from 1; it is written down under ``name``."""
    path = Path(os.environ[LOG])
    with path.open("a") as log:
        log.write(f"{name}\n")
    return len(path.read_text().splitlines())


def ours() -> Sequence[float]:
    return float(turn("ours")), 10.0


def theirs() -> Sequence[float]:
    return float(turn("theirs")), 4.0


def broken() -> Sequence[float]:
    turn("broken")
    raise LookupError("no server\nnowhere")


def grown(size: int) -> Callable[[], Sequence[float]]:
    return lambda: (float(size * turn(f"grown {size}")),)


def late() -> Timed:
    turn("late")
    return timed([n / 1000 for n in range(1, 1001)], 7.0)


@contextmanager
def around() -> Iterator[None]:
    os.environ[AROUND] = "7"
    try:
        yield
    finally:
        del os.environ[AROUND]


def within() -> Sequence[float]:
    return (float(os.environ[AROUND]),)


def no_notes() -> str:
    raise LookupError("lost")


def scenario(quick: bool) -> Scenario:
    figures = Figure("rate", "msg/s", at_least=3.0), Figure("cost", "µs", ratio_to=("theirs",), ratio_at_most=2.0)
    return Scenario(
        (
            Subject("ours", figures, ours),
            Subject("theirs", (Figure("rate", "msg/s"), Figure("cost", "µs")), theirs),
            Subject("broken", (Figure("rate", "msg/s"),), broken),
            Subject("10", (Figure("size", "MiB"),), grown(10), series="file", at=10.0),
            Subject("100", (Figure("size", "MiB"),), grown(100), series="file", at=100.0, rounds=1),
            Subject("late", (*timed_figures(p50=600.0, p99=900.0), Figure("others", "")), late),
            Subject("within", (Figure("rate", "msg/s"),), within, rounds=1),
        ),
        rounds=3,
        notes=no_notes if quick else lambda: "a note",
        grows="messages",
        around=around,
    )
