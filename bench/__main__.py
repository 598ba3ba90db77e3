"""``python -m bench [scenario ...] [--quick] [--rounds N] [--save]``: measure, print, and with ``--save`` remember."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from .harness import SCENARIOS, Row, described, machine, run, table

HERE = Path(__file__).parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="The budgets, measured on this machine.")
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small and once: does it run, is it far off?")
    parser.add_argument("--rounds", type=int, help="how often each subject is measured")
    parser.add_argument("--save", action="store_true", help="append the figures to bench/RESULTS.md")
    given = parser.parse_args()
    if unknown := set(given.scenarios).difference(SCENARIOS):
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    return given


def told(line: str) -> None:
    """Progress, on a line of its own that is overwritten on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def save(rows: list[Row], sections: list[str], about: dict[str, str]) -> None:
    """A dated section of RESULTS.md with the command that makes it again."""
    command = f"python -m bench {' '.join(sys.argv[1:])}".strip()
    head = f"## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n\n`{command}`\n\n{described(about)}\n"
    with (HERE / "RESULTS.md").open("a") as results:
        results.write("\n" + head + "\n" + "\n\n".join(sections) + "\n")


def keep(rows: list[Row], about: dict[str, str]) -> Path:
    """Every single value, for whoever wants to compute with them."""
    out = HERE / "out"
    out.mkdir(exist_ok=True)
    path = out / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    record = {"machine": about, "command": sys.argv[1:], "rows": rows}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    return path


def main() -> int:
    given = arguments()
    about, rows, sections = machine(), list[Row](), list[str]()
    print(described(about))
    for name in given.scenarios or SCENARIOS:
        found, notes = run(name, given.quick, given.rounds, told)
        told("")
        print(f"\n{name}\n{table(found)}" + (f"\n{notes}" if notes else ""), flush=True)
        rows += found
        note = f"\n\n```\n{notes}\n```" if notes else ""
        sections.append(f"### {name}\n\n{table(found, markdown=True)}{note}")
    if given.save:
        save(rows, sections, about)
    print(f"\nevery value: {keep(rows, about)}")
    return int(any(row.verdict == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
