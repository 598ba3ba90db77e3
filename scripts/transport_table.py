"""Prints docs/transports.md: what each transport can do, asked of the transports themselves, on real servers.

``python -m scripts.transport_table``; starts the servers that it needs.
"""

from __future__ import annotations

import asyncio
import importlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.conformance.serving import Served
from tests.servers import server

from tidings.cli.capabilities import cells, explained
from tidings.testing.conformance.buses import served
from tidings.urls import options_for

PAGES = Path(__file__).parents[1] / "docs" / "transports"
ENGINES = ("postgres", "nats", "rabbitmq", "redis", "kafka")

HEAD = """\
# Transports

What each transport can do, as it says itself when it is open. *native*: the bus does it; *emulated*: Tidings does it
with what the bus has; *unavailable*: asking for it is refused at start-up. `grpc` can do what the bus behind it can,
here SQLite. This page is made by `make docs-tables`; a test fails when it is stale.
"""


async def ask(options: Any) -> dict[str, str]:
    """A transport's column: opened, asked, closed."""
    transport = options.transport()
    await transport.open(lambda event: None)
    try:
        return cells(transport)
    finally:
        await transport.close()


async def columns(engines: Mapping[str, str]) -> dict[str, dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        embedded = {"memory": "memory://", "sqlite": f"sqlite:///{folder}/table.db"}
        asked = {name: await ask(options_for(url)) for name, url in embedded.items()}
        asked |= {name: await ask(served(url).options(30.0)) for name, url in engines.items()}
        opened = Served(f"sqlite:///{folder}/served.db")
        try:
            return asked | {"grpc": await ask(opened.bus().options(30.0))}
        finally:
            opened.close()


def known_to_fail(name: str) -> list[str]:
    """What a transport's conformance tests are known to fail, and why: strict expected failures."""
    module = importlib.import_module(f"tests.conformance.test_{name}")
    suites = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    return [f"- `{name}`, `{test}`: {why}" for suite in suites for test, why in getattr(suite, "opt_outs", {}).items()]


def page(engines: Mapping[str, str]) -> str:
    """The whole page; ``engines``: the URLs of the servers."""
    table = asyncio.run(columns(engines))
    titles = [f"[`{name}`](transports/{name}.md)" if (PAGES / f"{name}.md").exists() else f"`{name}`" for name in table]
    failing = [line for name in table for line in known_to_fail(name)]
    said = explained().items()
    lines = [
        f"| | {' | '.join(titles)} | |",
        "|---|" + "---|" * (len(table) + 1),
        *(f"| {row} | {' | '.join(cells[row] for cells in table.values())} | {text} |" for row, text in said),
        "",
        "## Tests that a transport is known to fail",
        "",
        *(failing or ["None."]),
    ]
    return f"{HEAD}\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page({name: server(name).url for name in ENGINES}), end="")
