"""``tidings doctor``."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence

from . import BUS, FAILED, _findings, _probe, show
from ._findings import Finding
from ._options import Json, Url

STYLES = {"ok": show.GREEN, "warning": show.YELLOW, "wrong": show.RED}
JUMP = 0.05  # seconds that the wall clock may step while we look


def doctor(*, url: Url = None, json: Json = False) -> None:
    """Examine machine, Python, SQLite, extras, the bus, clock and limits: what is wrong, and how to mend it.

    Nothing is published, and a bus file that does not exist is not made; a broker's bus is opened as an app would open
    it. Exit code 0: all is well, or there are warnings. 3: the bus is wrong. 1: only something else is.
    """
    walls, steady = time.time(), time.monotonic()
    shown, bus = asyncio.run(_probe.bus(url))
    here = [*_findings.machine(), *_findings.python(), *_findings.sqlite(), *_findings.extras()]
    rest = [_clock(time.time() - walls, time.monotonic() - steady), *_findings.limits()]
    found = _in_areas([*here, *bus, *rest])
    wrong = {finding.area for finding in found if finding.state == "wrong"}
    if json:
        worst = next((state for state in ("wrong", "warning") if any(f.state == state for f in found)), "ok")
        show.document({"state": worst, "url": shown, "findings": found})
    elif show.terminal(sys.stdout):
        _print(found)
    else:
        show.table(
            ("state", "area", "checked", "found", "mend"), [[f.state, f.area, f.name, f.found, f.mend] for f in found]
        )
    if wrong:
        raise SystemExit(BUS if "bus" in wrong else FAILED)


def _clock(walls: float, steady: float) -> Finding:
    """Whether the wall clock went as the monotonic one did."""
    if abs(step := walls - steady) < JUMP:
        return Finding("clock", "steady", "ok", f"the wall clock kept pace for {steady:.1f} s")
    found = f"the wall clock jumped by {step:+.2f} s while we looked"
    return Finding("clock", "steady", "warning", found, "let NTP slew it rather than step it: delays go by it")


def _in_areas(found: Sequence[Finding]) -> list[Finding]:
    """Area by area, each where it came first."""
    areas = list(dict.fromkeys(finding.area for finding in found))
    return sorted(found, key=lambda finding: areas.index(finding.area))


def _print(found: Sequence[Finding]) -> None:
    """For people: areas as headings, and below what is not well how to mend it."""
    area, width = "", max(len(finding.name) for finding in found)
    for finding in found:
        if finding.area != area:
            area = finding.area
            show.say(show.styled(area, show.BOLD))
        state = show.styled(f"{finding.state:<7}", STYLES[finding.state])
        show.say(f"  {state}  {finding.name:<{width}}  {show.clean(finding.found)}")
        if finding.mend:
            show.say(f"{'':{width + 13}}{show.styled('mend:', show.BOLD)} {show.clean(finding.mend)}")
    count = {state: sum(finding.state == state for finding in found) for state in ("wrong", "warning")}
    told = [
        f"{number} {state}" + "s" * (state == "warning" and number > 1) for state, number in count.items() if number
    ]
    show.say(
        "\n"
        + (show.styled(", ".join(told), STYLES["wrong" if count["wrong"] else "warning"]) if told else "all is well")
    )
