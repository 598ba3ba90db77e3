"""Run seeded schedules: ``python -m tests.simulation --seeds 10000 [--first N] [--kind ordered]``.

``--seed N --kind K --trace`` runs one again and tells all of it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections import Counter

from tests.simulation.compare import Broken
from tests.simulation.schedule import KINDS, Schedule

ENOUGH = 20  # broken schedules


def kind_of(seed: int) -> str:
    """The kind of a schedule whose kind is not asked for."""
    return KINDS[seed % len(KINDS)]


def fault(schedule: Schedule) -> str:
    """What breaks in a schedule; ``""``: nothing."""
    try:
        schedule.run()
    except Broken as broken:
        return str(broken)
    except Exception:
        return traceback.format_exc()
    return ""


def tell(schedule: Schedule, what: str) -> None:
    print(*schedule.trace, sep="\n")
    print(f"seed {schedule.seed}, kind {schedule.kind}: {what}")
    print(f"again: python -m tests.simulation --seed {schedule.seed} --kind {schedule.kind} --trace", flush=True)


def many(first: int, seeds: int, kind: str | None) -> int:
    began, seen, broken, settled = time.monotonic(), Counter[str](), 0, 0
    for seed in range(first, first + seeds):
        schedule = Schedule(seed, kind or kind_of(seed))
        if what := fault(schedule):
            broken += 1
            tell(schedule, what)
            if broken == ENOUGH:
                seeds = seed - first + 1
                break
        seen.update(schedule.oracle.seen)
        settled += schedule.oracle.done
        if (done := seed - first + 1) % 1000 == 0:
            print(
                f"{done} schedules, {broken} broken, {done / (time.monotonic() - began) * 60:.0f} a minute", flush=True
            )
    rate = seeds / (time.monotonic() - began) * 60
    print(f"{seeds} schedules, {broken} broken, {rate:.0f} a minute; {settled} messages settled")
    print(", ".join(f"{name} {count}" for name, count in sorted(seen.items())))
    return 1 if broken else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--trace", action="store_true", help="the whole log of the schedule")
    options = parser.parse_args()
    logging.getLogger("tidings").setLevel(logging.CRITICAL + 1)
    if options.seed is None:
        return many(options.first, options.seeds, options.kind)
    schedule = Schedule(options.seed, options.kind or kind_of(options.seed), log=options.trace)
    what = fault(schedule)
    tell(schedule, what or "nothing broke")
    return 1 if what else 0


if __name__ == "__main__":
    sys.exit(main())
