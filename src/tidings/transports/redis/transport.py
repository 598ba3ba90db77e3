"""The bus on the event loop: the life of its connections, publishing, and what runs by itself."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from redis.asyncio import Redis as Client
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from tidings.kernel import errors
from tidings.kernel import transport as spi
from tidings.kernel.clock import current_clock
from tidings.kernel.message import Message, seconds
from tidings.kernel.topics import GROUP, REPLY
from tidings.kernel.transport import Event, Failure
from tidings.transports._matcher import Matcher
from tidings.transports._points import passed

from . import Redis, inspection
from .consumers import GroupConsumer
from .entries import Fields, Outgoing
from .links import ELSEWHERE, NOT_NOW, Channels, Link, Listener, Server, translated
from .reading import LiveConsumer, ReplyConsumer

CALM = 3.0  # seconds after an outage in which nobody counts as dead: all renew what they hold first


class RedisTransport:
    """A bus on Redis or Valkey. ``client`` is a ``redis.asyncio.Redis`` of the server that has the bus."""

    def __init__(self, options: Redis) -> None:
        self.options, self.capabilities, self.lease = options, inspection.CAPABILITIES, options.lease_seconds
        self.bus, self.own_keys = f"{{{options.namespace}}}:", options.own_keys()
        self.server = Server(options, options.namespace)
        self.member = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        self.client: Any = None
        self.link: Link | None = None
        self.channels, self.consumers = Channels(), set[Any]()
        self.keys: dict[str, str] = {}
        self.known: set[str] = set()  # topics that were in the registry when last published to
        self.routes: Matcher[str] = Matcher()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.problem: errors.BusError | None = None
        self.calm, self.upkeep = 0.0, inspection.Upkeep(self)
        self.names, self.run_id = 0, ""

    def key(self, topic: str) -> str:
        """The key of a topic's stream."""
        found = self.keys.get(topic)
        if found is None:
            if len(self.keys) > 65_536:
                self.keys.clear()
            found = self.keys[topic] = self.own_keys.get(topic) or f"{self.bus}topic:{topic}"
        return found

    @property
    def publish_wait(self) -> float:
        return seconds(self.options.publish_wait, "publish_wait")

    def outgoing(self) -> Outgoing:
        return Outgoing(self.key)

    def owned(self) -> list[str]:
        """Streams with keys of their own, as arguments."""
        return [part for pair in self.own_keys.items() for part in pair]

    # -- life cycle ----------------------------------------------------------------------------------------------

    async def open(self, notify: Callable[[Event], None]) -> None:
        self.notify, self.clock, self.loop = notify, current_clock(), asyncio.get_running_loop()
        self.up, self.stir = asyncio.Event(), asyncio.Event()
        self.channels.wanted.update((f"{self.bus}control", f"{self.bus}member:{self.member}"))
        deadline = self.loop.time() + self.publish_wait
        while True:
            try:
                await self._connect()
                break
            except errors.BusUnavailable as error:
                if "loading" not in error.what or self.loop.time() > deadline:
                    raise
                await asyncio.sleep(0.1)
        try:
            self.capabilities = await inspection.capabilities(self, self.told)
        except BaseException:
            await self._disconnect()
            raise
        self.spawn(self._supervise())
        self.upkeep.start()

    async def close(self) -> None:
        if self.client is None:
            return
        for consumer in tuple(self.consumers):
            consumer.stop()
        if self.link is not None and not self.link.ended.done():
            with suppress(RedisError, OSError, TimeoutError):  # without an entry only the lease says who is gone
                async with asyncio.timeout(2.0):
                    await self.link.ask("HDEL", f"{self.bus}members", self.member)
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for consumer in tuple(self.consumers):
            await consumer.leave()
        await self._disconnect()
        self.up.clear()

    def spawn(self, running: Coroutine[Any, Any, Any]) -> None:
        task = self.loop.create_task(_quietly(running))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _disconnect(self) -> None:
        closed = NotConnected("closed")
        for end in (self.link, self.channels.listener):
            if end is not None:
                end.end(closed)
        self.link, self.channels.listener = None, None
        client, self.client = self.client, None
        if client is not None:
            await client.aclose()
        await asyncio.sleep(0)

    async def _connect(self) -> None:
        """Both connections, or ``BusUnavailable``."""
        link = listener = None
        try:
            link = await self.server.link(f"tidings-{self.member}")
            listener = await self.server.connect(partial(Listener, self._told), f"tidings-{self.member}-listens")
            async with asyncio.timeout(10):
                told = inspection.info(await link.ask("INFO"))
                inspection.check_server(self, told)
                with suppress(OutOfMemoryError):
                    await link.ask("HSET", f"{self.bus}members", self.member, told["run_id"])
                await self.channels.attach(listener)
                await self._look(link)
        except (RedisError, OSError, TimeoutError, errors.BusUnavailable) as error:
            for end in (link, listener):
                if end is not None:
                    end.end(error)
            raise error if isinstance(error, errors.BusUnavailable) else self.server.unavailable(error) from error
        before, self.client = self.client, Client(**self.server.arguments(link))
        if before is not None:
            self.calm = self.loop.time() + min(self.lease, CALM)
            await before.aclose()
        self.link, self.run_id, self.told, self.problem = link, told["run_id"], told, None
        self.up.set()
        self.stir.set()
        for consumer in self.consumers:
            consumer.reconnected()
        self.notify(Event("connected", 1, f"{link.host}:{link.port}"))

    async def _supervise(self) -> None:
        while True:
            assert self.link is not None
            assert self.channels.listener is not None
            ends = (self.link, self.channels.listener)
            done, _ = await asyncio.wait({end.ended for end in ends}, return_when=asyncio.FIRST_COMPLETED)
            error = done.pop().result()
            self.up.clear()
            self.problem = self.server.unavailable(error)
            for end in ends:
                end.end(error)
            self.notify(Event("lost", 1, str(error)))
            wait = 0.02
            while not self.up.is_set():
                try:
                    await self._connect()
                except errors.BusUnavailable as still:
                    self.problem = still
                    await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                    wait = min(2 * wait, 1.0)

    # -- asking the server ---------------------------------------------------------------------------------------

    async def linked(self, deadline: float | None) -> Link:
        """The connection, as soon as there is one. Raises the problem at the deadline (the loop's time)."""
        while True:
            link = self.link
            if self.client is None:
                raise errors.NotOpen("the bus is not open")
            if link is not None and self.up.is_set() and not link.ended.done():
                return link
            self.up.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self.up.wait()
            except TimeoutError:
                problem = self.problem or self.server.unavailable(None)
                raise errors.BusUnavailable(problem.what, why=problem.why, mend=problem.mend) from None

    async def run(self, script: str, *arguments: Any, wait: float | None = None, again: bool = True) -> Any:
        """What a script returns, waiting for the server for so long (None: for ever).

        Raises ``BusFull``, ``BusUnavailable``; ``NotConnected`` where its outcome is not known and it may not be run
        ``again``.
        """
        return await self._asked(lambda link: link.run(script, self.bus, *arguments), wait, again)

    async def _asked(self, question: Callable[[Link], Awaitable[Any]], wait: float | None, again: bool) -> Any:
        deadline = None if wait is None else self.loop.time() + wait
        while True:
            link = await self.linked(deadline)
            try:
                return await question(link)
            except ELSEWHERE as error:
                link.end(error)
            except NotConnected:
                if not again:
                    raise
            except ResponseError as error:
                later = str(error).startswith(NOT_NOW)
                if not later or (deadline is not None and self.loop.time() > deadline):
                    raise translated(error, self.server.shown) from error
                await asyncio.sleep(0.1)

    async def _look(self, link: Link) -> None:
        """Who reads what, to tell when nobody does."""
        routes: Matcher[str] = Matcher()
        for blob in (await link.ask("HVALS", f"{self.bus}groups")) or ():
            routes.add(msgspec.json.decode(blob)["pattern"], "")
        for consumer in self.consumers:
            if isinstance(consumer, LiveConsumer):
                routes.add(consumer.pattern, "")
        self.routes = routes

    async def look(self) -> None:
        await self._look(await self.linked(None))

    def _told(self, channel: bytes, data: bytes) -> None:
        """Something happened on the bus, or a reply came."""
        name = channel.decode().removeprefix(self.bus)
        what, _, about = data.decode(errors="replace").partition(" ") if name == "control" else ("reply", "", name)
        if what == "due":
            self.stir.set()
        elif what == "group":
            self.spawn(self.look())
        for consumer in tuple(self.consumers):
            consumer.told(what, about, data)

    # -- publishing and subscribing ------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        outgoing = Outgoing(self.key)
        kind, failed = "rejected", None
        try:
            entries = [outgoing.add(message) for message in messages]
            passed("publish.before")
            failed = await self._publish(outgoing, entries)
            passed("publish.after")
            if failed is None and self.options.replicas:
                kind, failed = "unknown", await self._replicated()
        except NotConnected as error:
            kind, failed = "unknown", self.server.unavailable(error)
        except errors.TidingsError as error:
            failed = error
        if failed is not None:
            return [Failure(index, kind, failed) for index in range(len(messages))]  # type: ignore[arg-type]
        self.unrouted(outgoing)
        return ()

    async def _publish(self, outgoing: Outgoing, entries: Sequence[Fields]) -> errors.TidingsError | None:
        """Store all or none; why not. A script looks at topics that are new here; then plain commands are faster."""
        if outgoing.plain and self.known.issuperset(outgoing.counts):
            places = list(outgoing.counts)
            keys = [self.key(topic) for topic in places]
            looks = [("SISMEMBER", f"{self.bus}topics", topic) for topic in places]
            adds = [("XADD", keys[number - 1], "*", *entry) for number, _, _, *entry in entries]
            commands = (*looks, *adds)
            answers = await self._asked(lambda link: link.ask_all(commands), self.publish_wait, again=False)
            for answer in answers:
                if isinstance(answer, RedisError):
                    return translated(answer, self.server.shown)
            if all(answers[: len(places)]):
                return None
            entries = ()  # all was deleted: be known again; who reads the topic reads it from its beginning
        flat = [part for entry in entries for part in entry]
        arguments = (self.options.topics, *outgoing.head(), len(entries), *flat)
        refused = await self.run("publish", *arguments, wait=self.publish_wait, again=False)
        if refused:
            return inspection.refusal(self, refused.decode())
        self.known.update(topic for topic in outgoing.counts if not topic.startswith(REPLY))
        return None

    def unrouted(self, outgoing: Outgoing) -> None:
        """Tell what went where nobody listens."""
        match = self.routes.match
        for destination, count in outgoing.counts.items():
            if not match(destination) and not destination.startswith("_"):
                self.notify(Event("unrouted", count, destination))

    async def _replicated(self) -> errors.BusError | None:
        """Wait for ``replicas``; why not, if too few have it."""
        wanted = self.options.replicas
        if not wanted:
            return None
        link, wait = await self.linked(None), self.publish_wait
        had = await link.ask("WAIT", wanted, int(min(wait, 5.0) * 1000))
        if had >= wanted:
            return None
        why = f"{had} of {wanted} replicas have it"
        return errors.BusUnavailable("stored, but not on enough replicas", why=why, mend="are the replicas connected?")

    async def subscribe(self, subscription: spi.Subscription) -> spi.Consumer:
        pattern, group = subscription.pattern, subscription.group
        consumer: GroupConsumer | LiveConsumer | ReplyConsumer
        if group is None:
            consumer = ReplyConsumer(self, pattern) if pattern.startswith(REPLY) else LiveConsumer(self, pattern)
        else:
            consumer = GroupConsumer(self, subscription, await self.register(subscription))
        await consumer.enter()
        self.consumers.add(consumer)
        await _quietly(self.look())
        self.stir.set()
        return consumer

    async def register(self, subscription: spi.Subscription, start: str = "", wait: float | None = None) -> str:
        """The group's id in Redis; its positions are recorded."""
        at, group = subscription.start, subscription.group or ""
        start = start or ("$" if at is None else "0" if at <= 0 else before(at))
        private = self.key(GROUP + group)
        arguments = (group, subscription.app, subscription.pattern, start, self.options.topics, private, *self.owned())
        id, refused = await self.run("subscribe", *arguments, wait=wait or self.publish_wait)
        if refused:
            raise inspection.refusal(self, refused.decode())
        found: bytes = id
        return found.decode()

    async def tick(self, name: str, due: float) -> bool:
        return bool(await self.run("tick", name, repr(due), wait=self.publish_wait))

    async def topics(self, pattern: str = ">") -> Sequence[spi.TopicInfo]:
        return await inspection.topics(self, pattern)

    async def groups(self, pattern: str = ">") -> Sequence[spi.GroupInfo]:
        return await inspection.groups(self, pattern)

    async def peek(self, pattern: str, after: int = 0, limit: int = 100) -> Sequence[spi.Stored]:
        return await inspection.peek(self, pattern, after, limit)

    async def rename(self, group: str, to: str) -> None:
        await inspection.manage(self, "rename", group, to, self.key(GROUP + to))

    async def drop(self, group: str) -> None:
        await inspection.manage(self, "drop", group)

    async def seek(self, group: str, start: float) -> None:
        await inspection.manage(self, "seek", group, "0-0" if start <= 0 else before(start))


def before(time: float) -> str:
    """The last id before a time (Unix seconds)."""
    return f"{int(time * 1000) - 1}-{2**64 - 1}"


async def _quietly(running: Coroutine[Any, Any, Any]) -> None:
    """What is done beside: trouble with the server shows where somebody waits for it."""
    with suppress(RedisError, OSError, errors.BusError):
        await running
