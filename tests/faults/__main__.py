"""``python -m tests.faults [name ...]``: the nemeses, and the table of docs/reliability.md."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

import apsw
import msgspec
from msgspec import Struct
from tests.faults.report import NEMESES, Entry, Seen

HERE = Path(__file__).parent
OUT = HERE / "out"
MODULES = ("processes", "points", "disk", "environment", "scale")
BEGIN, END = "<!-- table: python -m tests.faults --report -->", "<!-- end of table -->"
COLUMNS = ("fault", "seed", "rounds", "accepted", "lost", "repeated (may be)", "disorder", "recovered in", "seen", "")
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def load() -> None:
    """Import what registers nemeses."""
    for name in MODULES:
        if (HERE / f"{name}.py").exists():
            importlib.import_module(f"tests.faults.{name}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="nemeses (default: all)")
    parser.add_argument("--rounds", type=int, help="instead of each one's own number")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--quick", action="store_true", help="as many rounds as in `make test`")
    parser.add_argument("--report", type=Path, metavar="FILE", help="the page whose table shows the newest of each")
    return parser.parse_args()


async def run_one(each: Entry, seed: int, rounds: int) -> Seen:
    """In a folder that is kept if something was wrong, also with the nemesis itself."""
    folder = OUT / f"{each.name.replace(' ', '-')}-{seed}-{os.getpid()}"
    began = time.monotonic()
    print(f"{each.name}: {rounds} rounds from seed {seed} ... ", end="", flush=True)
    try:
        seen = await each.attack(folder, seed, rounds)
    except Exception:
        seen = Seen(rounds=0, accepted=0, lost=0, faults=[traceback.format_exc()])
    print(f"{seen.verdict} in {time.monotonic() - began:.1f} s: {seen.evidence}", flush=True)
    for fault in seen.faults[:10]:
        print(f"  {fault}")
    if seen.verdict == "held":
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"  again: python -m tests.faults '{each.name}' --seed {seed} --rounds {rounds}; see {folder}")
    if seen.note:
        print(f"  {seen.note}")
    return seen


class Kept(Struct):
    """What was seen, of which seed, when, of which code, and with which versions of what it stands on."""

    seen: Seen
    seed: int
    at: str
    versions: str = ""


def row(each: Entry, kept: Kept) -> str:
    seen = kept.seen
    noted = [seen.note] if seen.note and seen.verdict == "held" else []  # else it says how to see it again
    recovered = "" if seen.recovered is None else f"{seen.recovered:.1f} s"
    cells = [
        f"**{each.name}**: {each.what}",
        str(kept.seed),
        f"{seen.rounds:,}",
        f"{seen.accepted:,}",
        f"{seen.lost:,}",
        f"{seen.duplicated:,} ({seen.bound:,})",
        f"{seen.disorder:,}",
        recovered,
        "; ".join([seen.evidence, *noted]),
        seen.verdict,
    ]
    return f"| {' | '.join(cells)} |"


def save(path: Path, each: Entry, kept: Kept, rounds: int) -> dict[str, Kept]:
    """Beside what earlier runs have found of other nemeses; all of it, the newest full run of each."""
    known = msgspec.json.decode(path.read_bytes(), type=dict[str, Kept]) if path.exists() else {}
    if rounds >= each.full:
        known[each.name] = kept
        path.write_bytes(msgspec.json.format(msgspec.json.encode(known)))
    return {name: known[name] for name in NEMESES if name in known}


def now() -> str:
    """The moment, and the code."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {told.stdout.strip() or 'unknown'}"


def report(page: Path, known: dict[str, Kept]) -> None:
    """Replace the table of a page."""
    rows = [row(NEMESES[name], kept) for name, kept in known.items()]
    when = sorted({kept.at for kept in known.values()}) or ["never"]
    versions = "; ".join(sorted({kept.versions for kept in known.values() if kept.versions}))
    told = f"From {when[0]}, to {when[-1]}; {versions}."
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{page} has no marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{told}\n\n" + "\n".join([HEADER, *rows]) + f"\n\n{END}{after}")


def main() -> int:
    load()
    asked = arguments()
    if unknown := set(asked.names) - NEMESES.keys():
        sys.exit(f"no nemesis {sorted(unknown)}; there are: {', '.join(NEMESES)}")
    print(f"seed {asked.seed}")
    rows, good = [], True
    OUT.mkdir(exist_ok=True)
    for name in asked.names or NEMESES:
        each = NEMESES[name]
        rounds = asked.rounds or (each.quick if asked.quick else each.full)
        seen = asyncio.run(run_one(each, asked.seed, rounds))
        kept = Kept(seen, asked.seed, now(), f"Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}")
        known = save(OUT / "seen.json", each, kept, rounds)
        rows.append(row(each, kept))
        good &= seen.verdict == "held"
    print("", HEADER, *rows, sep="\n")
    if asked.report:
        report(asked.report, known)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
