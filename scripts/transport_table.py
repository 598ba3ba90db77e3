"""Prints docs/transports.md: what each transport can do, asked of the transports themselves, on real servers.

``python -m scripts.transport_table``; starts the servers that it needs.
"""

from __future__ import annotations

import asyncio
import importlib
import tempfile
from collections.abc import Mapping
from typing import Any

from tests.servers import server

from tidings.kernel.transport import Capabilities, Inspectable, Manageable, Ticking
from tidings.testing.conformance.buses import served
from tidings.urls import options_for

ENGINES = ("postgres", "nats", "rabbitmq", "redis", "kafka")

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


async def ask(options: Any) -> dict[str, str]:
    """A transport's column: opened, asked, closed."""
    transport = options.transport()
    await transport.open(lambda event: None)
    try:
        cells = {field: value(field, transport.capabilities) for field in EXPLAINED}
        return cells | {row: "yes" if isinstance(transport, p) else "no" for p, (row, _) in PROTOCOLS.items()}
    finally:
        await transport.close()


async def columns(engines: Mapping[str, str]) -> dict[str, dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        embedded = {"memory": "memory://", "sqlite": f"sqlite:///{folder}/table.db"}
        asked = {name: await ask(options_for(url)) for name, url in embedded.items()}
    return asked | {name: await ask(served(url).options(30.0)) for name, url in engines.items()}


def known_to_fail(name: str) -> list[str]:
    """What a transport's conformance tests are known to fail, and why: strict expected failures."""
    module = importlib.import_module(f"tests.conformance.test_{name}")
    suites = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    return [f"- `{name}`, `{test}`: {why}" for suite in suites for test, why in getattr(suite, "opt_outs", {}).items()]


def page(engines: Mapping[str, str]) -> str:
    """The whole page; ``engines``: the URLs of the servers."""
    table = asyncio.run(columns(engines))
    rows = {**EXPLAINED, **dict(PROTOCOLS.values())}
    titles = [f"[`{name}`](transports/{name}.md)" if name in engines else f"`{name}`" for name in table]
    failing = [line for name in table for line in known_to_fail(name)]
    lines = [
        f"| | {' | '.join(titles)} | |",
        "|---|" + "---|" * (len(table) + 1),
        *(f"| {row} | {' | '.join(cells[row] for cells in table.values())} | {text} |" for row, text in rows.items()),
        "",
        "## Tests that a transport is known to fail",
        "",
        *(failing or ["None."]),
    ]
    return f"{HEAD}\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page({name: server(name).url for name in ENGINES}), end="")
