"""AMQP 0-9-1 channels for batches, on a connection of aiormq.

Theory of operation. aiormq's own channel starts a task per delivery and takes a lock and two futures per publish; its
connection does the rest well: handshake, TLS, heartbeats, frames. So a ``Channel`` here is what that connection puts
frames into (``connection.channels``), and handles each at once. What is sent is gathered and leaves in one write per
turn of the loop, always in the order in which it was asked for: confirms are counted, so tags must not overtake.

A channel lives until its connection ends or the broker closes it; then ``failed`` is called, once, and everything that
waits on it raises ``ChannelLost``. Whoever owns it opens another: delivery tags never outlive their channel.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import pamqp.frame
from aiormq import Connection
from aiormq.abc import ChannelFrame
from msgspec import Struct
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

Headers = Iterable[tuple[str, str]]
Basic = commands.Basic

CONFIRMED, RETURNED, REFUSED = "confirmed", "returned", "refused"  # what became of a publication
CLOSING = 5.0  # seconds for a broker's answer to the end of a channel


class ChannelLost(Exception):
    """The channel is closed. ``code`` and ``text``: the broker's reason; 0 when its connection ended."""

    def __init__(self, code: int = 0, text: str = "the connection is lost") -> None:
        super().__init__(f"{code} {text}" if code else text)
        self.code, self.text = code, text


class Content(Struct, gc=False):
    """A message as it came. ``method``: how: a delivery, a return, the answer to a get."""

    method: Any
    properties: Any
    body: bytes


class Publication(Struct, frozen=True, gc=False):
    """A message to send: where to, its properties as bytes, and whether it comes back when no queue takes it."""

    exchange: str
    key: str
    properties: bytes
    body: bytes
    mandatory: bool = True


class Batch:
    """Publications of one call: the first's tag, and what became of each (None: not known yet)."""

    __slots__ = ("done", "first", "left", "outcomes", "publications")

    def __init__(self, publications: Sequence[Publication], first: int) -> None:
        self.publications, self.first, self.left = publications, first, len(publications)
        self.outcomes: list[str | None] = [None] * self.left
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, tag: int, outcome: str) -> None:
        index = tag - self.first
        if self.outcomes[index] is None or outcome is REFUSED:
            self.outcomes[index] = outcome
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


class Channel:
    """One channel. ``deliver`` gets each delivery, ``failed`` the reason of its end, both at once, on the loop."""

    def __init__(
        self,
        connection: Connection | None,
        deliver: Callable[[Content], None] = lambda content: None,
        failed: Callable[[ChannelLost], None] = lambda lost: None,
    ) -> None:
        if connection is None:
            raise ChannelLost
        self.connection, self.deliver, self.failed = connection, deliver, failed
        self.number = max(connection.channels, default=0) + 1
        self.lost: ChannelLost | None = None
        self.frames: Any = self  # aiormq's connection calls ``channel.frames.put``
        self.most = connection.connection_tune.frame_max - 8
        self.tag, self.returned = 0, 0  # of what was published; of what came back last
        self.pending: dict[int, Batch] = {}
        self._method: Any = None
        self._properties: Any = None
        self._parts: list[bytes] = []
        self._left = 0
        self._buffer: list[bytes] = []
        self._sending: asyncio.Task[None] | None = None
        self._asked = deque[asyncio.Future[Any] | None]()  # whose answer is to come: the broker keeps the order
        connection.channels[self.number] = self  # type: ignore[assignment]
        self._closing = connection.closing  # an observer of our own
        self._closing.add_done_callback(self._closed)

    def _closed(self, closing: asyncio.Future[Any]) -> None:
        if not closing.cancelled():
            closing.exception()
        self.fail(ChannelLost())

    async def open(self, *, confirms: bool = False) -> Channel:
        await self.ask(commands.Channel.Open())
        if confirms:
            await self.ask(commands.Confirm.Select())
        return self

    async def close(self) -> None:
        if self.lost is None:
            with suppress(ChannelLost, TimeoutError):
                await asyncio.wait_for(self.ask(commands.Channel.Close(200, "", 0, 0)), CLOSING)
            self.lost = self.lost or ChannelLost(0, "the channel was closed")
            self._closing.cancel()

    # -- sending

    def send(self, data: bytes) -> None:
        """Send frames, in order with everything else of this channel; on one that is lost, nothing."""
        if self.lost is not None:
            return
        self._buffer.append(data)
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        while self._buffer:
            data = b"".join(self._buffer)
            self._buffer.clear()
            drained = asyncio.get_running_loop().create_future()
            await self.connection.write_queue.put(ChannelFrame(data, False, drained))
            await drained
        self._sending = None

    def tell(self, method: Any, answer: asyncio.Future[Any] | None = None) -> None:
        """Send a method; should it have an answer, ``answer`` gets it, or nobody."""
        if method.synchronous and not getattr(method, "nowait", False):
            self._asked.append(answer)
        self.send(pamqp.frame.marshal(method, self.number))

    async def ask(self, method: Any) -> Any:
        """Send a method and wait for its answer; raises ``ChannelLost``."""
        if self.lost is not None:
            raise self.lost
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.tell(method, answer)
        return await answer

    async def answers(self) -> bool:
        """Whether the broker still has this channel, and has read all before; who was frozen does not know yet."""
        with suppress(ChannelLost):
            await self.ask(Basic.Qos(0, 1, False))
            return True
        return False

    def publish(self, publications: Sequence[Publication]) -> Batch:
        """Send publications; on a channel with confirms. The batch is done when the broker has answered for each."""
        if self.lost is not None:
            raise self.lost
        batch = Batch(publications, self.tag + 1)
        parts: list[bytes] = []
        for publication in publications:
            self.tag += 1
            self.pending[self.tag] = batch
            self._encode(publication, parts)
        self.send(b"".join(parts))
        return batch

    def _encode(self, publication: Publication, parts: list[bytes]) -> None:
        number, size = self.number.to_bytes(2), len(publication.body)
        parts.append(_publish(self.number, publication.exchange, publication.key, publication.mandatory))
        header = b"\0\x3c\0\0" + size.to_bytes(8) + publication.properties
        parts += b"\2", number, len(header).to_bytes(4), header, b"\xce"
        for at in range(0, size, self.most):
            part = publication.body[at : at + self.most] if size > self.most else publication.body
            parts += b"\3", number, len(part).to_bytes(4), part, b"\xce"

    def ack(self, tags: Sequence[int], prefix: int) -> None:
        """Acknowledge ``tags``, and everything up to ``prefix`` (0: nothing)."""
        number, parts = self.number.to_bytes(2), list[bytes]()
        for tag, multiple in (*([(prefix, 1)] if prefix else ()), *((tag, 0) for tag in tags)):
            parts += b"\1", number, b"\0\0\0\r\0\x3c\0\x50", tag.to_bytes(8), multiple.to_bytes(1), b"\xce"
        self.send(b"".join(parts))

    # -- what comes

    async def put(self, weighed: tuple[int, Any]) -> None:
        """A frame came: called by aiormq's connection."""
        frame = weighed[1]
        kind = type(frame)
        if self.lost is not None and kind is not commands.Channel.Close:  # it was still on its way
            return
        if kind is ContentBody:
            self._parts.append(frame.value)
            self._left -= len(frame.value)
            if self._left <= 0:
                self._content()
        elif kind is ContentHeader:
            self._properties, self._left = frame.properties, frame.body_size
            if not self._left:
                self._content()
        elif kind in _WITH_CONTENT:
            self._method = frame
        elif kind is Basic.Ack or kind is Basic.Nack:
            self._confirm(frame, CONFIRMED if kind is Basic.Ack else REFUSED)
        elif kind is commands.Channel.Close:
            self.fail(ChannelLost(frame.reply_code, frame.reply_text))
            await self._last(commands.Channel.CloseOk())
        elif kind is Basic.Cancel:  # its queue was deleted; what came from others goes back
            self.fail(ChannelLost(404, f"consumer {frame.consumer_tag} was cancelled: its queue is gone"))
            await self._last(commands.Channel.Close(200, "", 0, 0))
        else:
            self._answered(frame)

    async def _last(self, method: Any) -> None:
        await self.connection.write_queue.put(ChannelFrame(pamqp.frame.marshal(method, self.number), False))

    def _content(self) -> None:
        parts, method = self._parts, self._method
        content = Content(method, self._properties, parts[0] if len(parts) == 1 else b"".join(parts))
        self._parts = []
        if type(method) is Basic.Deliver:
            self.deliver(content)
        elif type(method) is Basic.Return:
            self._return(content)
        else:
            self._answered(content)

    def _answered(self, answer: Any) -> None:
        asked = self._asked.popleft() if self._asked else None
        if asked is not None and not asked.done():
            asked.set_result(answer)

    def _confirm(self, frame: Any, outcome: str) -> None:
        tag, pending = frame.delivery_tag, self.pending
        if frame.multiple:
            for earlier in list(_until(pending, tag)):
                pending.pop(earlier).settle(earlier, outcome)
        elif tag in pending:
            pending.pop(tag).settle(tag, outcome)

    def _return(self, content: Content) -> None:
        """A publication that no queue took comes back, before its confirm, in the order of publishing."""
        first = max(self.returned + 1, next(iter(self.pending), self.tag + 1))
        for tag in range(first, self.tag + 1):
            batch = self.pending.get(tag)
            if batch is None:
                continue
            publication = batch.publications[tag - batch.first]
            if publication.key == content.method.routing_key and publication.body == content.body:
                self.returned, batch.outcomes[tag - batch.first] = tag, RETURNED
                return

    def fail(self, lost: ChannelLost) -> None:
        """It is over: nothing that waits is answered any more, and what was not confirmed is unknown."""
        if self.lost is None:
            self.lost = lost
            self._closing.cancel()
            if self._sending is not None:
                self._sending.cancel()
            for asked in self._asked:
                if asked is not None and not asked.done():
                    asked.set_exception(lost)
            self._asked.clear()
            for batch in set(self.pending.values()):
                if not batch.done.done():
                    batch.done.set_result(None)
            self.pending.clear()
            self.failed(lost)


class Source:
    """A queue that is consumed on a channel. ``window``: how many it may have sent that are not acknowledged."""

    def __init__(self, name: str, queue: str) -> None:
        self.name, self.queue = name, queue
        self.window, self.number = 0, 0
        self.out = set[int]()  # tags that count against the window
        self.buffer = deque[Any]()  # what came and was not received yet

    @property
    def full(self) -> bool:
        """Whether the broker has sent all that it may, so that nothing is on its way."""
        return len(self.out) >= self.window

    def consume(self, channel: Channel, window: int) -> None:
        """Let the broker send so many, or no more (0); what it sent before stays in hand.

        What is on its way when a consumer ends goes back, as if we had died: so only when nothing is.
        """
        if channel.lost is not None:
            return
        if self.window:
            channel.tell(Basic.Cancel(f"{self.name}{self.number}", nowait=True))
        self.window, self.number, self.out = window, self.number + 1, set()
        if window:
            channel.tell(Basic.Qos(0, window, False))
            channel.tell(Basic.Consume(0, self.queue, f"{self.name}{self.number}", nowait=True))


_WITH_CONTENT = (Basic.Deliver, Basic.Return, Basic.GetOk)


def _until(pending: dict[int, Batch], tag: int) -> Iterable[int]:
    for known in pending:  # in the order of publishing
        if known > tag:
            return
        yield known


@lru_cache(4096)
def _publish(number: int, exchange: str, key: str, mandatory: bool) -> bytes:
    return pamqp.frame.marshal(Basic.Publish(0, exchange, key, mandatory), number)


@lru_cache(4096)
def _name(name: str) -> bytes:
    return short(name) + b"S"


def short(text: str) -> bytes:
    """A short string. Raises ``OverflowError`` above 255 bytes."""
    data = text.encode()
    return len(data).to_bytes(1) + data


def encoded(content_type: str, headers: Headers, message_id: str, time: float, priority: int, expiration: str) -> bytes:
    """Properties of a persistent message, as they follow the size in its header frame.

    Raises ``OverflowError`` for a name or content type above 255 bytes.
    """
    table = bytearray()
    for name, value in headers:
        data = value.encode()
        table += _name(name)
        table += len(data).to_bytes(4)
        table += data
    flags = 0xB040 | (0x0800 if priority else 0) | (0x0100 if expiration else 0) | (0x0080 if message_id else 0)
    return b"".join(
        (
            flags.to_bytes(2),
            short(content_type),
            len(table).to_bytes(4),
            table,
            b"\2",
            priority.to_bytes(1) if priority else b"",
            short(expiration) if expiration else b"",
            short(message_id) if message_id else b"",
            int(time).to_bytes(8),
        )
    )
