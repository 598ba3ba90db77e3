"""What remains of a run: every value as JSON, and the plots; with ``--save`` a section of RESULTS.md and the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from .harness import SCENARIOS, Report
from .machine import described
from .plots import draw
from .show import number, table

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


class Run(Struct):
    """Who ran what, where, when."""

    command: str
    machine: dict[str, str]
    at: datetime
    reports: list[Report] = []

    @property
    def head(self) -> str:
        return f"`{self.command}`, {self.at:%Y-%m-%d %H:%M} UTC\n\n{described(self.machine)}"


def started(words: Sequence[str], about: dict[str, str]) -> Run:
    return Run(" ".join(("python -m bench", *words)), about, datetime.now(UTC))


def every_value(run: Run, folder: Path) -> Path:
    """For whoever wants to compute with them."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{run.at:%Y%m%d-%H%M%S}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run)))
    return path


def plots(run: Run, folder: Path) -> list[Path]:
    """One picture a scenario; those with nothing to show have none."""
    found = [(report, folder / f"{report.scenario}.png") for report in run.reports]
    return [path for report, path in found if draw(report, path)]


def append(run: Run, results: Path) -> None:
    """A dated section with the command that makes it again."""
    sections = [f"### {report.scenario}\n\n{_figures(report)}\n{_noted(report.notes)}" for report in run.reports]
    command, _, about = run.head.partition("\n\n")
    with results.open("a") as file:
        file.write(f"\n## {run.at:%Y-%m-%d %H:%M} UTC\n\n{command}\n\n{about}\n\n" + "\n".join(sections))


def _figures(report: Report) -> str:
    return table(report, markdown=True)


def _noted(notes: Sequence[str]) -> str:
    return "\n```\n" + "\n".join(notes) + "\n```\n" if notes else ""


def fill(run: Run, page: Path) -> None:
    """Put the scenarios of this run between the marks of a page, in place of their older results."""
    before, begin, rest = page.read_text().partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no {BEGIN} … {END}")
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", old, re.MULTILINE | re.DOTALL))
    for report in run.reports:
        sections[report.scenario] = _section(run, report, page.parent / "plots" / f"{report.scenario}.png")
    order = [name for name in (*SCENARIOS, *sections) if name in sections]
    body = "\n\n".join(f"### {name}\n\n{sections[name].strip()}" for name in dict.fromkeys(order))
    page.write_text(f"{before}{BEGIN}\n{body}\n\n{END}{after}")


def _section(run: Run, report: Report, plot: Path) -> str:
    picture = f"![{report.scenario}](plots/{plot.name})\n\n" if plot.exists() else ""
    took = f"measured in {number(report.seconds)} s; {report.notes[0]}" if report.notes else ""
    return f"{picture}{_figures(report)}\n\n{run.head}; {took}"
