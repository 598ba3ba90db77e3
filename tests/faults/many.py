"""A process with very many groups, or with very much to do: ``python -m tests.faults.many '{"url": ...}'``.

It says ``ready`` and the seconds that took, then ``done`` when it has handled as many as it shall, and stops; its last
line is ``peak`` and the most memory it had, in bytes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from tidings import App, Topic


class Spec(Struct, frozen=True, kw_only=True):
    """``topics``: of each group. ``messages``: numbered from 0; message n goes to topic n % (groups × topics)."""

    url: str
    counts: str  # a file: how often each message was handled, a byte for each
    groups: int = 1
    topics: int = 1
    messages: int = 0
    until: int = 0  # it handles so many, and stops

    def topic(self, n: int) -> str:
        place = n % (self.groups * self.topics)
        return f"scale.g{place // self.topics}.t{place % self.topics}"


class Body(Struct):
    n: int
    filler: str = "x" * 150


def peak() -> int:
    """Not ``ru_maxrss``: that begins with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def app_of(spec: Spec, seen: bytearray) -> App:
    app, left = App("scale", spec.url), spec.until

    async def handle(body: Body) -> None:
        nonlocal left
        seen[body.n] += 1
        left -= 1
        if not left:
            print("done", flush=True)
            app.stop()

    for group in range(spec.groups):
        register: Callable[[Any], Any] = app.on(
            Topic(f"scale.g{group}.*", Body), group=f"scale.g{group}", start="first"
        )
        register(handle)
    return app


def main(argument: str) -> None:
    spec = msgspec.json.decode(argument, type=Spec)
    seen, began = bytearray(spec.messages), time.monotonic()
    app = app_of(spec, seen)
    asyncio.run(app.serve(lambda: print(f"ready {time.monotonic() - began:.1f}", flush=True)))
    Path(spec.counts).write_bytes(seen)
    print("peak", peak(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
