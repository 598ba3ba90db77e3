"""``python -m bench [scenario ...] [--quick] [--rounds N] [--save]``: measure, print, plot; ``--save``: remember."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import keep
from .harness import ROOT, SCENARIOS, Report, run
from .machine import described, machine
from .show import failed, table

HERE = Path(__file__).parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="The budgets, measured on this machine.")
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small and once: does it run, is it far off?")
    parser.add_argument("--rounds", type=int, help="how often each subject is measured")
    saved = "to bench/RESULTS.md, docs/performance.md and docs/plots too, not only to bench/out"
    parser.add_argument("--save", action="store_true", help=saved)
    given = parser.parse_args()
    if unknown := set(given.scenarios).difference(SCENARIOS):
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    if given.save and given.quick:
        parser.error("--save remembers figures, and those of --quick are none")
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds is at least 1")
    return given


def told(line: str) -> None:
    """Progress, on a line of its own that is overwritten on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def show(report: Report) -> None:
    print("\n".join((f"\n{report.scenario} ({report.seconds:.0f} s)", table(report), *report.notes)), flush=True)


def finish(kept: keep.Run, save: bool) -> None:
    """Keep what was measured, also of a run that was cut short."""
    print(f"\nevery value: {keep.every_value(kept, HERE / 'out')}")
    for path in keep.plots(kept, ROOT / "docs" / "plots" if save else HERE / "out"):
        print(f"plot: {path}")
    if save:
        keep.append(kept, HERE / "RESULTS.md")
        keep.fill(kept, ROOT / "docs" / "performance.md")


def main() -> int:
    given = arguments()
    kept, lacking = keep.started(sys.argv[1:], machine()), list[str]()
    print(described(kept.machine))
    try:
        for name in given.scenarios or SCENARIOS:
            try:
                report = run(name, SCENARIOS[name], given.quick, given.rounds, told)
            except Exception as error:  # not even its subjects could be told
                lacking.append(f"{name}: {type(error).__name__}: {error}")
                continue
            told("")
            show(report)
            kept.reports.append(report)
            lacking += failed(report)
    finally:
        finish(kept, given.save)
    if lacking:
        print("\n".join(("could not be measured:", *lacking)))
    return int(bool(lacking))


if __name__ == "__main__":
    sys.exit(main())
