"""Following a pattern: what is published, to all who watch, at most once, each at its own pace.

One live subscription a pattern fills one window, whoever many follow it; a follower is a place in that window. Where
the bus keeps a log in one order, the window is read from the log and every message has a *cursor* (its position): who
fell behind, or comes again with the last cursor it saw, reads on from the log, and nothing is missing. Elsewhere the
cursor is the message's id and is good for as long as the window lasts; a follower that asks for more gets ``gap``.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from tidings.kernel.errors import BusError, BusUnavailable
from tidings.kernel.message import Message
from tidings.kernel.settling import AGAIN
from tidings.kernel.transport import Consumer, Delivery, Inspectable, Subscription, Transport

from .limits import Limits
from .refusals import Malformed

PAGE, LINGER = 500, 60.0  # messages; seconds that a window outlives its last follower
MANY = 1_000  # windows: when there are more, none outlives its last follower
LOOK, RECENT = 5.0, 10_000  # seconds between looks at the log that nothing called for; ids of what it has shown
LATE = (0.005, 0.02, 0.1, 0.5)  # seconds between looks for what came live, but is not in the log yet: NATS

T = TypeVar("T")


@runtime_checkable
class Log(Inspectable, Protocol):
    """Buses whose positions rise in the order in which messages come to be seen: nothing turns up behind."""

    async def position(self) -> int:
        """The last one given so far."""


class Item:
    """A message as followers get it, with its cursor; what it is turned into is made once for all of them."""

    __slots__ = ("cursor", "made", "message", "position")

    def __init__(self, message: Message[Any], cursor: str, position: int) -> None:
        self.message, self.cursor, self.position = message, cursor, position
        self.made: dict[Callable[[Item], Any], Any] = {}

    def as_(self, make: Callable[[Item], T]) -> T:
        """``make(self)``, made once."""
        found = self.made.get(make)
        if found is None:
            found = self.made[make] = make(self)
        return cast("T", found)


class Feed:
    """One pattern's window. ``first`` is the number of its oldest item."""

    def __init__(self, bus: Transport, app: str, pattern: str, window: int) -> None:
        self.bus, self.app, self.pattern, self.window = bus, app, pattern, window
        self.log = bus if isinstance(bus, Log) else None
        self.reading = asyncio.Lock()
        self.items, self.recent = deque[Item](), dict[str, None]()  # ids
        self.first = self.position = self.begun = 0  # a number, and positions: read so far, left the window
        self.waiting = set[asyncio.Future[None]]()
        self.followers = 0
        self.error: BaseException | None = None
        self.consumer: Consumer | None = None
        self.task: asyncio.Task[None] | None = None
        self.looking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """From now on nothing that is published is missed."""
        self.consumer = await self.bus.subscribe(Subscription(app=self.app, pattern=self.pattern))
        if self.log is not None:
            self.position = await self.log.position()
        self.begun = self.position
        self.task = asyncio.get_running_loop().create_task(self._run(self.consumer))
        if self.log is not None:
            self.looking = asyncio.get_running_loop().create_task(self._look(self.log))

    async def close(self) -> None:
        if self.looking is not None:
            self.looking.cancel()
        if self.consumer is not None and self.task is not None:
            self.consumer.stop()
            with suppress(BusError):
                await self.task
            with suppress(BusError):
                await self.consumer.close()
        self._wake()

    async def _run(self, consumer: Consumer) -> None:
        batch: Sequence[Delivery] = ()
        try:
            while True:
                try:
                    batch = batch or await consumer.receive(PAGE)
                    if not batch:
                        return
                    await self._take([delivery.message for delivery in batch])
                    batch = ()
                except BusError:  # what was not read is looked for again
                    await asyncio.sleep(AGAIN)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self._wake()

    async def _take(self, live: Sequence[Message[Any]]) -> None:
        """Add what the log shows beyond where we are; without a log, what came."""
        if self.log is None:
            self._add([Item(message, message.id, 0) for message in live])
            return
        for pause in (0.0, *LATE):
            await asyncio.sleep(pause)
            await self._read(self.log)
            if all(message.id in self.recent for message in live):
                break

    async def _look(self, log: Log) -> None:
        """Now and then, whatever comes live: while a connection is lost, nothing does."""
        while True:
            await asyncio.sleep(LOOK)
            with suppress(BusError):
                await self._read(log)

    async def _read(self, log: Log) -> None:
        async with self.reading:
            while page := await log.peek(self.pattern, self.position, PAGE):
                self.position = page[-1].position
                self._add([Item(s.message, str(s.position), s.position) for s in page])
                self.recent.update(dict.fromkeys(s.message.id for s in page))
                for id in list(islice(self.recent, max(0, len(self.recent) - RECENT))):
                    del self.recent[id]

    def _add(self, items: Sequence[Item]) -> None:
        self.items.extend(items)
        while len(self.items) > self.window:
            self.begun = self.items.popleft().position
            self.first += 1
        if items:
            self._wake()

    def _wake(self) -> None:
        waiting, self.waiting = self.waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    @property
    def ended(self) -> bool:
        return self.task is None or self.task.done()

    @property
    def next(self) -> int:
        """The number of the item that comes next."""
        return self.first + len(self.items)

    def since(self, number: int) -> list[Item]:
        return list(islice(self.items, number - self.first, number - self.first + PAGE))

    def after(self, position: int) -> int | None:
        """The number of the first item beyond a position of the log; None when that has left the window."""
        if position < self.begun:
            return None
        return self.first + bisect_right(self.items, position, key=lambda item: item.position)

    def after_id(self, id: str) -> int | None:
        """The number of what follows a message; None when it has left the window."""
        for index, item in enumerate(self.items):
            if item.cursor == id:
                return self.first + index + 1
        return None

    async def wait(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self.waiting.add(future)
        try:
            await future
        finally:
            self.waiting.discard(future)


class Follower:
    """Somebody's place in a feed. ``gap``: how often it missed something that is not to be had again."""

    def __init__(self, feed: Feed, leave: Callable[[Follower], None], counts: Counter[str], after: str | None) -> None:
        self.feed, self._leave, self.counts, self.gap = feed, leave, counts, 0
        self.number = feed.next
        self.position: int | None = None  # reading from the log, beyond this
        self.beyond = 0  # what the window shows up to this was read from the log
        self.cursor = after if after is not None else str(feed.position) if feed.log is not None else ""
        if after is not None:
            self._return(after)

    def _return(self, cursor: str) -> None:
        if self.feed.log is None:
            found = self.feed.after_id(cursor)
            self.gap += found is None
            self.number = self.feed.next if found is None else found
        elif cursor.isascii() and cursor.isdigit() and len(cursor) < 20:
            self.position = int(cursor)
        else:
            raise Malformed(f"{cursor!r} is no cursor of this bus", mend="send the last id as it came, or none")

    async def next(self) -> Sequence[Item]:
        """What follows, at least one; ``()`` when the gateway closes. A cancelled call loses nothing."""
        feed = self.feed
        while True:
            if self.position is not None:
                found = feed.after(self.position)
                if found is None:
                    items = await self._from_log(self.position)
                    if items:
                        self.position = items[-1].position
                        self.counts["delivered"] += len(items)
                        return items
                    found = feed.after(self.position)
                self.beyond = self.position  # of this the window may lack the end: the log was read ahead of it
                self.number, self.position = feed.first if found is None else found, None
            if self.number < feed.first:
                if feed.log is not None:
                    self.position = int(self.cursor or 0)
                    continue
                self.gap += 1
                self.number = feed.first
            if items := feed.since(self.number):
                self.number += len(items)
                if self.beyond and not (items := [item for item in items if item.position > self.beyond]):
                    continue
                self.beyond = 0
                self.cursor = items[-1].cursor
                self.counts["delivered"] += len(items)
                return items
            if feed.ended:
                return ()
            await feed.wait()

    async def _from_log(self, after: int) -> Sequence[Item]:
        assert self.feed.log is not None
        page = await self.feed.log.peek(self.feed.pattern, after, PAGE)
        items = [Item(s.message, str(s.position), s.position) for s in page]
        if items:
            self.cursor = items[-1].cursor
        return items

    def close(self) -> None:
        self._leave(self)


class Feeds:
    """All patterns that are followed."""

    def __init__(self, bus: Transport, app: str, limits: Limits, counts: Counter[str]) -> None:
        self.bus, self.app, self.limits, self.counts = bus, app, limits, counts
        self.known: dict[str, Feed] = {}
        self.oldest = 0  # position that the log had when somebody came from beyond a window
        self.opening: dict[str, asyncio.Task[Feed]] = {}
        self.closing = set[asyncio.Task[None]]()

    async def follow(self, pattern: str, after: str | None = None) -> Follower:
        """A new follower, from now on, or from beyond the cursor ``after``.

        Raises ``Malformed``; ``BusUnavailable`` when the bus does not answer in time; what a bus raises.
        """
        try:
            async with asyncio.timeout(self.limits.accept):
                feed = self.known.get(pattern)
                if feed is None or feed.ended:
                    feed = await asyncio.shield(self._open(pattern))  # whoever leaves meanwhile, it is opened whole
                return await self._followed(feed, after)
        except TimeoutError:
            raise BusUnavailable(f"the bus did not answer within {self.limits.accept:g} s") from None

    async def _followed(self, feed: Feed, after: str | None) -> Follower:
        follower = Follower(feed, self._left, self.counts, after)
        feed.followers += 1
        if follower.position is not None and feed.log is not None:
            try:
                last = await feed.log.position()
                if follower.position > last:  # of a log that is no more: an emptied bus?
                    follower.gap, follower.position, follower.cursor = 1, None, str(last)
                elif feed.after(follower.position) is None:
                    follower.gap = int(await self._dropped(feed.log, follower.position, last))
            except BaseException:
                follower.close()
                raise
        return follower

    async def _dropped(self, log: Log, after: int, last: int) -> bool:
        """Whether the log may have dropped what followed a position. Who asks from 0 asks for what there is."""
        first = await log.peek(">", max(self.oldest - 1, 0), 1)
        self.oldest = first[0].position if first else last + 1
        return 0 < after < self.oldest - 1

    def _open(self, pattern: str) -> asyncio.Task[Feed]:
        """The one task that opens a feed."""
        task = self.opening.get(pattern)
        if task is None:
            task = self.opening[pattern] = asyncio.get_running_loop().create_task(self._feed(pattern))
            task.add_done_callback(lambda done: (self.opening.pop(pattern), done.cancelled() or done.exception()))
        return task

    async def _feed(self, pattern: str) -> Feed:
        feed = Feed(self.bus, self.app, pattern, self.limits.window)
        await feed.open()
        self.known[pattern] = feed
        asyncio.get_running_loop().call_later(LINGER, self._linger, feed)  # should nobody have waited for it
        return feed

    def _left(self, follower: Follower) -> None:
        feed = follower.feed
        self.counts["gaps"] += follower.gap
        feed.followers -= 1
        if not feed.followers:
            later = LINGER if len(self.known) <= MANY else 0.0
            asyncio.get_running_loop().call_later(later, self._linger, feed)

    def _linger(self, feed: Feed) -> None:
        if not feed.followers and self.known.get(feed.pattern) is feed:
            del self.known[feed.pattern]
            task = asyncio.get_running_loop().create_task(feed.close())
            self.closing.add(task)
            task.add_done_callback(self.closing.discard)

    async def close(self) -> None:
        for opening in self.opening.values():  # of a bus that may be away
            opening.cancel()
        await asyncio.gather(*self.opening.values(), return_exceptions=True)
        known, self.known = self.known, {}
        await asyncio.gather(*(feed.close() for feed in known.values()), *self.closing, return_exceptions=True)
