"""Reading what a bus retains, with a count of how much was looked at."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, aclosing
from typing import Any

from tidings import Message
from tidings.kernel.topics import DEAD, GROUP, INTERNAL, REQUEST, TICK
from tidings.kernel.transport import Inspectable, Stored

from ._bus import PAGE
from ._progress import Progress

Wanted = Callable[[Message[Any]], bool]

RESERVED = tuple(f"{prefix}>" for prefix in (DEAD, GROUP, REQUEST, TICK, INTERNAL))  # replies are not retained
SOON = 0.5  # seconds until progress is shown


class Scan:
    """All that is retained under some patterns, oldest first within each. Nobody is disturbed."""

    def __init__(self, bus: Inspectable, *patterns: str) -> None:
        self.bus, self.patterns = bus, patterns
        self.scanned = self.found = self.total = 0

    def __str__(self) -> str:
        return f"scanned {self.scanned:,} of {max(self.total, self.scanned):,}"

    async def pages(self) -> AsyncGenerator[Sequence[Stored], None]:
        """What there is, a page at a time. Who reads it counts what it has ``scanned``."""
        self.total = sum([topic.messages for pattern in self.patterns for topic in await self.bus.topics(pattern)])
        began, moved = time.monotonic(), None
        with ExitStack() as stack:
            for pattern in self.patterns:
                after, more = 0, True
                while more:
                    page = await self.bus.peek(pattern, after, PAGE)
                    if more := len(page) >= PAGE:
                        after = page[-1].position
                    yield page
                    if moved is None and time.monotonic() - began > SOON:
                        moved = stack.enter_context(Progress("scanned", self.total))
                        moved.began = began
                    if moved is not None:
                        moved(self.scanned, self.scanned)

    async def matching(self, wanted: Wanted) -> AsyncGenerator[Stored, None]:
        """Those that are ``wanted``; close it if you leave early."""
        async with aclosing(self.pages()) as pages:
            async for page in pages:
                for stored in page:
                    self.scanned += 1
                    if wanted(stored.message):
                        self.found += 1
                        yield stored

    async def first(self, wanted: Wanted, limit: int) -> list[Stored]:
        """The oldest that are wanted; looks no further than needed."""
        found = list[Stored]()
        async with aclosing(self.matching(wanted)) as matching:
            async for stored in matching:
                found.append(stored)
                if len(found) == limit:
                    break
        return found

    async def last(self, wanted: Wanted, limit: int) -> list[Stored]:
        """The newest that are wanted, the newest last; looks at all."""
        found = deque[Stored](maxlen=limit)
        async with aclosing(self.matching(wanted)) as matching:
            async for stored in matching:
                found.append(stored)
        return list(found)

    async def tip(self, limit: int) -> list[Stored]:
        """The newest of the only pattern, the newest last, without looking at the others.

        A page can be had from any position, but nobody says where the positions end: they are bisected.
        """
        (pattern,) = self.patterns
        self.total = sum(topic.messages for topic in await self.bus.topics(pattern))
        page = await self.bus.peek(pattern, 0, full := max(PAGE, limit + 1))
        if len(page) >= full:
            page = await self._bisect(pattern, page, limit, full)
        newest = list(page[-limit:])
        self.scanned = self.found = len(newest)
        return newest

    async def _bisect(self, pattern: str, page: Sequence[Stored], limit: int, full: int) -> Sequence[Stored]:
        """The last page, which has at least ``limit`` and less than ``full``; the first one is known, and full."""
        low, step, high = page[0].position, page[-1].position - page[0].position + 1, 0
        while limit > len(page) or len(page) >= full:
            after = (low + high) // 2 if high else low + step
            page = await self.bus.peek(pattern, after, full)
            if len(page) >= full:
                low, step = max(after, page[0].position - 1), step * 2
            elif len(page) < limit:
                high = after
            if high and high - low <= 1:  # more than a page at one position
                return await self.bus.peek(pattern, low, full)
        return page


def all_of(tests: Sequence[Wanted]) -> Wanted:
    """Whether a message passes each of some tests."""
    return lambda message: all(test(message) for test in tests)
