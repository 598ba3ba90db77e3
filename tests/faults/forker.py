"""A publisher under load that forks: ``python -m tests.faults.forker URL CHILD``; it says what its child said.

What the child does, while its parent has the bus open: it uses its parent's bus (``publish``), opens its own on the
same file (``open``), ends as programs do (``exit``), or is a process of multiprocessing (``fork``, ``spawn``,
``forkserver``).
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import sys
from threading import Event, Thread
from typing import Any

from tidings import App, Topic
from tidings.kernel.errors import BusForked

placed = Topic("orders.placed", int)
PUBLISHERS, BEFORE, MEANWHILE, ALL = (
    8,
    100,
    200,
    400,
)  # of the parent's messages: so many before the fork, until it ends


async def publish_one(app: App, id: str, *, open: bool) -> None:
    if open:
        async with app.connect():
            await app.publish(placed, 0, id=id)
    else:
        await app.publish(placed, 0, id=id)


def child(app: App, id: str, *, open: bool = True) -> None:
    """Publishes one message, on a bus that it opens or on its parent's."""
    try:
        asyncio.run(publish_one(app, id, open=open))
    except BusForked as error:
        print("child:", str(error).replace("\n", " "), flush=True)
    else:
        print("child: accepted", id, flush=True)


def new_child(url: str, id: str) -> None:
    child(App("child", url), id)


def fork(app: App, url: str, what: str) -> int:
    """The child's exit status."""
    if what in ("fork", "spawn", "forkserver"):
        kind: Any = multiprocessing.get_context(what)
        process = kind.Process(target=new_child, args=(url, f"child-{what}"))
        process.start()
        process.join()
        return int(process.exitcode)
    if (pid := os.fork()) == 0:
        if what == "open":
            new_child(url, "child-open")
        elif what == "publish":
            child(app, "child-publish", open=False)
        sys.exit()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Load(Thread):
    """An event loop in a thread, with several publishers at once; the last messages wait until the child is over."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.app, self.accepted, self.under_way, self.over = App("parent", url), list[str](), Event(), Event()
        self.numbers = itertools.count()

    def run(self) -> None:
        asyncio.run(self.publish())

    async def publish(self) -> None:
        async with self.app.connect():
            await asyncio.gather(*(self.publisher() for _ in range(PUBLISHERS)))

    async def publisher(self) -> None:
        while (n := next(self.numbers)) < ALL:
            if n >= MEANWHILE:
                await asyncio.to_thread(self.over.wait)
            await self.app.publish(placed, n, id=f"m{n}")
            self.accepted.append(f"m{n}")
            if n == BEFORE:
                self.under_way.set()


def main(url: str, what: str) -> None:
    load = Load(url)
    load.start()
    load.under_way.wait()
    status = fork(load.app, url, what)
    before = len(load.accepted)
    load.over.set()
    load.join()
    print("status:", status, before, flush=True)
    print("accepted:", *load.accepted, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
