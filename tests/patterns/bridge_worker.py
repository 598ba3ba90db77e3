"""A process that bridges two buses until it is killed: ``python -m tests.patterns.bridge_worker <source> <to>``."""

from __future__ import annotations

import asyncio
import sys

from tidings import App
from tidings.patterns import bridge

GROUP = "carrier.bridge"


def main(source: str, to: str) -> None:
    app = App("carrier", source, other=to)
    bridge(app, "orders.>", to="other", group=GROUP, start="first", ordered=True)
    asyncio.run(app.serve(lambda: print("ready", flush=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
