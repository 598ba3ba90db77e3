"""Patterns under ``kill -9``: a process that runs an app is killed at random and replaced, until everything is done.

A *scenario* is a module with a function ``app(url) -> App``. A test feeds its bus from outside, round by round, and
reads there what came of it::

    @pytest.mark.parametrize("kind", KINDS)
    async def test_killed(kind, tmp_path):
        async with Killing("tests.patterns.aggregator_worker", url_of(kind, tmp_path)) as killing:
            open_groups = await killing.rounds(feed, done, look)
            whole = await killing.log("orders")

Here a process dies at a named point of its bus's transactions, or at any moment after it said that it is ready. What
it was doing then is done by the next one. ``python -m tests.patterns.killing <module> <url>`` is such a process.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from tests.servers import server

from tidings import App, Message
from tidings.kernel.message import new_id
from tidings.testing.faults import Processes

KINDS = ("sqlite", "postgres")
ROUNDS = int(os.environ.get("TIDINGS_ROUNDS", "6"))  # `make kills` asks for 100
POINTS = ("settle.struck", "commit.before", "commit.after")  # both kinds have these
PATIENCE = 300.0  # seconds until the last process is done: what a dead one had in hand is handled one by one


def url_of(kind: str, folder: Path) -> str:
    """A fresh bus that several processes open, and that soon sees that one of them has died."""
    if kind == "sqlite":
        return f"sqlite:///{folder / 'bus.db'}?lease=1s"
    url = server(kind).url
    return f"{url}{'&' if '?' in url else '?'}namespace=t{new_id().replace('-', '')[-12:]}&lease=2s"


class Killing:
    """A bus that processes are killed on. ``app`` publishes and looks; it handles nothing."""

    def __init__(self, module: str, url: str, seed: int = 1) -> None:
        self.module, self.url, self.luck = module, url, Random(seed)
        self.app, self.processes, self.stack = App("watch", url), Processes(), AsyncExitStack()
        self.deaths = 0  # while there was work to do

    async def __aenter__(self) -> Killing:
        await self.stack.enter_async_context(self.app.connect())
        await self.stack.enter_async_context(self.processes)
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.stack.aclose()

    async def rounds(
        self,
        feed: Callable[[int], Awaitable[Any]],
        done: Callable[[], Awaitable[bool]],
        look: Callable[[], Awaitable[Any]],
        count: int = ROUNDS,
        *,
        hit: bool = False,
    ) -> list[Any]:
        """Feed it ``count`` times, and each time kill whoever works; then one process may finish. What ``look`` saw
        after each death. Fails unless most died while there was work to do. ``hit``: go on until ``look`` saw
        something, up to five times as often: of few deaths all may come too early or too late."""
        seen = []
        await self._once(0.0)  # groups begin with what is published from now on
        for number in range(5 * count if hit else count):
            if number >= count and any(seen):
                break
            await feed(number)
            await self._die()
            seen.append(await look())
            self.deaths += not await done()
        worker = await self._start()
        await worker.line("ready")  # a signal that comes before is no end of an app
        async with asyncio.timeout(PATIENCE):
            while not await done():  # a bus tells nobody
                assert not worker.over, "the last process ended by itself"
                await asyncio.sleep(0.05)
        worker.terminate()
        assert await worker.wait() == 0
        assert self.deaths > count / 2, "it did not die while it worked"
        return seen

    async def _start(self, points: str = "") -> Any:
        return await self.processes.start("tests.patterns.killing", self.module, self.url, points=points)

    async def _once(self, seconds: float) -> None:
        worker = await self._start()
        await worker.line("ready")
        await asyncio.sleep(seconds)
        worker.kill()
        await worker.wait()

    async def _die(self) -> None:
        """At a point of a transaction or, one time in three, at any moment."""
        if self.luck.random() < 1 / 3:
            await self._once(self.luck.uniform(0.0, 0.2))
            return
        worker = await self._start(f"{self.luck.choice(POINTS)}=kill@{self.luck.randint(1, 6)}")
        end = asyncio.get_running_loop().time() + self.luck.uniform(1.0, 4.0)
        while not worker.over and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        worker.kill()
        await worker.wait()

    async def log(self, pattern: str) -> list[Message[Any]]:
        """All messages of a topic, as they are in the log."""
        bus: Any = self.app.bus()
        found: list[Any] = []
        while page := await bus.peek(pattern, found[-1].position if found else 0, 1000):
            found += page
        return [stored.message for stored in found]

    async def idle(self) -> bool:
        """Whether no group has anything left to handle."""
        bus: Any = self.app.bus()
        return not any(group.lag + group.in_flight + group.parked for group in await bus.groups())


def main(module: str, url: str) -> None:
    app: App = import_module(module).app(url)
    asyncio.run(app.serve(lambda: print("ready", flush=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
