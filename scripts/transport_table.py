"""Prints docs/transports.md: what each transport can do, asked of the transports themselves, opened for real."""

from __future__ import annotations

import asyncio
import tempfile
from importlib.metadata import entry_points
from typing import Any

from tidings.kernel.transport import Capabilities, Inspectable, Manageable, Ticking

URLS = {"memory": "memory://", "sqlite": "sqlite:///{folder}/table.db"}

EXPLAINED = {
    "durable": "what an accepted message survives: loss of power, the death of a process, or neither",
    "ordering": "of one topic's messages within a group, while nothing fails",
    "ordered": "`ordered=True`: key order across all processes of a group, also through failures",
    "delay": "`delay=`, `at=`, and waits between retries: how long, how exact",
    "lease": "what tells the bus that a holder is alive",
    "fence": "what stops a late settlement of a lost session",
    "crash_count": "a message that kills its process is counted, and ends in the dead letters",
    "start": '`start="first"` or a time',
    "replay": "a group can be given again what is retained",
    "dedup": "within which time the same id is stored once",
    "priority": "`priority=`",
    "expiry": "`expires=`",
    "wildcards": "`*` and `>` in patterns",
    "atomic_settle": "outputs and settlement in one transaction",
    "publish_atomic": "`publish_many`: all or none",
    "peek": "stored messages can be looked at without disturbing delivery",
    "provision": "the bus can be set up ahead",
    "stable_id": "a message without an id gets the same one at every delivery",
    "max_payload": "largest message, of which 16 KiB are kept for a dead letter's context",
    "request": "request and reply",
}

PROTOCOLS = {
    Inspectable: ("inspect", "topics and groups can be listed"),
    Manageable: ("manage", "groups can be renamed, dropped and sought"),
    Ticking: ("tick", "one replica is chosen for a tick of `every` and `cron`"),
}

HEAD = """\
# Transports

What each transport can do, as it says itself when it is open. *native*: the bus does it; *emulated*: Tidings does it
with what the bus has; *unavailable*: asking for it is refused at start-up. This page is made by `make docs-tables`;
a test fails when it is stale.
"""


def value(name: str, has: Capabilities) -> str:
    """One cell."""
    given: Any = getattr(has, name)
    if name == "delay" and given != "unavailable":
        longest = "any length" if has.delay_max is None else f"up to {duration(has.delay_max)}"
        exact = f", to {duration(has.delay_resolution)}" if has.delay_resolution else ""
        return f"{given} ({longest}{exact})"
    if name == "dedup":
        return "as long as it is retained" if given is None else duration(given) if given else "no"
    if name == "max_payload":
        return f"{given / 2**20:g} MiB" if given >= 2**20 else f"{given / 2**10:g} KiB"
    return {True: "yes", False: "no"}.get(given, str(given)) if isinstance(given, bool) else str(given)


def duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds * 1e3:g} ms"


async def ask(name: str, options: Any, folder: str) -> dict[str, str]:
    """A transport's column: opened, asked, closed."""
    transport = options.from_url(URLS[name].format(folder=folder)).transport()
    await transport.open(lambda event: None)
    try:
        cells = {field: value(field, transport.capabilities) for field in EXPLAINED}
        return cells | {row: "yes" if isinstance(transport, p) else "no" for p, (row, _) in PROTOCOLS.items()}
    finally:
        await transport.close()


async def columns() -> dict[str, dict[str, str]]:
    found = {entry.name: entry for entry in entry_points(group="tidings.transports")}
    with tempfile.TemporaryDirectory() as folder:
        return {name: await ask(name, found[name].load(), folder) for name in sorted(found)}


def page() -> str:
    """The whole page."""
    table = asyncio.run(columns())
    rows = {**EXPLAINED, **dict(PROTOCOLS.values())}
    lines = [
        f"| | {' | '.join(f'`{name}`' for name in table)} | |",
        "|---|" + "---|" * (len(table) + 1),
        *(f"| {row} | {' | '.join(cells[row] for cells in table.values())} | {text} |" for row, text in rows.items()),
    ]
    return f"{HEAD}\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
