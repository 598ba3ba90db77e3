"""A picture of each scenario. What kind follows from what was measured.

Delays are percentile curves; what grows are lines, both axes logarithmic; everything else is bars with whiskers from
the lowest to the highest round, and a mark where a budget is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .harness import Measured, Report, Row, rows
from .histogram import together
from .show import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, FLOOR, INK, GRID, BUDGET = "#2f6db5", "#b9c0c9", "#333a44", "#e6e9ed", "#d1495b"
LINES = ("#2f6db5", "#e07a3f", "#3a9d6e", "#8a5fb0", "#b58b1b", "#d1495b", "#4aa3b5", "#7a7f87")
LEAST = 1e-3  # what is less is drawn there: nothing has no logarithm
NINES = (0.5, 0.9, 0.99, 0.999)
POINTS = [1 - 10 ** -(step / 50) for step in range(3 * 50 + 1)]  # 0 to 99.9 %

Panel = tuple[float, Callable[["Axes"], None]]  # its height in inches, and how it is drawn


def draw(report: Report, path: Path) -> bool:
    """Write the PNG of a scenario; False: there is nothing to show."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = [*delays(report), *growth(report), *bars(report)]
    if not panels:
        return False
    columns = 2 if len(panels) > 1 else 1
    lines = [panels[at : at + columns] for at in range(0, len(panels), columns)]
    heights = [max(height for height, _ in line) for line in lines]
    figure, axes = pyplot.subplots(
        len(lines),
        columns,
        figsize=(6.4 * columns, sum(heights) + 0.4),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle(report.scenario, color=INK, fontweight="bold")
    for place, panel in zip(axes.flat, [*panels, *[None] * (columns * len(lines) - len(panels))], strict=True):
        if panel is None:
            place.set_axis_off()
        else:
            _plain(place)
            panel[1](place)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})
    pyplot.close(figure)
    return True


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FLOOR)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _titled(axes: Axes, *parts: str) -> None:
    axes.set_title(", ".join(filter(None, parts)), fontsize=10, color=INK, loc="left")


def _labels(names: list[str]) -> list[str]:
    """Names without the ": work" that all of them end in: it is in the title."""
    ends = {name.partition(": ")[2] for name in names}
    return [name.partition(": ")[0] for name in names] if len(ends) == 1 and ends != {""} else names


def _of_series(subjects: Iterable[Measured]) -> dict[str, list[Measured]]:
    found = dict[str, list[Measured]]()
    for subject in subjects:
        found.setdefault(subject.series, []).append(subject)
    return found


def _is_timed(subject: Measured) -> bool:
    return any(one.histogram is not None for one in subject.rounds)


# -- delays


def delays(report: Report) -> list[Panel]:
    """Percentile curves of all rounds together, a panel for each series."""

    def panel(series: str, subjects: list[Measured]) -> Panel:
        def drawn(axes: Axes) -> None:
            labels = _labels([subject.name for subject in subjects])
            for colour, subject, label in zip(LINES * len(subjects), subjects, labels, strict=False):
                all_rounds = together(one.histogram for one in subject.rounds if one.histogram)
                values = [all_rounds.quantile(part) * 1e3 for part in POINTS]
                axes.plot([_nines(part) for part in POINTS], values, color=colour, linewidth=1.6, label=label)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_xticks([_nines(part) for part in NINES], [f"{part * 100:g} %" for part in NINES])
            axes.legend(fontsize=7, frameon=False)
            _titled(axes, series, "delay (ms) that so many did not exceed")

        return 3.8, drawn

    return [panel(*found) for found in _of_series(filter(_is_timed, report.subjects)).items()]


def _nines(part: float) -> float:
    return -math.log10(1 - part)


# -- what grows


def growth(report: Report) -> list[Panel]:
    """A panel for each figure, a line for each series."""
    grown = [row for row in rows(report) if row.subject.at is not None and row.values and not _is_timed(row.subject)]
    figures = dict.fromkeys((row.figure.name, row.figure.unit) for row in grown)
    return [
        _growth_panel(
            report.grows, f"{name} ({unit})", [r for r in grown if (r.figure.name, r.figure.unit) == (name, unit)]
        )
        for name, unit in figures
    ]


def _growth_panel(grows: str, title: str, found: list[Row]) -> Panel:
    def drawn(axes: Axes) -> None:
        series = dict.fromkeys(row.subject.series for row in found)
        for colour, name in zip(LINES * len(series), series, strict=False):
            line = sorted((row for row in found if row.subject.series == name), key=lambda row: row.subject.at or 0.0)
            middle = [max(row.median, LEAST) for row in line]
            whiskers = [
                [max(0.0, value - min(row.values)) for row, value in zip(line, middle, strict=True)],
                [max(0.0, max(row.values) - value) for row, value in zip(line, middle, strict=True)],
            ]
            at = [row.subject.at or 0.0 for row in line]
            axes.errorbar(at, middle, whiskers, color=colour, marker="o", markersize=4, capsize=3, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        places = sorted({row.subject.at or 0.0 for row in found})
        axes.set_xticks(places, [f"{place:,.0f}" for place in places])
        axes.minorticks_off()
        axes.set_ylim(*_decades([value for row in found for value in row.values]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        axes.set_xlabel(grows, fontsize=8, color=INK)
        if len(series) > 1:
            axes.legend(fontsize=7, frameon=False)
        _titled(axes, title)

    return 2.8, drawn


def _decades(values: list[float]) -> tuple[float, float]:
    """Whole powers of ten around them."""
    low, high = max(min(values), LEAST), max(*values, LEAST)
    first = math.floor(math.log10(low))
    return 10.0**first, 10.0 ** max(first + 1, math.ceil(math.log10(high)))


# -- bars


def bars(report: Report) -> list[Panel]:
    """A panel for each figure of each series."""
    once = {(row.subject.name, row.figure.name, row.figure.unit): row for row in rows(report)}
    plain = [row for row in once.values() if row.subject.at is None and row.values and not _is_timed(row.subject)]
    shown = dict.fromkeys((row.subject.series, row.figure.name, row.figure.unit) for row in plain)
    return [
        _bar_panel(
            ", ".join(filter(None, (series, f"{name} ({unit})"))),
            [r for r in plain if (r.subject.series, r.figure.name, r.figure.unit) == (series, name, unit)],
        )
        for series, name, unit in shown
    ]


def _bar_panel(title: str, found: list[Row]) -> Panel:
    compared = any(row.ratios for row in found)

    def drawn(axes: Axes) -> None:
        found.reverse()  # the first on top
        for place, row in enumerate(found):
            whiskers = [[row.median - min(row.values)], [max(row.values) - row.median]]
            colour = OURS if row.ratios or not compared else FLOOR
            axes.barh(place, row.median, 0.62, color=colour)
            if len(row.values) > 1:
                axes.errorbar(row.median, place, xerr=whiskers, color=INK, linewidth=1, capsize=3)
            end = max(row.values), place
            axes.annotate(number(row.median), end, (5, 0), textcoords="offset points", va="center", fontsize=8)
            for bound in (row.figure.at_least, row.figure.at_most):
                if bound is not None:
                    axes.plot([bound, bound], [place - 0.42, place + 0.42], color=BUDGET, linewidth=2)
        axes.set_yticks(range(len(found)), _labels([row.subject.name for row in found]))
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: number(value) if value else "0")
        _titled(axes, title)

    return 0.7 + 0.3 * len(found), drawn
