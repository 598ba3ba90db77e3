"""A process's end of a bus on RabbitMQ: publishing, registering groups, and looking into what can be looked into."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from time import time as wall
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from pamqp.commands import Queue

from tidings.kernel import errors
from tidings.kernel import transport as spi
from tidings.kernel.message import Message, new_id, seconds
from tidings.kernel.topics import DEAD, GROUP, INTERNAL, REPLY, REQUEST, TICK, matches
from tidings.kernel.transport import Event, Failure, Stored, Subscription
from tidings.transports._points import passed
from tidings.transports._wire import attributes, copied

from . import streams
from .channel import CONFIRMED, RETURNED, ChannelLost, Content, Publication
from .consumers import Consumer, GroupConsumer, LiveConsumer
from .content import LEVEL, Sending, opened, properties, refused, words
from .link import FIRST, Link

if TYPE_CHECKING:
    from . import RabbitMQ

TICKS = 1_000_000  # bytes of a stream of ticks


class Registered(Struct):
    """A group's registrations: all its patterns, the last one last."""

    group: str
    app: str
    patterns: list[str]


class RabbitMQTransport:
    """A bus on RabbitMQ."""

    def __init__(self, options: RabbitMQ) -> None:
        self.options = options
        self.link = Link(options, self._restore)
        self.exchange, self.reserved, self.prefix = self.link.exchange, self.link.reserved, self.link.prefix
        self.longest = self.link.unit * 2**self.link.levels / 1000
        self.consumers: dict[Consumer, None] = {}
        self.notify: Callable[[Event], None] = lambda event: None
        self.dead = streams.Tail(self.link, self.link.dead)
        self.registry = streams.Tail(self.link, self.link.registry)
        self.known: dict[str, Registered] = {}
        self.letters, self.newest = Counter[str](), dict[str, float]()
        self.ticking = set[str]()  # whose stream is there
        self.capabilities = self._capabilities()

    @property
    def client(self) -> Any:
        """The connection that consumes: an ``aiormq.Connection``; another one after each reconnect."""
        return self.link.client

    def _capabilities(self) -> spi.Capabilities:
        return spi.Capabilities(
            durable="power",
            ordering="total",
            delay="emulated",
            delay_max=self.longest,
            delay_resolution=self.link.unit / 1000,
            lease="connection",
            fence="native",
            crash_count="emulated",
            priority="native" if self.options.kind == "classic" else "unavailable",
            expiry="emulated",
            wildcards="native" if self.link.type == "topic" else "unavailable",
            provision="native",
            max_payload=self.options.max_payload,
            request="native",
        )

    async def open(self, notify: Callable[[Event], None]) -> None:
        self.notify = notify
        await self.link.open(notify)
        self.capabilities = self._capabilities()

    async def _restore(self) -> None:
        for consumer in list(self.consumers):
            await consumer.attach(again=True)

    async def close(self) -> None:
        await self.link.close()

    # -- publishing

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        unanswered = set[str]()
        if asked := {message.destination for message in messages if message.reply_to is not None}:
            await self.link.ready()
            unanswered = {service for service in asked if not await self.answered(service)}
        passed("publish.before")
        failures = await self.send([Sending(message) for message in messages], unanswered)
        passed("publish.after")
        return failures

    async def answered(self, service: str) -> bool:
        """Whether somebody consumes: a group's queue stays when its members have gone."""
        found = await self.link.exists(Queue.Declare(0, self.queue_of(service.removeprefix(REQUEST)), passive=True))
        return found is not None and found.consumer_count > 0

    async def counted(self, service: str) -> None:
        """Until the broker tells requesters that somebody is here: a moment after it has agreed."""
        until = asyncio.get_running_loop().time() + self.link.wait
        while not await self.answered(service):
            if asyncio.get_running_loop().time() > until:
                raise errors.BusUnavailable(f"RabbitMQ does not count the consumer of {service!r}")
            await asyncio.sleep(FIRST)

    async def send(self, items: Sequence[Sending], unanswered: Iterable[str] = ()) -> list[Failure]:
        """Publish; ``()`` when the broker has confirmed them all. ``unanswered``: services that have nobody."""
        failures, sent, publications, highest, now = list[Failure](), list[int](), list[Publication](), -1, wall()
        for index, item in enumerate(items):
            try:
                if unanswered and item.message.destination in unanswered:
                    raise _no_answerer(item.message)
                units = self._units(item, now)
                publications.append(self._publication(item, units))
                sent.append(index)
                highest = max(highest, units.bit_length() - 1)
            except errors.TidingsError as error:
                failures.append(Failure(index, "rejected", error))
        if publications:
            await self.link.ready()
            if highest > self.link.level:
                await self.link.reach(highest)
            outcomes, why = await self.link.confirmed(publications)
            if not all(outcome is CONFIRMED for outcome in outcomes):
                failures += self._failures([(index, items[index].message) for index in sent], outcomes, why)
        return failures

    def _units(self, item: Sending, now: float) -> int:
        """How long it is to wait, in units of the resolution; raises ``InvalidOption``."""
        due = item.message.deliver_at
        delay = item.delay if item.counted is not None or due is None else due - now
        if delay <= 0:
            return 0
        units = math.ceil(delay * 1000 / self.link.unit - 1e-6)
        if units >> self.link.levels:
            raise errors.InvalidOption(f"a delay of {delay:g} s is too long", mend=f"at most {self.longest:g} s")
        return units

    def _publication(self, item: Sending, units: int) -> Publication:
        message = item.message
        if len(message.body) > self.options.max_payload:
            what = f"{message.topic!r}: {len(message.body)} bytes; this bus takes {self.options.max_payload}"
            raise errors.TooLarge(what, mend="store it elsewhere and send a link, or raise max_payload=")
        key = item.to or message.address or message.topic
        if len(key) > 255:
            raise errors.InvalidName(f"{key!r} has more than RabbitMQ's 255 bytes", mend="shorten it")
        told = attributes(message) if item.counted is None else copied(message, *item.counted)
        if not units:
            exchange = self.reserved if key[0] == "_" else self.exchange
            return Publication(exchange, key, properties(message, told), message.body, not key.startswith(REPLY))
        highest = units.bit_length() - 1
        stops = [(f"{LEVEL}{n}", "1") for n in range(highest + 1) if units >> n & 1]
        return Publication(f"{self.prefix}_delay.{highest}", key, properties(message, told, stops), message.body)

    def _failures(
        self, sent: Sequence[tuple[int, Message[Any]]], outcomes: Sequence[str | None], why: str
    ) -> list[Failure]:
        failures, unrouted = list[Failure](), list[str]()
        for (index, message), outcome in zip(sent, outcomes, strict=True):
            if outcome is CONFIRMED:
                continue
            to = message.destination
            if outcome is None and f"size {len(message.body)} " in why:
                failures.append(Failure(index, "rejected", errors.TooLarge(f"{message.topic!r}: RabbitMQ's {why}")))
            elif outcome is None:
                what, mend = f"no confirm for a message to {to!r}: {why}", "publish it again with the same id"
                failures.append(Failure(index, "unknown", errors.BusUnavailable(what, mend=mend)))
            elif outcome is RETURNED and message.reply_to is not None:
                failures.append(Failure(index, "rejected", _no_answerer(message)))
            elif outcome is RETURNED and not to.startswith((GROUP, DEAD)):
                unrouted.append(to)
            else:
                what = f"RabbitMQ has no queue for {to!r}" if outcome is RETURNED else f"RabbitMQ refused {to!r}"
                mend = "is the group's name right?" if outcome is RETURNED else "is a queue of it full?"
                failures.append(Failure(index, "rejected", errors.BusError(what, mend=mend)))
        if unrouted:
            self.notify(Event("unrouted", len(unrouted), unrouted[0]))
        return failures

    # -- subscribing

    def queue_of(self, group: str) -> str:
        return self.options.queues.get(group) or self.prefix + group.replace("%", "+")

    def again_of(self, group: str) -> str:
        return f"{self.prefix}_again.{group.replace('%', '+')}"

    async def subscribe(self, subscription: Subscription) -> Consumer:
        limit = seconds(self.options.consumer_timeout)
        if subscription.timeout > limit and subscription.group is not None:
            why = f"RabbitMQ takes back what is not settled after its consumer_timeout: {limit:g} s; nothing renews it"
            mend = f"timeout={limit:g} for the handler, or raise consumer_timeout of the server and of this URL"
            raise errors.InvalidOption(f"a timeout of {subscription.timeout:g} s is too long here", why=why, mend=mend)
        await self.link.ready()
        kind = LiveConsumer if subscription.group is None else GroupConsumer
        consumer: Consumer = kind(self, subscription)
        try:
            await consumer.attach()
        except ChannelLost as lost:
            consumer.stopped = True
            raise refused(lost, f"group {subscription.group!r}") from None
        self.consumers[consumer] = None
        return consumer

    async def join(self, subscription: Subscription, *, again: bool = False) -> None:
        """Make a group's queues, and bind them as this registration says; ``again``: only those that are not there."""
        group, pattern, link = subscription.group or "", subscription.pattern, self.link
        queue, private, theirs = self.queue_of(group), self.again_of(group), group in self.options.queues
        found = {name: await self._is_there(name) for name in (queue, private)}
        if theirs and not found[queue]:
            mend = f"make it, or leave {group!r} out of queues="
            raise errors.NotFound(f"RabbitMQ has no queue {queue!r}", mend=mend)
        if not (again and found[private]):
            await self._make(private, found[private])
            await link.bind(private, self.reserved, GROUP + group)
            await link.suspects(group)  # now: what is made while servers fall may never get a leader (3.10)
        if again and found[queue]:  # its pattern may have changed since
            return
        if not theirs:
            await self._make(queue, found[queue])
            await link.bind(queue, self.exchange_of(pattern), words(pattern))
        await self._register(subscription, queue)

    async def _is_there(self, queue: str) -> bool:
        return await self.link.exists(Queue.Declare(0, queue, passive=True)) is not None

    async def _make(self, queue: str, exists: bool) -> None:
        """Declare a group's queue, also where it exists: another's with its name shall be noticed."""
        arguments = {"queue_type": self.options.kind, **({"max_priority": 9} if self.options.kind == "classic" else {})}
        if exists:
            try:
                await self.link.queue(queue, **arguments)
            except errors.InvalidOption as error:
                if "x-delivery-limit" not in error.why:  # one that a newer server has, and was told to do without
                    raise
            return
        if self.link.major >= 4 and self.options.kind == "quorum":
            arguments["delivery_limit"] = -1  # else it drops what was returned twenty times
        async with self.link.alone():
            await self.link.queue(queue, **arguments)

    async def _register(self, subscription: Subscription, queue: str) -> None:
        """Write down the group's pattern, and unbind those that it had before: the last registration wins."""
        group, app, pattern = subscription.group or "", subscription.app, subscription.pattern
        await self.registry.news(self._note)
        known = self.known.get(group)
        if known is not None and (known.app, known.patterns[-1]) == (app, pattern):
            return
        body = msgspec.json.encode(Registered(group, app, [pattern]))
        note = properties(Message(INTERNAL + "group", time=wall()), {})
        outcomes, why = await self.link.confirmed([Publication("", self.registry.queue, note, body)])
        if outcomes != [CONFIRMED]:
            raise errors.BusUnavailable(f"group {group!r} could not be registered", why=why)
        for old in known.patterns if known is not None else ():
            if old != pattern:
                await self.link.unbind(queue, self.exchange_of(old), words(old))

    def _note(self, content: Content) -> None:
        if content.body:
            registered = msgspec.json.decode(content.body, type=Registered)
            known = self.known.setdefault(registered.group, registered)
            known.app = registered.app
            known.patterns = [p for p in known.patterns if p not in registered.patterns] + registered.patterns

    def exchange_of(self, pattern: str) -> str:
        return self.reserved if pattern.startswith("_") else self.exchange

    # -- looking into it

    async def peek(self, pattern: str, after: int = 0, limit: int = 100) -> Sequence[Stored]:
        """Dead letters; anything else is in queues, which are read by consuming them."""
        if not pattern.startswith(DEAD):
            what = f"RabbitMQ cannot show what matches {pattern!r}"
            raise errors.Unsupported(what, why="queues are read by consuming them", mend=f"peek at {DEAD}>")
        await self.link.ready()
        found, position = list[Stored](), after

        def note(at: int, content: Content) -> None:
            nonlocal position
            position = at + 1
            if matches(pattern, content.method.routing_key):
                found.append(Stored(at + 1, opened(content)[0]))

        try:
            while len(found) < limit:
                before = position
                await streams.read(self.client, self.dead.queue, before, note, limit)
                if position == before:
                    break
        except ChannelLost as lost:
            raise refused(lost, f"stream {self.dead.queue!r}") from None
        return found[:limit]

    async def topics(self, pattern: str = ">") -> Sequence[spi.TopicInfo]:
        """Of dead letters: nothing else is retained."""
        await self.link.ready()
        await self.dead.news(self._count)
        found = sorted(topic for topic in self.letters if matches(pattern, topic))
        return [spi.TopicInfo(topic, self.letters[topic], self.newest[topic]) for topic in found]

    def _count(self, content: Content) -> None:
        topic, sent = content.method.routing_key, content.properties.timestamp
        if topic.startswith(DEAD):
            self.letters[topic] += 1
            self.newest[topic] = sent.timestamp() if sent else 0.0

    async def groups(self, pattern: str = ">") -> Sequence[spi.GroupInfo]:
        """What other processes have in hand, and what is parked, only the broker's own tools can tell."""
        await self.link.ready()
        await self.registry.news(self._note)
        await self.dead.news(self._count)
        named = [group for name, group in sorted(self.known.items()) if matches(pattern, name)]
        return [info for group in named if (info := await self._info(group)) is not None]

    async def _info(self, group: Registered) -> spi.GroupInfo | None:
        name = group.group
        queue = await self.link.exists(Queue.Declare(0, self.queue_of(name), passive=True))
        if queue is None:
            return None
        again = await self.link.exists(Queue.Declare(0, self.again_of(name), passive=True))
        lag = queue.message_count + (again.message_count if again is not None else 0)
        held = sum(len(consumer.held) for consumer in self.consumers if consumer.name == name)
        counts = lag, held, 0, self.letters[DEAD + name]
        return spi.GroupInfo(name, group.app, group.patterns[-1], *counts, None, queue.consumer_count)

    async def tick(self, name: str, due: float) -> bool:
        """The first claim in the tick's stream wins; who claimed one as late as ``due`` did so after it."""
        queue, link, mine = f"{self.prefix}_ticks.{name.replace('%', '+')}", self.link, new_id()
        await link.ready()
        if name not in self.ticking:
            async with link.alone():
                await link.queue(queue, queue_type="stream", max_length_bytes=TICKS)
            self.ticking.add(name)
        claim = properties(Message(TICK + name, id=mine, time=wall()), {})
        outcomes, why = await link.confirmed([Publication("", queue, claim, repr(due).encode())])
        if outcomes != [CONFIRMED]:
            raise errors.BusUnavailable(f"the tick {name!r} could not be claimed", why=why)
        try:
            return await streams.first(link.client, queue, mine, due)
        except ChannelLost as lost:
            raise refused(lost, f"stream {queue!r}") from None


def _no_answerer(message: Message[Any]) -> errors.NoAnswerer:
    return errors.NoAnswerer(f"nobody answers {message.topic!r}", mend="start the app that answers it")
