"""Streams of RabbitMQ, read through AMQP: from a position on, as far as they reach now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiormq import Connection
from pamqp.commands import Basic

from .channel import Channel, ChannelLost, Content
from .content import refused

if TYPE_CHECKING:
    from .link import Link

EMPTY, WINDOW = 1.0, 64  # seconds after which a stream is empty; messages on their way at once

Came = asyncio.Queue[Content | ChannelLost]


async def follow(connection: Connection | None, queue: str, start: Any, more: Callable[[int, Content], bool]) -> None:
    """Hand positions and messages from ``start`` on to ``more``, for as long as it says so, and wait for them.

    ``start``: a position, or a time with a zone. Raises ``ChannelLost``.
    """
    channel, came = await _reader(connection, queue, start)
    try:
        while isinstance(content := await came.get(), Content):
            channel.ack((), content.method.delivery_tag)
            if not more(content.properties.headers["x-stream-offset"], content):
                return
        raise content
    finally:
        await channel.close()


async def end(connection: Connection | None, queue: str) -> int:
    """The position behind the last message; 0 for an empty stream, which takes a moment to know."""
    channel, came = await _reader(connection, queue, "last")
    try:
        content = await asyncio.wait_for(came.get(), EMPTY)
        while isinstance(content, Content):
            if came.empty():  # the last chunk comes in one go, before the answer to what is asked meanwhile
                channel.ack((), content.method.delivery_tag)
                await channel.ask(Basic.Qos(0, WINDOW, False))
            if came.empty():
                return int(content.properties.headers["x-stream-offset"]) + 1
            content = came.get_nowait()
        raise content
    except TimeoutError:
        return 0
    finally:
        await channel.close()


async def read(
    connection: Connection | None, queue: str, start: int, note: Callable[[int, Content], None], limit: int = 2**62
) -> None:
    """Note positions and messages from ``start`` up to the present end, at most ``limit``; raises ``ChannelLost``."""
    last = min(await end(connection, queue), start + limit) - 1

    def noted(position: int, content: Content) -> bool:
        if position <= last:
            note(position, content)
        return position < last

    if start <= last:
        await follow(connection, queue, start, noted)


async def _reader(connection: Connection | None, queue: str, start: Any) -> tuple[Channel, Came]:
    came = Came()
    channel = await Channel(connection, came.put_nowait, came.put_nowait).open()
    await channel.ask(Basic.Qos(0, WINDOW, False))
    await channel.ask(Basic.Consume(0, queue, "reader", arguments={"x-stream-offset": start}))
    return channel, came


async def first(connection: Connection | None, queue: str, mine: str, due: float) -> bool:
    """Whether a claim, with the message id ``mine``, is the first in its stream for ``due`` or later.

    Who claims one as late does so after it is due, so no more than that need be read. Raises ``ChannelLost``.
    """
    rivals = 0

    def more(position: int, content: Content) -> bool:
        nonlocal rivals
        if content.properties.message_id == mine:
            return False
        rivals += float(content.body) >= due
        return True

    await follow(connection, queue, datetime.fromtimestamp(max(due - 60.0, 0.0), UTC), more)
    return not rivals


class Tail:
    """A stream that only grows, read bit by bit."""

    def __init__(self, link: Link, queue: str) -> None:
        self.link, self.queue, self.next = link, queue, 0
        self.reading = asyncio.Lock()

    async def news(self, note: Callable[[Content], None]) -> None:
        """Note what was appended since the last time; raises ``BusUnavailable``."""

        def noted(position: int, content: Content) -> None:
            self.next = position + 1
            note(content)

        async with self.reading:
            try:
                await read(self.link.client, self.queue, self.next, noted)
            except ChannelLost as lost:
                raise refused(lost, f"stream {self.queue!r}") from None
