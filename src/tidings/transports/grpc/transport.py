"""A member of a served bus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from grpc import aio

from tidings.kernel import transport as spi
from tidings.kernel.errors import BusUnavailable, NotOpen, TooLarge
from tidings.kernel.message import Message
from tidings.kernel.transport import Capabilities, Event, Failure, Subscription

from . import GRPC
from .consumers import GRPCConsumer
from .link import Link, Lost
from .wire import MARGIN, failures, heard, packed, pb, pieces, unpacked


class GRPCTransport:
    """One member. ``client`` is its ``grpc.aio.Channel``."""

    def __init__(self, options: GRPC) -> None:
        self.options = options
        self.capabilities = Capabilities(durable="none", ordering="none")  # nothing, until the server has told
        self.consumers: dict[GRPCConsumer, None] = {}
        self.link = Link(options, self._returned, self._lost)
        self.room = 0  # bytes of what one ask may bring
        self.notify: Callable[[Event], None] = lambda event: None

    @property
    def client(self) -> aio.Channel | None:
        return self.link.channel

    # -- life cycle

    async def open(self, notify: Callable[[Event], None]) -> None:
        self.notify = notify
        welcome = await self.link.open(notify)
        self.capabilities = heard(Capabilities, welcome.capabilities)
        self.room = welcome.frame - MARGIN
        looking = Looking(self._ask)
        for name in welcome.offers:  # what the bus behind cannot, a member has no method for
            if hasattr(looking, name):
                setattr(self, name, getattr(looking, name))
        notify(Event("connected"))

    async def close(self) -> None:
        for consumer in tuple(self.consumers):
            consumer.stop()
        await self.link.close()

    async def _returned(self) -> None:
        for consumer in tuple(self.consumers):
            await consumer.subscribe()

    def _lost(self) -> None:
        for consumer in tuple(self.consumers):
            consumer.lost()

    async def _ask(self, **what: Any) -> Sequence[Any]:
        try:
            return await self.link.ask(**what)
        except Lost:
            raise BusUnavailable("the server was lost while it was asked", mend="ask again") from None

    # -- publishing and subscribing

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        if self.link.running is None:
            raise NotOpen("the bus is not open")
        runs = list(pieces(list(map(packed, messages)), self.room))
        if any(run[0].ByteSize() > self.room for run in runs) or (len(runs) > 1 and self.capabilities.publish_atomic):
            error = self.too_large()
            return [Failure(index, "rejected", error) for index in range(len(messages))]
        failed, first = list[Failure](), 0
        for run in runs:
            failed += [Failure(first + f.index, f.kind, f.error) for f in await self._publish(run)]
            first += len(run)
        return failed

    def too_large(self) -> TooLarge:
        mend = "publish fewer at once, or raise `batch` of the server's limits"
        return TooLarge(f"the server takes {self.room:,} bytes at once", mend=mend)

    async def _publish(self, run: Sequence[Any]) -> Sequence[Failure]:
        batch = pb.Batch(messages=run)
        while True:
            try:
                (answer,) = await self.link.ask(publish=batch)
            except Lost as lost:
                if not lost.sent:
                    continue
                error = BusUnavailable("the server was lost before it answered", mend="publish again with the same id")
                return [Failure(index, "unknown", error) for index in range(len(run))]
            return failures(answer.failures)

    async def subscribe(self, subscription: Subscription) -> GRPCConsumer:
        consumer = GRPCConsumer(self, subscription)
        while True:
            await self.link.there()
            with suppress(Lost):
                await consumer.subscribe()
                self.consumers[consumer] = None
                return consumer


class Looking:
    """What only some buses can: each is a member's method where the bus behind has it."""

    def __init__(self, ask: Callable[..., Awaitable[Sequence[Any]]]) -> None:
        self.ask = ask

    async def topics(self, pattern: str = ">") -> Sequence[spi.TopicInfo]:
        return [heard(spi.TopicInfo, each) for part in await self.ask(topics=pattern) for each in part.topics]

    async def groups(self, pattern: str = ">") -> Sequence[spi.GroupInfo]:
        return [heard(spi.GroupInfo, each) for part in await self.ask(groups=pattern) for each in part.groups]

    async def peek(self, pattern: str, after: int = 0, limit: int = 100) -> Sequence[spi.Stored]:
        parts = await self.ask(peek=pb.Peek(pattern=pattern, after=after, limit=limit))
        return [spi.Stored(each.position, unpacked(each.message)) for part in parts for each in part.stored]

    async def position(self) -> int:
        (answer,) = await self.ask(position=pb.Nothing())
        return int(answer.position)

    async def rename(self, group: str, to: str) -> None:
        await self.ask(rename=pb.Rename(group=group, to=to))

    async def drop(self, group: str) -> None:
        await self.ask(drop=group)

    async def seek(self, group: str, start: float) -> None:
        await self.ask(seek=pb.Seek(group=group, start=start))

    async def tick(self, name: str, due: float) -> bool:
        (answer,) = await self.ask(tick=pb.Tick(name=name, due=due))
        return bool(answer.yes)
