"""``tidings tail``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from shutil import get_terminal_size
from textwrap import indent
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from tidings import App, Message
from tidings.kernel.errors import InvalidOption
from tidings.kernel.topics import check_pattern
from tidings.kernel.transport import Consumer, Subscription

from . import show
from ._bus import PAGE, Source, find_source, inspectable, opened
from ._filters import Headers, Key, Where, contains, filters
from ._options import Json, Url, since_time
from ._scan import Wanted, all_of

AT_ONCE = 256


def tail(
    pattern: Annotated[str, Parameter(help="Topics: * is one token, a last > one or more.")] = ">",
    /,
    *,
    since: Annotated[
        str | None,
        Parameter(help="Begin with retained ones: first, -1h, or a date and time.", allow_leading_hyphen=True),
    ] = None,
    key: Key = None,
    header: Headers = [],  # noqa: B006
    where: Where = [],  # noqa: B006
    grep: Annotated[str | None, Parameter(help="Only those with this text in the body.")] = None,
    limit: Annotated[int | None, Parameter(help="End after so many.")] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Print messages as they come: time, topic, key, body; a copy, nobody is disturbed. Ctrl-C ends.

    Filters are looked at here: what they leave out has come over the bus. With --json: a line each, under CloudEvents
    names. On a terminal, a body that is longer than the line is indented below it.
    """
    pattern = check_pattern(pattern)
    start = None if since is None else since_time(since)
    if limit is not None and limit < 1:
        raise InvalidOption(f"--limit cannot be {limit}", mend="a number, at least 1")
    tests = filters(key, header, where=where) + ([contains(grep)] if grep is not None else [])
    printed = _Printed(all_of(tests) if tests else None, limit, json)
    logging.getLogger("tidings").setLevel(logging.ERROR)  # what was dropped is told once, at the end
    asyncio.run(_tail(find_source(url), pattern, start, printed))


async def _tail(source: Source, pattern: str, start: float | None, printed: _Printed) -> None:
    async with opened(source) as app:
        following = _Following(app, pattern, f"following {pattern} on {source}; Ctrl-C ends")
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, following.stop)
        watched = _when_reader_leaves(loop, following.stop)
        try:
            async for some in following.messages(start):
                if not printed(some):
                    break
        finally:
            if watched is not None:
                loop.remove_reader(watched)
            await following.close()
        if dropped := app.events["dropped"]:
            show.warn(f"{dropped:,} messages were not shown: they came faster than they were read")


class _Printed:
    """Prints those that are wanted, until there were enough."""

    def __init__(self, wanted: Wanted | None, limit: int | None, json: bool) -> None:
        self.wanted, self.left, self.line = wanted, limit, _json_line if json else _line

    def __call__(self, some: list[Message[Any]]) -> bool:
        """Whether more are wanted."""
        chosen = (some if self.wanted is None else list(filter(self.wanted, some)))[: self.left]
        if chosen:
            show.say("\n".join(map(self.line, chosen)))
        if self.left is not None:
            self.left -= len(chosen)
        return self.left != 0


class _Following:
    """What is retained, if asked for, then what comes."""

    def __init__(self, app: App, pattern: str, ready: str) -> None:
        self.app, self.pattern, self.ready = app, pattern, ready
        self.consumer: Consumer | None = None
        self.stopped = False
        self.position = 0

    def stop(self) -> None:
        self.stopped = True
        if self.consumer is not None:
            self.consumer.stop()

    async def close(self) -> None:
        self.stop()
        if self.consumer is not None:
            await self.consumer.close()

    async def messages(self, start: float | None) -> AsyncIterator[list[Message[Any]]]:
        """Retained ones since ``start``, then live ones; no message is missing in between, and none comes twice."""
        if start is not None:
            async for page in self._pages():
                yield [message for message in page if message.time >= start]
        subscription = Subscription(app=self.app.name, pattern=self.pattern)
        self.consumer = consumer = await self.app.bus().subscribe(subscription)
        show.note(self.ready)  # from here on nothing that is published is missed
        twice: Counter[tuple[str, str, float]] = Counter()
        if start is not None:  # what came while we subscribed: some of it will come again
            async for page in self._pages():
                twice.update(map(_identity, page))
                yield page
        while not self.stopped and (batch := await consumer.receive(AT_ONCE)):
            fresh = []
            for message in (delivery.message for delivery in batch):
                identity = _identity(message)
                if twice[identity]:
                    twice[identity] -= 1
                else:
                    fresh.append(message)
            yield fresh

    async def _pages(self) -> AsyncIterator[list[Message[Any]]]:
        bus = inspectable(self.app.bus())
        while not self.stopped and (page := await bus.peek(self.pattern, self.position, PAGE)):
            self.position = page[-1].position
            yield [stored.message for stored in page]


def _identity(message: Message[Any]) -> tuple[str, str, float]:
    return message.id, message.destination, message.time


def _when_reader_leaves(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> int | None:
    """Call ``stop`` as soon as nobody reads our pipe any more, not only at the next message."""
    with suppress(OSError, ValueError):
        number = sys.stdout.fileno()
        if stat.S_ISFIFO(os.fstat(number).st_mode):
            loop.add_reader(number, stop)
            return number
    return None


def _json_line(message: Message[Any]) -> str:
    event = show.event(message)
    if isinstance(raw := event.get("data"), msgspec.Raw):
        event["data"] = msgspec.Raw(msgspec.json.format(bytes(raw), indent=-1))
    return msgspec.json.encode(event).decode()


def _line(message: Message[Any]) -> str:
    stamp, topic = show.clock(message.time), show.clean(message.destination)
    key, body = show.clean(message.key) if message.key is not None else "-", show.body_line(message)
    if show.terminal(sys.stdout) and len(stamp + topic + key + body) + 6 > get_terminal_size().columns:
        body = indent(f"\n{show.body_pretty(message)}", "    ")
    head = "  ".join([show.styled(stamp, show.DIM), show.styled(topic, show.CYAN), show.styled(key, show.YELLOW)])
    return f"{head}{body}" if body.startswith("\n") else f"{head}  {body}"
