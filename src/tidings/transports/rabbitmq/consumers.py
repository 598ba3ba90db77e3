"""Receiving and settling: a subscription's end of the bus, in one process."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pamqp.commands import Basic, Queue

from tidings.kernel import errors
from tidings.kernel import transport as spi
from tidings.kernel.message import new_id
from tidings.kernel.topics import GROUP, REQUEST, is_pattern
from tidings.kernel.transport import Delivery, Event, Failure, Release, Retry, Settlement, Subscription
from tidings.transports._points import passed
from tidings.transports._wire import copied, counts

from .channel import CONFIRMED, Channel, ChannelLost, Content, Publication, Source
from .content import MARK, Sending, fenced, opened, properties, refused, words
from .link import FIRST, LONGEST, MARKED

if TYPE_CHECKING:
    from .transport import RabbitMQTransport

log = logging.getLogger("tidings")

LIVE_BUFFER, LIVE_QUEUE = 1024, 65_536  # messages of a live subscription: here, and in a broker that cannot send them
QUIET = 0.1  # seconds in which what is on its way arrives, from a busy broker too


class Consumer:
    """A subscription's end of the bus: what came and was not received yet, and who waits for it."""

    lease = math.inf  # the connection is the lease

    def __init__(self, transport: RabbitMQTransport, subscription: Subscription) -> None:
        self.transport, self.subscription = transport, subscription
        self.name = subscription.group or subscription.pattern
        self.buffers: tuple[deque[Delivery], ...] = (deque(),)  # the first goes first
        self.held: dict[int, Delivery] = {}  # by tag, in order: what is not acknowledged
        self.session = spi.Session()
        self.channel: Channel  # since ``attach``
        self.stopped = False
        self.future: asyncio.Future[None] | None = None
        self.returning: asyncio.Task[None] | None = None

    async def attach(self, *, again: bool = False) -> None:
        """Get a channel and a queue; ``again``: after they were lost."""
        raise NotImplementedError

    def lost(self, why: ChannelLost) -> None:
        """The channel is gone: with the connection, which the transport restores, or alone."""
        if why.code and not self.stopped and (self.returning is None or self.returning.done()):
            log.warning("RabbitMQ closed the channel of %s: %s", self.name, why)
            self.returning = asyncio.get_running_loop().create_task(self._again())

    async def _again(self) -> None:
        self.transport.notify(Event("lost", detail=f"the channel of {self.name}"))
        wait = FIRST
        while not self.stopped and self.transport.link.up.is_set() and self.channel.lost is not None:
            try:
                await self.attach(again=True)
                return
            except Exception as error:  # whatever it is: for ever
                log.warning("%s is not back yet: %s", self.name, error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, LONGEST)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not self.stopped:
            self.prepare(limit)
            taken = list[Delivery]()
            for buffer in self.buffers:
                taken += [buffer.popleft() for _ in range(min(limit - len(taken), len(buffer)))]
            if taken:
                passed("receive")
                return taken
            self.future = asyncio.get_running_loop().create_future()
            await self.future
        return ()

    def prepare(self, limit: int) -> None:
        """Before as many as ``limit`` are received."""

    def wake(self) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def stop(self) -> None:
        self.stopped = True
        self.wake()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        raise NotImplementedError

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Nothing to renew."""

    async def mark(self, delivery: Delivery) -> bool:
        return True

    async def close(self) -> None:
        self.stop()
        self.transport.consumers.pop(self, None)
        await self.channel.close()


class LiveConsumer(Consumer):
    """At most once: an exclusive queue without acknowledgements, and a buffer that drops its oldest."""

    dropped = 0

    async def attach(self, *, again: bool = False) -> None:
        bus, pattern = self.transport, self.subscription.pattern
        self.channel = await Channel(bus.client, self._deliver, self.lost).open()
        queue = f"{bus.prefix}_live.{new_id()}"
        short: Any = {"x-max-length": LIVE_QUEUE, "x-overflow": "drop-head"}
        await self.channel.ask(Queue.Declare(0, queue, exclusive=True, auto_delete=True, arguments=short))
        await self.channel.ask(Queue.Bind(0, queue, bus.exchange_of(pattern), words(pattern)))
        await self.channel.ask(Basic.Consume(0, queue, "live", no_ack=True))

    def _deliver(self, content: Content) -> None:
        (buffer,) = self.buffers
        if len(buffer) == LIVE_BUFFER:
            buffer.popleft()
            self.dropped += 1
        buffer.append(Delivery(opened(content)[0], self.session))
        self.wake()

    def prepare(self, limit: int) -> None:
        if self.dropped:
            self.transport.notify(Event("dropped", self.dropped, self.subscription.pattern))
            self.dropped = 0

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        items = [(message, index) for index, s in enumerate(settlements) for message in s.outgoing]
        failed = await self.transport.send([Sending(message) for message, _ in items])
        return [Failure(items[f.index][1], f.kind, f.error) for f in failed]


class GroupConsumer(Consumer):
    """A member of a group. What comes again goes first: it has waited, and may be late behind a backlog."""

    last = 0  # the newest tag

    def __init__(self, transport: RabbitMQTransport, subscription: Subscription) -> None:
        super().__init__(transport, subscription)
        self.again = Source("again", transport.again_of(self.name))
        self.new = Source("new", transport.queue_of(self.name))
        self.sources = self.again, self.new
        self.buffers = self.again.buffer, self.new.buffer
        self.stored: dict[int, int] = {}  # failures as they came; the kernel adds those in place to its delivery
        self.leaving = set[int]()  # being settled
        self.left: asyncio.Task[None]  # since ``stop``
        self.aside: Channel | None = None  # where marked suspects are held
        self.marked: dict[int, int] = {}  # their tags there, by the tags they came with

    async def attach(self, *, again: bool = False) -> None:
        await self.transport.join(self.subscription, again=again)
        self.session = spi.Session()
        self.channel = await Channel(self.transport.client, self._deliver, self.lost).open()
        answers = self.subscription.pattern.startswith(REQUEST) and not self.stopped  # only who consumes can answer
        for source in self.sources:
            window, source.window = source.window or 2 * self.subscription.concurrency * answers, 0
            if window and not self.stopped:
                source.consume(self.channel, window)
        self.wake()  # who waits asked a channel that was lost by then
        if answers:
            await self.transport.counted(self.subscription.pattern)

    def lost(self, why: ChannelLost) -> None:
        """Everything in hand is somebody else's now."""
        self.session.alive = False
        for buffer in self.buffers:
            buffer.clear()
        for mine in (self.held, self.stored, self.marked):
            mine.clear()
        if self.aside is not None:
            asyncio.get_running_loop().create_task(self.aside.close())  # what is held there comes back
        self.aside, self.leaving = None, set()
        super().lost(why)

    def prepare(self, limit: int) -> None:
        wanted = len(self.held) - sum(map(len, self.buffers)) + limit
        for source in self.sources:
            if wanted > source.window and source.full:
                source.consume(self.channel, min(2 * wanted, 65_535))

    def _deliver(self, content: Content) -> None:
        method, pattern, bus = content.method, self.subscription.pattern, self.transport
        foreign = method.exchange != bus.exchange and not method.exchange.startswith(bus.prefix)
        message, told = opened(content, pattern if foreign and not is_pattern(pattern) else "")
        failures, crashes = counts(told)
        suspect = method.redelivered or MARK in (content.properties.headers or ())
        delivery = Delivery(message, self.session, method.delivery_tag, failures, crashes, suspect)
        source = self.again if method.consumer_tag.startswith(self.again.name) else self.new
        self.held[method.delivery_tag] = delivery
        self.last = method.delivery_tag
        source.out.add(method.delivery_tag)
        source.buffer.append(delivery)
        if failures:
            self.stored[method.delivery_tag] = failures
        self.wake()

    def stop(self) -> None:
        if not self.stopped:
            super().stop()
            self.left = asyncio.get_running_loop().create_task(self._leave())

    async def _leave(self) -> None:
        """End consuming when nothing is on its way, and give back what nobody has received."""
        with suppress(ChannelLost, errors.TidingsError):
            while self.channel.lost is None and not all(source.full for source in self.sources):
                before = self.last
                await asyncio.sleep(QUIET)
                if self.last == before:
                    break
            for source in self.sources:
                source.consume(self.channel, 0)
            await self._give_back(delivery for buffer in self.buffers for delivery in buffer)
            for buffer in self.buffers:
                buffer.clear()

    async def close(self) -> None:
        """Give back what is in hand, as copies: what the broker takes back by itself looks like a dead holder's."""
        self.stop()
        self.transport.consumers.pop(self, None)
        await self.left
        with suppress(ChannelLost, errors.TidingsError):
            await self._give_back(self.held.values())
        for channel in (self.aside, self.channel):
            if channel is not None:
                await channel.close()

    async def _give_back(self, deliveries: Iterable[Delivery]) -> None:
        if self.channel.lost is None:
            await self.channel.ask(Basic.Qos(0, 1, False))  # so that no delivery is on its way through the channel
            await self.settle([Settlement(delivery, Release()) for delivery in deliveries])

    # -- settling

    def _ours(self, delivery: Delivery) -> bool:
        return delivery.session is self.session and delivery.token in self.held and delivery.token not in self.leaving

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        failures, todo, leaving = list[Failure](), dict[int, Settlement](), self.leaving
        for index, settlement in enumerate(settlements):
            if self._ours(settlement.delivery):
                todo[index] = settlement
                leaving.add(settlement.delivery.token)
            else:
                failures.append(fenced(index, settlement.delivery))
        tags = [settlement.delivery.token for settlement in todo.values()]
        passed("settle.before")
        try:
            failures += await self._send(todo, lambda s: [Sending(message) for message in s.outgoing])
            failures += await self._send(todo, self._copies)
            passed("settle.published")
            if todo and not await self._acked([settlement.delivery.token for settlement in todo.values()]):
                failures += [fenced(index, settlement.delivery) for index, settlement in todo.items()]
        finally:
            leaving.difference_update(tags)
        if late := sum(failure.kind == "fenced" for failure in failures):
            self.transport.notify(Event("fenced", late, self.name))
        return failures

    async def _send(self, todo: dict[int, Settlement], of: Callable[[Settlement], list[Sending]]) -> list[Failure]:
        """Publish what belongs to each settlement; whose does not arrive, or comes too late, leaves ``todo``."""
        items = [(item, index) for index, settlement in todo.items() for item in of(settlement)]
        if not items:
            return []
        session, failed = self.session, dict[int, Failure]()
        await self.transport.link.ready()
        if session.alive and (items[0][0].counted is None or await self.channel.answers()):
            failed = {items[f.index][1]: f for f in await self.transport.send([item for item, _ in items])}
        found = [Failure(index, failure.kind, failure.error) for index, failure in failed.items()]
        for index in failed:
            del todo[index]
        if not session.alive:
            found += [fenced(index, settlement.delivery) for index, settlement in todo.items()]
            todo.clear()
        return found

    def _copies(self, settlement: Settlement) -> list[Sending]:
        delivery, action = settlement.delivery, settlement.action
        if isinstance(action, spi.Ack):
            return []
        failures = action.failures if isinstance(action, Retry) else self.stored.get(delivery.token, 0)
        return [Sending(delivery.message, GROUP + self.name, (failures, delivery.crashes), action.delay)]

    async def _acked(self, tags: Sequence[int]) -> bool:
        """Acknowledge: in one go all before the first that is still in hand, each of the others by itself.

        False: the channel was lost before the broker had read it. Nothing answers an acknowledgement, so something
        that is answered follows it.
        """
        held, marked, aside = self.held, self.marked, None
        for tag in tags:
            del held[tag]
            self.stored.pop(tag, None)
        self._out(tags)
        if marked and self.aside is not None and (exchanged := [tag for tag in tags if tag in marked]):
            tags = [tag for tag in tags if tag not in marked]  # the others were acknowledged when they were marked
            aside = self.aside
            aside.ack([marked.pop(tag) for tag in exchanged], 0)
        first = next(iter(held), math.inf)
        prefix = max((tag for tag in tags if tag < first), default=0)
        self.channel.ack([tag for tag in tags if tag > prefix], prefix)
        return await self.channel.answers() and (aside is None or await aside.answers())

    def _out(self, tags: Sequence[int]) -> None:
        """These count against no window any more: the broker may send others."""
        for source in self.sources:
            source.out.difference_update(tags)

    # -- suspects

    async def mark(self, delivery: Delivery) -> bool:
        """Exchange the delivery for a copy with one crash more, held in the queue of suspects."""
        if not self._ours(delivery) or delivery.token in self.marked:
            return self._ours(delivery)
        message, bus, id = delivery.message, self.transport, new_id()
        queue = await bus.link.suspects(self.name)
        told = copied(message, self.stored.get(delivery.token, 0), delivery.crashes + 1)
        copy = Publication("", queue, properties(message, told, [(MARK, "1")], id=id), message.body)
        try:
            outcomes, why = await bus.link.confirmed([copy])
            if outcomes != [CONFIRMED]:
                raise errors.BusUnavailable(f"a suspect of {self.name} could not be marked", why=why)
            tag = await self._hold(queue, id)
        except ChannelLost as lost:
            raise refused(lost, f"marking a suspect of {self.name!r}") from None
        if not self._ours(delivery):
            return False
        self.channel.ack([delivery.token], 0)
        self._out([delivery.token])
        if tag:
            self.marked[delivery.token] = tag
        else:  # it expired before it was in hand: it comes back by itself
            del self.held[delivery.token]
        return await self.channel.answers() and tag > 0  # read before the handler starts, which may end us

    async def _hold(self, queue: str, id: str) -> int:
        """The tag of the suspect just sent, in hand; 0 when it has expired meanwhile."""
        if self.aside is None or self.aside.lost is not None:
            self.aside = await Channel(self.transport.client, failed=self._aside_lost).open()
        others, until = list[int](), asyncio.get_running_loop().time() + MARKED
        try:
            while asyncio.get_running_loop().time() < until:
                found = await self.aside.ask(Basic.Get(0, queue))
                if not isinstance(found, Content):
                    self._return(others)
                    await asyncio.sleep(0.01)
                elif found.properties.message_id == id:
                    return int(found.method.delivery_tag)
                else:  # another process marks one too
                    others.append(found.method.delivery_tag)
            return 0
        finally:
            self._return(others)

    def _aside_lost(self, why: ChannelLost) -> None:
        for tag in self.marked:
            self.held.pop(tag, None)
        self.marked.clear()

    def _return(self, tags: list[int]) -> None:
        for tag in tags:
            if self.aside is not None:
                self.aside.tell(Basic.Nack(tag, requeue=True))
        tags.clear()
