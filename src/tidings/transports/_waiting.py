"""Consumers on a log sleep until somebody wakes them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from ._matcher import Matcher


class Waiting:
    """Something that waits for messages of some patterns: ``wake`` may come at any time, before anybody waits, too."""

    lease: float

    def __init__(self, matcher: Matcher[Any], *patterns: str) -> None:
        self.matcher, self.loop, self.patterns = matcher, asyncio.get_running_loop(), patterns
        self.stopped = self.closed = self.hot = False
        self.future: asyncio.Future[None] | None = None
        for pattern in patterns:
            matcher.add(pattern, self)

    def wake(self) -> None:
        self.hot = True
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def stop(self) -> None:
        self.stopped = True
        self.wake()

    def listen(self, patterns: Iterable[str]) -> bool:
        """To these from now on; whether that is new."""
        now, before = set(patterns), set(self.patterns)
        for pattern in now - before:
            self.matcher.add(pattern, self)
        for pattern in before - now:
            self.matcher.remove(pattern, self)
        self.patterns = tuple(now)
        return now != before

    async def sleep(self, seconds: float | None = None) -> None:
        """Until woken, or so long."""
        if self.hot:
            return
        self.future = self.loop.create_future()
        timer = None if seconds is None else self.loop.call_later(max(0.001, seconds), self.wake)
        await self.future
        if timer is not None:
            timer.cancel()
