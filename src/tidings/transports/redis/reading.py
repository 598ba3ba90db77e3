"""What reads streams: on a connection of its own, by calls that block; and live copies, which only read.

A live subscription reads streams from their ends with ``XREAD``, so a slow one drops its oldest and says how many;
Pub/Sub, whose slow listeners the server throws out, carries only replies, which are for one process and are not kept.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import RedisError, ResponseError

from tidings.kernel import errors
from tidings.kernel import transport as spi
from tidings.kernel.topics import is_pattern
from tidings.kernel.transport import Delivery, Event, Failure
from tidings.transports._live import answers
from tidings.transports._matcher import expression

from .entries import message
from .inspection import refusal
from .links import ANSWER, ELSEWHERE, HANDSHAKE, Link, Read

if TYPE_CHECKING:
    from .transport import RedisTransport

BUFFER, AT_ONCE = 1024, 1000  # messages of a live copy; of a stream in one of its reads
BLOCK = 10.0  # seconds a read may wait
SOON = 0.5  # seconds, where one who stops must not be kept waiting


class Reader:
    """A connection for calls that block; ``waiting`` while one may."""

    def __init__(self, transport: RedisTransport, name: str) -> None:
        self.transport, self.name = transport, name
        self.link: Link | None = None
        self.id, self.waiting = 0, False

    async def ask(self, *command: Any, within: float = ANSWER, read: Read | None = None) -> Any:
        """The answer; without one in time, or any other trouble, the connection is given up."""
        try:
            async with asyncio.timeout(HANDSHAKE + within):
                if self.link is None or self.link.ended.done():
                    await self.open()
                assert self.link is not None
                return await self.link.ask(*command, read=read)
        except ResponseError:
            raise
        except BaseException:
            self.close()
            raise

    async def open(self) -> None:
        self.link = await self.transport.server.link(self.name)
        self.id = await self.link.ask("CLIENT", "ID")

    def close(self) -> None:
        link, self.link = self.link, None
        if link is not None:
            link.end(NotConnected("given up"))

    async def unblock(self) -> None:
        """End a call that blocks, as if its time were up; one that is about to block, too. By force if need be."""
        for _ in range(100):
            if not self.waiting:
                return
            with suppress(RedisError, OSError, errors.BusError):
                link = await self.transport.linked(self.transport.loop.time())
                await link.ask("CLIENT", "UNBLOCK", self.id)
            await asyncio.sleep(0.005)
        self.close()


class Reading:
    """What all that reads streams has in common: its topics, and waking it."""

    def __init__(self, transport: RedisTransport, pattern: str) -> None:
        transport.names += 1
        self.transport, self.pattern, self.name = transport, pattern, f"{transport.member}.{transport.names}"
        self.reader = Reader(transport, f"tidings-{self.name}")
        self.stopped, self.stale = False, True
        self.topics: dict[bytes, str] = {}  # by key
        self.records: list[bytes] = []
        self.unblocking = False
        self.present: tuple[str, ...] = ()  # channels that tell others that it is here

    async def refresh(self) -> None:
        """The streams there are."""
        raise NotImplementedError

    async def registered(self) -> list[str] | None:
        """The topics there are; None while nobody can tell, which takes a moment. ``records``: the groups."""
        bus = self.transport.bus
        try:
            link = await self.transport.linked(self.transport.loop.time() + SOON)
            self.stale = False
            self.records = await link.ask("HVALS", f"{bus}groups")
            return [name.decode() for name in await link.ask("SMEMBERS", f"{bus}topics")]
        except (RedisError, OSError, errors.BusUnavailable):
            self.stale = True
            await asyncio.sleep(0.02)
            return None

    def told(self, what: str, about: str, data: bytes) -> None:
        if what == "topic" and expression(self.pattern).fullmatch(about):
            self.changed()

    def changed(self) -> None:
        """There are other streams to read, or there is another connection."""
        self.stale = True
        self.wake()

    def reconnected(self) -> None:
        self.changed()

    def wake(self) -> None:
        if self.reader.waiting and not self.unblocking:
            self.unblocking = True
            self.transport.spawn(self._unblock())

    async def _unblock(self) -> None:
        try:
            await self.reader.unblock()
        finally:
            self.unblocking = False

    def stop(self) -> None:
        self.stopped = True
        self.wake()

    async def blocking(self, seconds: float, *command: Any, read: Read | None = None) -> Any:
        """The answer, as ``read``, to a call that may block for so long; None when it brought none, also because of
        trouble.
        """
        transport = self.transport
        if self.stopped or self.stale:  # whoever wants it awake found nobody waiting
            return None
        try:
            self.reader.waiting = True
            return await self.reader.ask(*command, within=seconds + ANSWER, read=read)
        except ELSEWHERE as error:
            if transport.link is not None:
                transport.link.end(error)
        except ResponseError as error:  # the connection is as good as before
            if not str(error).startswith(("NOGROUP", "UNBLOCKED", "WRONGTYPE")):
                raise errors.BusUnavailable(f"Redis at {transport.server.shown} refuses", why=str(error)) from error
            await self.repair()
        except (RedisError, OSError, TimeoutError, errors.BusUnavailable):
            self.in_doubt()
            await asyncio.sleep(0.05)
        finally:
            self.reader.waiting = False
        return None

    def in_doubt(self) -> None:
        """An answer was lost."""

    async def repair(self) -> None:
        """A stream is not there any more."""

    async def leave(self) -> None:
        """Nobody is here any more."""
        transport = self.transport
        if self in transport.consumers:
            transport.consumers.discard(self)
            await transport.channels.remove(*self.present)


class Live(Reading):
    """A buffer that drops its oldest; nothing to settle."""

    lease = float("inf")

    def __init__(self, transport: RedisTransport, pattern: str) -> None:
        super().__init__(transport, pattern)
        self.session, self.buffer, self.filled = spi.Session(), deque[Delivery](), asyncio.Event()
        self.present = (f"{transport.bus}listens:{pattern}",)

    async def enter(self) -> None:
        await self.transport.channels.add(*self.present)

    def push(self, topic: str, id: bytes, entry: list[Any]) -> None:
        self.buffer.append(Delivery(message(topic, id, entry), self.session))
        self.filled.set()

    def drop(self) -> None:
        dropped = len(self.buffer) - BUFFER
        if dropped > 0:
            for _ in range(dropped):
                self.buffer.popleft()
            self.transport.notify(Event("dropped", dropped, self.pattern))

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not self.stopped:
            if self.buffer:
                return [self.buffer.popleft() for _ in range(min(limit, len(self.buffer)))]
            self.filled.clear()
            await self.filled.wait()
        return ()

    def stop(self) -> None:
        super().stop()
        self.filled.set()

    async def settle(self, settlements: Sequence[spi.Settlement]) -> Sequence[Failure]:
        return await answers(self.transport.publish, settlements)

    async def extend(self, deliveries: Sequence[Delivery]) -> None: ...

    async def tend(self) -> None: ...

    async def sweep(self, every: float) -> None: ...

    async def mark(self, delivery: Delivery) -> bool:
        return not self.stopped

    async def close(self) -> None:
        self.stop()
        await self.leave()


class LiveConsumer(Live):
    """A live copy of topics."""

    def __init__(self, transport: RedisTransport, pattern: str) -> None:
        super().__init__(transport, pattern)
        self.ends: dict[bytes, bytes] = {}  # the last id read, by key
        self.reading: asyncio.Task[None] | None = None

    async def enter(self) -> None:
        await super().enter()
        while self.stale:
            await self.refresh()
        link = await self.transport.linked(None)
        for key in self.topics:
            try:
                told = await link.ask("XINFO", "STREAM", key)
                self.ends[key] = told[told.index(b"last-generated-id") + 1]
            except RedisError:  # nothing in it yet
                self.ends[key] = b"0"
        await self.reader.open()  # it follows from now on, also while nobody receives
        self.reading = self.transport.loop.create_task(self._read())

    async def refresh(self) -> None:
        transport, names = self.transport, await self.registered()
        if names is None:
            return
        match = expression(self.pattern).fullmatch
        wanted = {name for name in names if match(name)} | (
            {self.pattern} - {""} if not is_pattern(self.pattern) else set()
        )
        if len(wanted) > transport.options.topics:
            raise refusal(transport, f"WIDE {self.pattern}")
        self.topics = {transport.key(topic).encode(): topic for topic in sorted(wanted)}

    async def _read(self) -> None:
        while not self.stopped:
            try:
                if self.stale:
                    await self.refresh()
                if not self.topics:
                    await asyncio.sleep(0.02)
                    continue
                ends = [self.ends.setdefault(key, b"0") for key in self.topics]
                read = ("XREAD", "COUNT", AT_ONCE, "BLOCK", int(BLOCK * 1000), "STREAMS", *self.topics, *ends)
                for key, entries in await self.blocking(BLOCK, *read) or ():
                    self.ends[key] = entries[-1][0]
                    for id, entry in entries:
                        self.push(self.topics[key], id, entry)
                self.drop()
            except errors.BusError as error:
                self.transport.notify(Event("lost", 0, str(error)))
                await asyncio.sleep(1.0)

    async def leave(self) -> None:
        await super().leave()
        if self.reading is not None:
            self.reading.cancel()
            await asyncio.gather(self.reading, return_exceptions=True)
        self.reader.close()


class ReplyConsumer(Live):
    """Replies to this process."""

    def __init__(self, transport: RedisTransport, pattern: str) -> None:
        super().__init__(transport, pattern)
        self.present = (f"{transport.bus}{pattern}",)

    def told(self, what: str, about: str, data: bytes) -> None:
        if what == "reply" and about == self.pattern:
            entry: Any = msgspec.msgpack.decode(data)
            self.push(about, b"0-0", entry)
            self.drop()
