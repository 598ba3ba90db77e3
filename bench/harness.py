"""What every scenario shares: subjects and their figures, interleaved rounds, medians with their spread, ratios.

Every single measurement runs in a process of its own (``python -m bench.measure``), so that none inherits the heap, the
threads or the caches of another; rounds go A B A B …, so that a drift of the machine touches all subjects alike. A
subject that fails is reported, and the others go on.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any, Literal

import msgspec
from msgspec import Struct

from .histogram import Histogram, Timed
from .machine import cpu_times, others_share

ROOT = Path(__file__).parents[1]
SCENARIOS = {  # name: module; in the order in which they run
    "imports": "bench.imports",
    "loop": "bench.loop",
    "middleware": "bench.middleware",
    "sqlite": "bench.sqlite",
    "peers": "bench.beside",
    "engines": "bench.engines",
    "records": "bench.records",
    "aggregator": "bench.patterns_aggregator",
    "bridge": "bench.patterns_bridge",
    "fanout": "bench.fanout",
    "payload": "bench.sizes",
    "processes": "bench.processes",
    "latency": "bench.latency",
    "headofline": "bench.headofline",
    "idle": "bench.idle",
    "growth": "bench.growth",
    "backlog": "bench.backlog",
    "serve": "bench.serving.web",
    "rpc": "bench.serving.rpc",
    "devices": "bench.serving.devices",
}


class Figure(Struct, frozen=True):
    """One number a subject yields. ``ratio_to`` names subjects whose same figure it is compared with.

    ``among``: who these are. A figure that is judged beside several circles stands there once for each.
    """

    name: str
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    ratio_to: tuple[str, ...] = ()
    ratio_at_most: float | None = None  # beside each of them
    ratio_at_least: float | None = None
    among: str = ""


class Subject(Struct, frozen=True):
    """One thing measured: ``measure`` returns a number for each of its figures.

    ``series``: the panel of bars, or the line, it belongs to in a plot. ``at``: its place on the axis of what grows.
    ``rounds``: at most so many, where one takes long.
    """

    name: str
    figures: tuple[Figure, ...]
    measure: Callable[[], Sequence[float] | Timed]
    series: str = ""
    at: float | None = None
    rounds: int | None = None


class Scenario(Struct, frozen=True):
    """Subjects that belong together. ``grows``: what ``at`` counts. ``notes``: told beside the figures, no timing.

    ``around``: what all measurements need, such as servers; they find it in the environment. ``patience``: seconds a
    measurement may take.
    """

    subjects: tuple[Subject, ...]
    rounds: int = 5
    notes: Callable[[], str] | None = None
    grows: str = ""
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    patience: float = 900.0


class Measurement(Struct):
    """What one process measured: its figures, and what it used for that, preparation included.

    ``cpu``: seconds, user and system, with its children. ``rss``: peak MiB of the largest of these processes.
    """

    values: list[float]
    cpu: float
    rss: float
    histogram: Histogram | None = None


class Measured(Struct):
    """A subject with all its rounds. No rounds: ``error`` says why it could not be measured."""

    name: str
    figures: tuple[Figure, ...]
    series: str = ""
    at: float | None = None
    rounds: list[Measurement] = []
    error: str = ""


class Report(Struct):
    """A scenario, measured; ``seconds`` is how long that took."""

    scenario: str
    grows: str
    subjects: list[Measured]
    notes: list[str]
    seconds: float = 0.0


class Row(Struct):
    """A line of the table: a figure of a subject, over all rounds."""

    subject: Measured
    figure: Figure
    values: list[float]
    ratios: dict[str, float]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def closest(self) -> str:
        """The one of those it is compared with that is nearest to its bound, or beyond it."""
        choose = max if self.figure.ratio_at_most is not None else min
        return choose(self.ratios, key=self.ratios.__getitem__)

    @property
    def verdict(self) -> Literal["", "ok", "MISSED", "failed", "unknown"]:
        """``unknown``: there is nothing to compare it with."""
        figure = self.figure
        if not self.values:
            return "failed"
        bounded = figure.ratio_at_most is not None or figure.ratio_at_least is not None
        if bounded and not self.ratios:
            return "unknown"
        met = [
            *([self.median <= figure.at_most] if figure.at_most is not None else ()),
            *([self.median >= figure.at_least] if figure.at_least is not None else ()),
            *(ratio <= figure.ratio_at_most for ratio in self.ratios.values() if figure.ratio_at_most is not None),
            *(ratio >= figure.ratio_at_least for ratio in self.ratios.values() if figure.ratio_at_least is not None),
        ]
        return "" if not met else "ok" if all(met) else "MISSED"


def timed_figures(*, p50: float | None = None, p99: float | None = None) -> tuple[Figure, ...]:
    """The figures of ``Timed``, with what is budgeted for two of them."""
    first = Figure("p50", "ms", at_most=p50), Figure("p99", "ms", at_most=p99)
    return *first, Figure("p99.9", "ms"), Figure("max", "ms")


def scenario(module: str, quick: bool) -> Scenario:
    """The scenario of a module; ``quick``: small, to see that it runs."""
    found: Scenario = importlib.import_module(module).scenario(quick)
    return found


def measure(module: str, subject: str, quick: bool, patience: float) -> Measurement | str:
    """One measurement in a fresh process; or why there is none."""
    command = [sys.executable, "-m", "bench.measure", module, subject, *(["--quick"] if quick else [])]
    with tempfile.TemporaryDirectory(prefix="tidings-bench-", dir=os.environ.get("BENCH_DISK")) as temporary:
        environment = {**os.environ, "BENCH_FOLDER": temporary, "PYTHONPATH": python_path()}
        environment.pop("TIDINGS_URL", None)
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=patience, check=False
            )
        except subprocess.TimeoutExpired:
            return f"no result within {patience:g} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    return msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=Measurement)


def python_path() -> str:
    """Where a measurement finds ``bench``; what was given stays, so that another checkout can be measured."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def run(name: str, module: str, quick: bool, rounds: int | None, told: Callable[[str], None]) -> Report:
    """All rounds of a scenario."""
    began, before = time.monotonic(), cpu_times()
    chosen = scenario(module, quick)
    subjects = [Measured(s.name, s.figures, s.series, s.at) for s in chosen.subjects]
    total = rounds or (1 if quick else chosen.rounds)
    with chosen.around():
        for number in range(1, total + 1):
            for subject, measured in zip(chosen.subjects, subjects, strict=True):
                if measured.error or number > (subject.rounds or total):
                    continue
                told(f"{name}: round {number} of {total}: {subject.name}")
                result = measure(module, subject.name, quick, chosen.patience)
                if isinstance(result, str):
                    measured.error = result
                else:
                    measured.rounds.append(result)
        own = [_asked(chosen.notes)] if chosen.notes else []
    shared = f"others used {max(0.0, others_share(before, cpu_times())):.0f} % of the processors meanwhile"
    return Report(name, chosen.grows, subjects, [shared, *own], time.monotonic() - began)


def _asked(notes: Callable[[], str]) -> str:
    """What was measured must not be lost because of them."""
    try:
        return notes()
    except Exception as error:
        return f"no notes: {type(error).__name__}: {error}"


def rows(report: Report) -> list[Row]:
    """A row for each figure of each subject; its ratios are those of medians within this run."""
    found = [
        Row(subject, figure, [one.values[index] for one in subject.rounds], {})
        for subject in report.subjects
        for index, figure in enumerate(subject.figures)
    ]
    middle = {(row.subject.name, row.figure.name, row.figure.unit): row.median for row in found if row.values}
    for row in found:
        beside = {name: middle.get((name, row.figure.name, row.figure.unit)) for name in row.figure.ratio_to}
        if row.values:
            row.ratios = {name: row.median / value for name, value in beside.items() if value}
    return found
