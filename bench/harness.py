"""What every scenario shares: interleaved rounds, medians with their spread, a table, a record.

Every single measurement runs in a process of its own (``python -m bench.measure``), so that none inherits the heap, the
threads or the caches of another; rounds go A B A B …, so that a drift of the machine touches all subjects alike.
"""

from __future__ import annotations

import importlib
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

ROOT = Path(__file__).parents[1]
SCENARIOS = ("loop", "sqlite", "latency", "headofline", "idle", "imports")
PATIENCE = 300.0  # seconds a measurement may take


class Figure(Struct, frozen=True):
    """One number a subject yields. ``ratio_to`` names the subject whose same figure it is compared with."""

    name: str
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    ratio_to: str = ""
    ratio_at_most: float | None = None


class Subject(Struct, frozen=True):
    """One thing measured: ``measure`` returns a number for each of its figures."""

    name: str
    figures: tuple[Figure, ...]
    measure: Callable[[], Sequence[float]]


class Scenario(Struct, frozen=True):
    """Subjects that belong together; ``notes``: what is reported beside the figures, and is no timing."""

    subjects: tuple[Subject, ...]
    rounds: int = 5
    notes: Callable[[], str] | None = None


class Row(Struct):
    """A line of the table: a figure of a subject, over all rounds. No ``values``: it could not be measured."""

    scenario: str
    subject: str
    figure: Figure
    values: list[float]
    ratio: float | None = None
    error: str = ""

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def verdict(self) -> Literal["", "ok", "MISSED", "failed"]:
        figure = self.figure
        if not self.values:
            return "failed"
        met = [
            *([self.median <= figure.at_most] if figure.at_most is not None else ()),
            *([self.median >= figure.at_least] if figure.at_least is not None else ()),
            *([self.ratio <= figure.ratio_at_most] if figure.ratio_at_most is not None and self.ratio else ()),
        ]
        return "" if not met else "ok" if all(met) else "MISSED"


def scenario(name: str, quick: bool) -> Scenario:
    """A scenario by name; ``quick``: small, to see that it runs."""
    found: Scenario = importlib.import_module(f"bench.{name}").scenario(quick)
    return found


def measure(name: str, subject: str, quick: bool) -> list[float] | str:
    """One measurement in a fresh process; or why there is none."""
    command = [sys.executable, "-m", "bench.measure", name, subject, *(["--quick"] if quick else [])]
    with tempfile.TemporaryDirectory(prefix="tidings-bench-", dir=folder()) as temporary:
        environment = {**os.environ, "BENCH_FOLDER": temporary, "PYTHONPATH": python_path()}
        environment.pop("TIDINGS_URL", None)
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            return f"no result within {PATIENCE:g} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    return msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=list[float])


def python_path() -> str:
    """Where a measurement finds ``bench``; what was given stays, so that another checkout can be measured."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def folder() -> str | None:
    """Where bus files go: ``BENCH_DISK``, or the temporary folder; a RAM disk would flatter every figure."""
    return os.environ.get("BENCH_DISK")


def run(name: str, quick: bool, rounds: int | None, told: Callable[[str], None]) -> tuple[list[Row], str]:
    """All rounds of a scenario: its rows, and its notes."""
    chosen = scenario(name, quick)
    rows = {s.name: [Row(name, s.name, figure, []) for figure in s.figures] for s in chosen.subjects}
    total = rounds or (1 if quick else chosen.rounds)
    before = _cpu()
    for number in range(1, total + 1):
        for subject in chosen.subjects:
            told(f"{name}: round {number} of {total}: {subject.name}")
            result = measure(name, subject.name, quick)
            for index, row in enumerate(rows[subject.name]):
                if isinstance(result, str):
                    row.error = result
                else:
                    row.values.append(result[index])
    for group in rows.values():
        for index, row in enumerate(group):
            beside = rows.get(row.figure.ratio_to)
            if beside and beside[index].values and row.values:
                row.ratio = row.median / beside[index].median
    shared = f"others used {max(0.0, others_share(before, _cpu())):.0f} % of the processors meanwhile"
    notes = "\n".join((shared, *([chosen.notes()] if chosen.notes else ())))
    return [row for group in rows.values() for row in group], notes


class Cpu(NamedTuple):
    """Seconds of processor time since the start: all there was, what all used, and what our children did."""

    there: float
    used: float
    ours: float


def _cpu() -> Cpu:
    """Linux only; elsewhere nobody is seen."""
    stat, mine = Path("/proc/stat"), resource.getrusage(resource.RUSAGE_CHILDREN)
    ours = mine.ru_utime + mine.ru_stime
    if not stat.exists():
        return Cpu(ours, ours, ours)
    ticks = [int(tick) / os.sysconf("SC_CLK_TCK") for tick in stat.read_text().splitlines()[0].split()[1:9]]
    idle = ticks[3] + ticks[4]  # and waiting for the disk
    return Cpu(sum(ticks), sum(ticks) - idle, ours)


def others_share(before: Cpu, after: Cpu) -> float:
    """Per cent of all processor time that went to somebody else: above a few, the figures are only provisional."""
    there, used, ours = (late - early for early, late in zip(before, after, strict=True))
    return 100 * (used - ours) / there if there else 0.0


# -- showing and keeping


def number(value: float) -> str:
    """Three significant digits, thousands as k."""
    if value >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cells(row: Row) -> tuple[str, ...]:
    figure = row.figure
    spread = f"{number(min(row.values))}–{number(max(row.values))}" if row.values else row.error
    budget = f"≤ {number(figure.at_most)}" if figure.at_most is not None else ""
    budget = f"≥ {number(figure.at_least)}" if figure.at_least is not None else budget
    budget = f"≤ {figure.ratio_at_most:g} ×" if figure.ratio_at_most is not None else budget
    ratio = f"{row.ratio:.2f} × {figure.ratio_to}" if row.ratio is not None else ""
    middle = number(row.median) if row.values else "–"
    return row.subject, f"{figure.name} {figure.unit}".strip(), middle, spread, budget, row.verdict, ratio


HEADS = ("subject", "figure", "median", "min–max", "budget", "", "beside")


def table(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """The rows as text, in columns."""
    body = [cells(row) for row in rows]
    if markdown:
        lines = [HEADS, tuple("---" for _ in HEADS), *body]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[column]) for line in (HEADS, *body)) for column in range(len(HEADS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (HEADS, *body)
    )


def machine() -> dict[str, str]:
    """What the figures depend on."""
    import apsw
    import pydantic

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return {
        "python": platform.python_version(),
        "msgspec": msgspec.__version__,
        "pydantic": pydantic.VERSION,
        "apsw": apsw.apsw_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": f"{os.cpu_count()} × {(models or [platform.machine()])[0]}",
        "disk": _disk(Path(folder() or tempfile.gettempdir())),
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "commit": _commit(),
    }


def _disk(path: Path) -> str:
    """The file system that bus files are on."""
    mounts = Path("/proc/mounts")
    lines = [line.split() for line in mounts.read_text().splitlines()] if mounts.exists() else []
    inside = [(len(line[1]), line[2]) for line in lines if path.resolve().is_relative_to(line[1])]
    return max(inside, default=(0, "unknown"))[1]


def _commit() -> str:
    asked = ("git", "describe", "--always", "--dirty")
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "none"


def described(machine: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items())
