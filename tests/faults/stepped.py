"""A machine whose wall clock a test sets: ``Wall`` is shared by its processes, and monotonic time goes on as it does.

``python -m tests.faults.stepped URL CLOCK JOURNAL`` is one of them: an app with work that depends on time.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

from msgspec import Struct

from tidings import App, Backoff, Delivery, Message, Retry, Topic
from tidings.kernel.clock import Clock
from tidings.testing.faults.history import Journal
from tidings.testing.faults.watched import Watched
from tidings.urls import options_for


class Wall:
    """The wall clock, and by how many seconds it was set; the offset is eight bytes of a file."""

    def __init__(self, path: Path) -> None:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(file, 8)
        self.memory = mmap.mmap(file, 8)
        os.close(file)
        self.clock = Clock(now=self.now, monotonic=time.monotonic)

    def now(self) -> float:
        return time.time() + self._offset()

    def step(self, seconds: float) -> None:
        struct.pack_into("<d", self.memory, 0, self._offset() + seconds)

    def _offset(self) -> float:
        offset: float = struct.unpack_from("<d", self.memory)[0]
        return offset


class WalledLoop(asyncio.SelectorEventLoop):
    """A loop on such a machine."""

    def __init__(self, wall: Wall) -> None:
        self.clock = wall.clock
        super().__init__()


class Work(Struct):
    """What a message's handler shall do: take so many seconds, or ask once for another attempt after so many."""

    n: int
    takes: float = 0.0
    retry: float = 0.0


work = Topic("orders.placed", Work)


def app_of(url: str, journal: Journal) -> App:
    app = App("shop", Watched(options_for(url), journal), backoff=Backoff(jitter=0.0))

    @app.on(work, start="first")
    async def bill(message: Message[Work], delivery: Delivery) -> None:
        about: dict[str, Any] = {"id": message.id, "n": message.data.n, "attempt": delivery.attempt}
        journal.write("begin", **about)
        await asyncio.sleep(message.data.takes)
        if message.data.retry and not delivery.failures:
            journal.write("fail", **about)
            raise Retry(message.data.retry)
        journal.write("end", **about)

    @app.every("1s")
    async def second() -> None:
        journal.write("tick", detail="every")

    @app.cron("*/2 * * * *")
    async def minutes() -> None:
        journal.write("tick", detail="cron")

    return app


def main(url: str, clock: str, path: str) -> None:
    logging.basicConfig(level=logging.ERROR)
    journal = Journal(Path(path), "worker")
    with asyncio.Runner(loop_factory=lambda: WalledLoop(Wall(Path(clock)))) as runner:
        runner.run(app_of(url, journal).serve(lambda: print("ready", flush=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
