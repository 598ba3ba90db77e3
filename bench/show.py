"""The table of a scenario, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from .harness import Figure, Measured, Report, Row, rows

HEADS = ("subject", "figure", "median", "min–max", "budget", "", "beside", "cpu s", "rss MiB")
SHOWN = 2  # ratios; of more only the closest
ERROR = 70  # characters of why there is no figure; the end of the run and the JSON tell it in full


def number(value: float) -> str:
    """Three significant digits, thousands as k."""
    if value >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def budget_of(figure: Figure) -> str:
    bounds = (
        ("≤ {}", figure.at_most),
        ("≥ {}", figure.at_least),
        ("≤ {} ×", figure.ratio_at_most),
        ("≥ {} ×", figure.ratio_at_least),
    )
    return ", ".join(text.format(number(bound)) for text, bound in bounds if bound is not None)


def beside(row: Row) -> str:
    """What it is compared with, and how many times that it is."""
    if len(row.ratios) <= SHOWN:
        return "; ".join(f"{ratio:.2f} × {name}" for name, ratio in row.ratios.items())
    return f"{row.ratios[row.closest]:.2f} × {row.closest}, the closest of {len(row.ratios)}"


def shortened(text: str) -> str:
    return text if len(text) <= ERROR else f"{text[: ERROR - 1]}…"


def used(subject: Measured) -> tuple[str, str]:
    """Processor time and memory of a measurement, the median of each."""
    if not subject.rounds:
        return "", ""
    return number(median(one.cpu for one in subject.rounds)), number(median(one.rss for one in subject.rounds))


def cells(row: Row, first: bool) -> tuple[str, ...]:
    """``first``: of its subject, whose use of the machine is told once."""
    figure = row.figure
    spread = f"{number(min(row.values))}–{number(max(row.values))}" if row.values else shortened(row.subject.error)
    middle = number(row.median) if row.values else "–"
    named = f"{figure.name} {figure.unit}".strip() + (f", {figure.among}" if figure.among else "")
    after = used(row.subject) if first else ("", "")
    return row.subject.name, named, middle, spread, budget_of(figure), row.verdict, beside(row), *after


def table(report: Report, *, markdown: bool = False) -> str:
    """A line for each figure; one line for a subject that failed."""
    body, told = list[tuple[str, ...]](), set[str]()
    for row in rows(report):
        if row.values or row.subject.name not in told:
            body.append(cells(row, row.subject.name not in told))
        told.add(row.subject.name)
    if markdown:
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in body]
        return "\n".join("| " + " | ".join(line) + " |" for line in (HEADS, ["---"] * len(HEADS), *escaped))
    return aligned((HEADS, *body))


def aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def failed(report: Report) -> list[str]:
    """The subjects that could not be measured, and why."""
    return [f"{report.scenario}: {subject.name}: {subject.error}" for subject in report.subjects if not subject.rounds]
