"""A soak as a picture: all that was sampled over time, with the faults marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from tests.faults.soak_watch import Soak

matplotlib.use("Agg")
from matplotlib import pyplot  # needs its backend first

MIB = 2**20
COLOURS = {
    "killed": "tab:red",
    "frozen": "tab:blue",
    "terminated": "tab:green",
    "snapshot held": "tab:purple",
    "file locked": "tab:orange",
}


def plot(found: Soak, path: Path) -> None:
    figure, rows = pyplot.subplots(6, 1, figsize=(13, 17), sharex=True, layout="constrained")
    verdict = "held" if found.held else f"BROKEN: {found.problems[0][:90]}"
    figure.suptitle(f"Soak, seed {found.seed}, {found.seconds:.0f} s: {verdict}")
    _rates(found, rows[0])
    _backlog(found, rows[1])
    _each(found, rows[2], "resident memory, MiB", {s.at: {n: v / MIB for n, v in s.rss.items()} for s in found.samples})
    _each(found, rows[3], "open files", {s.at: dict(s.files) for s in found.samples})
    _each(found, rows[4], "CPU, % of a core", {s.at: dict(s.cpu) for s in found.samples})
    _sizes(found, rows[5])
    for row in rows:
        row.grid(visible=True, alpha=0.3)
        row.set_ylim(bottom=0)
        _mark(found, row)
        row.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    rows[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _rates(found: Soak, axes: Any) -> None:
    times = [sample.at for sample in found.samples]
    axes.plot(times, [sample.sent for sample in found.samples], label="accepted")
    axes.plot(times, [sample.handled for sample in found.samples], label="handled, all groups")
    axes.set_ylabel("messages a second")


def _backlog(found: Soak, axes: Any) -> None:
    times = [sample.at for sample in found.samples]
    for what in ("lag", "parked", "dead"):
        axes.plot(times, [getattr(sample, what) for sample in found.samples], label=what)
    axes.set_ylabel("messages waiting")


def _sizes(found: Soak, axes: Any) -> None:
    times = [sample.at for sample in found.samples]
    axes.plot(times, [sample.file / MIB for sample in found.samples], label="file")
    axes.plot(times, [sample.wal / MIB for sample in found.samples], label="write-ahead log")
    axes.set_ylabel("MiB")


def _each(found: Soak, axes: Any, label: str, values: dict[float, dict[str, float]]) -> None:
    for name in sorted({name for each in values.values() for name in each}):
        axes.plot(list(values), [each.get(name, float("nan")) for each in values.values()], label=name, linewidth=1)
    axes.set_ylabel(label)


def _mark(found: Soak, axes: Any) -> None:
    """A line for each fault; the first row names them."""
    first = axes is axes.figure.axes[0]
    for what, colour in COLOURS.items():
        times = [fault.at for fault in found.faults if fault.what == what]
        for index, at in enumerate(times):
            axes.axvline(at, color=colour, linewidth=0.8, alpha=0.6, label=what if first and not index else None)
