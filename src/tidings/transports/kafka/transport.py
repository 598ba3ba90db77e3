"""The transport: topics, publishing, subscribing, and who does what is due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from msgspec.structs import replace

from tidings.kernel import errors
from tidings.kernel import transport as spi
from tidings.kernel.clock import SYSTEM, current_clock
from tidings.kernel.message import Message, new_id, seconds
from tidings.kernel.topics import DEAD, GROUP, REPLY, REQUEST, matches
from tidings.kernel.transport import Event, Failure, Subscription
from tidings.transports._offsets import Window
from tidings.transports._points import passed

from . import Kafka
from .clients import BROKEN, Poller, Sender, administrator
from .consumers import GroupConsumer, Mover
from .exchanges import finish, prove
from .groups import Groups, StateLog
from .membership import Reads
from .records import DELAYED, MOVER, STATE, Names, Place, Record, delayed, record
from .topics import LiveConsumer, Topics
from .transactions import Transactions

log = logging.getLogger("tidings")

ROOM = 32 * 1024  # bytes of a record that are kept for headers
ANSWERED = 1.0  # seconds for which it is believed that somebody answers
TRANSACTION = 10.0  # seconds for which one of settlements may last
TOGETHER = 256  # records without a key that go to one partition before the next has its turn


CHANGING = {KafkaError.ILLEGAL_GENERATION, KafkaError.REBALANCE_IN_PROGRESS, KafkaError.UNKNOWN_MEMBER_ID}
"""What a commit meets while the group changes: it is tried again, until the partition is known to be lost."""

CAPABILITIES = spi.Capabilities(
    durable="process",
    ordering="key",
    ordered="native",
    delay="emulated",
    lease="assignment",
    fence="native",
    crash_count="native",
    start="native",
    atomic_settle=True,
    replay="native",
    expiry="emulated",
    wildcards="emulated",
    peek="native",
    provision="native",
    stable_id=True,
    request="emulated",
)


class KafkaTransport(Topics):
    """One process's end of a bus."""

    def __init__(self, options: Kafka) -> None:
        self.options, self.capabilities, self.names = options, CAPABILITIES, Names(options.namespace)
        self.clock = SYSTEM
        self.client: Any = None
        self.notify: Callable[[Event], None] = lambda event: None
        self.partitions: dict[str, int] = {}  # by Kafka's names
        self.destinations: dict[str, str] = {}
        self.made: dict[str, tuple[int, float]] = {}
        self.looking = asyncio.Lock()
        self.consumers: dict[Any, None] = {}
        self.answerers: dict[str, tuple[float, bool]] = {}
        self.routes: dict[str, bool] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        self.mover: Mover | None = None
        self.transactions: Transactions | None = None
        self.lost, self.trouble, self.turn = False, "", 0

    # -- life cycle

    async def open(self, notify: Callable[[Event], None]) -> None:
        self.loop, self.clock, self.notify = asyncio.get_running_loop(), current_clock(), notify
        self.lease, self.wait = seconds(self.options.lease, "lease"), seconds(self.options.publish_wait, "publish_wait")
        self.patience = self.options.max_poll * 0.8
        self.pool = ThreadPoolExecutor(2, "tidings-kafka")
        self.config = self.options.config_for(self._complained)
        self.admin = administrator(self.config)
        await self._reach()
        largest = await self._largest()
        whole, most = self.options.transactions, (largest - ROOM) // 1024 * 1024
        self.capabilities = replace(CAPABILITIES, max_payload=most, atomic_settle=whole)
        self.sender = Sender(self.options.producing(self.config, largest), lambda: self.trouble, self._vanished)
        self.client = self.sender.producer
        self.transactions = Transactions(self.sender.config, TRANSACTION) if whole else None
        await self._begin()
        notify(Event("connected"))

    async def _begin(self) -> None:
        state = self.names.topic(STATE)
        await self.ensure([STATE])
        self.state = StateLog(state, self.sender.store, self._regrouped)
        self.groups_ = Groups(self, self.state)
        name = self.group_config(f"{MOVER}.{new_id()}")
        self.state.poller = poller = Poller(name, self.state.fold, self.troubled, self.ailing)
        poller.begin(self.state.follow)
        poller.do(lambda: self.state.follow(poller.consumer))
        ends = await self.ends([(state, 0)])
        await self.state.reach(ends[state, 0])
        self.spawn(self.state.uncover())
        self.spawn(self._refreshing())

    async def _reach(self) -> None:
        """Raises ``BusUnavailable``, with what the client had to say."""
        deadline = self.clock.monotonic() + self.options.connect
        while True:
            try:
                await self.look()
                return
            except KafkaException as error:
                self.admin.poll(0)  # what it has to say comes only when asked for
                await asyncio.sleep(0)
                bad = any(word in self.trouble for word in ("AUTHENTICATION", "SSL"))
                if bad or self.clock.monotonic() > deadline:
                    what, why = f"no Kafka at {self.options.servers}", self.trouble or str(error.args[0])
                    mend = "start it, or correct the URL; does it want TLS (kafka+ssl://), or a user?"
                    mend = "check user, password, mechanism=, ca=, cert= and scheme" if bad else mend
                    await self._shut()
                    raise errors.BusUnavailable(what, why=why, mend=mend) from None

    async def close(self) -> None:
        if self.client is None:
            return
        if self.mover is not None:
            await self.mover.close()
        for consumer in tuple(self.consumers):
            await (consumer.end(clean=False) if isinstance(consumer, GroupConsumer) else consumer.close())
        await self.loop.run_in_executor(self.pool, self.sender.close, self.wait)
        assert self.state.poller is not None
        await self.state.poller.end()
        await self._shut()

    async def _shut(self) -> None:
        for task in tuple(self.tasks):
            task.cancel()
        self.client = None
        self.pool.shutdown(wait=False)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the Kafka transport failed", exc_info=error)

    def group_config(self, group: str) -> dict[str, Any]:
        """Of a consumer in a group; of one without, the group is only a name."""
        instance = self.options.instance
        static = {"group.instance.id": f"{instance}.{group}"} if instance and MOVER not in group else {}
        return {**self.options.consuming(self.config), "group.id": group, **static}

    # -- whether the broker is there

    def _complained(self, error: Any) -> None:
        """The client's own complaint, from any thread."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.troubled, error)

    def troubled(self, error: Any, *, down: bool = False) -> None:
        """A client's error; ``down``: nothing can be asked."""
        down = down or error.code() == KafkaError._ALL_BROKERS_DOWN
        if not down or not self.trouble:  # what came before says why
            before, self.trouble = self.trouble, f"{error.name().lstrip('_')}: {error.str()}"
            if self.trouble != before and error.code() not in (*BROKEN, *CHANGING):
                log.warning("Kafka at %s: %s", self.options.servers, self.trouble)
        if down and not self.lost and self.client is not None:
            self.lost = True
            self.notify(Event("lost", detail=self.trouble))

    def ailing(self, detail: str, well: bool) -> None:
        """A poller's thread failed, or works again."""
        if self.client is not None:
            self.notify(Event("connected" if well else "lost", detail=detail))

    async def _refreshing(self) -> None:
        """Learn of topics, for ever; and whether the broker is there."""
        while True:
            await asyncio.sleep(0.5 if self.lost else seconds(self.options.refresh, "refresh"))
            try:
                await self.look()
            except KafkaException as error:
                self.troubled(error.args[0], down=True)
                continue
            if self.lost:
                self.lost, self.trouble = False, ""
                self.notify(Event("connected"))
            if self.mover is None and any(isinstance(consumer, GroupConsumer) for consumer in self.consumers):
                self._move()

    def _regrouped(self) -> None:
        self.routes.clear()
        for consumer in self.consumers:
            consumer.refresh()

    def renamed(self) -> None:
        """Topics came or went."""
        for consumer in (*self.consumers, *((self.mover.consumer,) if self.mover else ())):
            consumer.refresh()

    # -- publishing

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        passed("publish.before")
        asking = [(index, message) for index, message in enumerate(messages) if message.reply_to]
        refused = [Failure(i, "rejected", error) for i, m in asking if (error := await self._unanswered(m))]
        if refused:
            kept = [index for index in range(len(messages)) if index not in {failure.index for failure in refused}]
            failures = await self.send([messages[index] for index in kept])
            return [*refused, *(Failure(kept[f.index], f.kind, f.error) for f in failures)]
        failures = await self.send(messages)
        passed("publish.after")
        return failures

    async def send(self, items: Sequence[Message[Any] | Record]) -> list[Failure]:
        """Produce messages, and records that are ready. Raises ``BusUnavailable`` when topics cannot be created."""
        records, failures = await self.prepare(items)
        refused = await self.sender.send(records)
        if not refused:
            return failures
        left_out = {failure.index for failure in failures}
        of = [index for index in range(len(items)) if index not in left_out]
        return [*failures, *(Failure(of[f.index], f.kind, f.error) for f in refused)]

    async def prepare(self, items: Sequence[Message[Any] | Record]) -> tuple[list[Record], list[Failure]]:
        """Records of those that can be sent, whose topics are there. Raises ``BusUnavailable``."""
        fresh = {m.address or m.topic for m in items if isinstance(m, Message)}
        refusals = await self.refusals(fresh)
        unheard = {destination for destination in fresh if not self._routed(destination)}
        now, names, partitions, most = self.clock.now(), self.names, self.partitions, self.capabilities.max_payload
        failures, records, unrouted = list[Failure](), list[Record](), list[str]()
        turn, waiting = self.turn, False
        self.turn += 1 + len(items) // TOGETHER
        for index, item in enumerate(items):
            if type(item) is Record:
                records.append(item)
                waiting = True
                continue
            m: Any = item
            if refusals and (error := refusals.get(m.destination)):
                failures.append(Failure(index, "rejected", error))
                continue
            if len(m.body) > most:
                what = f"{m.topic!r}: {len(m.body)} bytes; this Kafka takes {most}"
                failures.append(Failure(index, "rejected", errors.TooLarge(what, mend="raise message.max.bytes")))
                continue
            made = record(names, m, partitions, turn + index // TOGETHER)
            if m.deliver_at is not None and m.deliver_at > now:
                made = delayed(names, made, m.deliver_at, now)
                waiting = True
            if unheard and m.destination in unheard:
                unrouted.append(m.destination)
            records.append(made)
        if waiting:
            await self._levels(records)
        if unrouted:
            self.notify(Event("unrouted", len(unrouted), unrouted[0]))
        return records, failures

    async def _levels(self, records: Sequence[Record]) -> None:
        """Levels of delays that are used for the first time; and somebody who moves what is in them."""
        prefix = self.names.topic(DELAYED)
        levels = {record.topic for record in records if record.topic.startswith(prefix)}
        if levels:
            await self.ensure(name for topic in levels if (name := self.names.destination(topic)))
            if self.mover is None:
                self._move()

    def _routed(self, destination: str) -> bool:
        found = self.routes.get(destination)
        if found is None:
            patterns = [group.pattern for group in self.state.groups.values()]
            patterns += [consumer.pattern for consumer in self.consumers if isinstance(consumer, LiveConsumer)]
            private = destination.startswith((DEAD, REPLY, GROUP))
            found = private or any(matches(pattern, destination) for pattern in patterns)
            if not destination.startswith(REPLY):
                self.routes[destination] = found
        return found

    async def _unanswered(self, message: Message[Any]) -> errors.NoAnswerer | None:
        """Nobody is there for a message that wants a reply. What was found is believed for a second."""
        for name, group in self.state.groups.items():
            if matches(group.pattern, message.destination):
                until, there = self.answerers.get(name, (0.0, False))
                if until < self.clock.monotonic():
                    there = await self.groups_.members(name) > 0
                    self.answerers[name] = (self.clock.monotonic() + (ANSWERED if there else 0.0), there)
                if there:
                    return None
        return errors.NoAnswerer(f"nobody answers {message.topic!r}", mend="start the app that answers it")

    # -- subscribing

    async def subscribe(self, subscription: Subscription) -> GroupConsumer | LiveConsumer:
        name, pattern = subscription.group, subscription.pattern
        literal = [] if "*" in pattern or pattern.endswith(">") else [pattern]
        await self.ensure(literal if name is None else [*literal, GROUP + name, DEAD + name])
        await self.news()
        self.routes.clear()
        consumer: GroupConsumer | LiveConsumer
        if name is None:
            live = consumer = LiveConsumer(self, pattern, self.group_config(f"{MOVER}.{new_id()}"))
            await live.start()
            self.consumers[consumer] = None
        else:
            await self.groups_.register(subscription, name)
            if self.transactions:
                await self.loop.run_in_executor(self.pool, prove, self.transactions, self.names, self.options.connect)
            group = consumer = GroupConsumer(self, self._reads(name, subscription.ordered), self.transactions)
            self.consumers[consumer] = None  # it has to hear of topics that come meanwhile
            await group.join(seconds(self.options.join, "join"), anyhow=pattern.startswith(REQUEST))
        return consumer

    def _reads(self, name: str, ordered: bool) -> Reads:
        groups = self.groups_
        of = (partial(groups.topics_of, name), partial(groups.start, name), partial(groups.until, name))
        config = self.group_config(self.names.group(name))
        prepare = partial(finish, self.transactions, self.names, config) if self.transactions else list
        return Reads(name, ordered, self.lease, *of, prepare=prepare)

    def windows_of(self, group: str) -> dict[Place, Window]:
        """What members of this process hold of a group."""
        mine = [c for c in self.consumers if isinstance(c, GroupConsumer) and c.reads.group == group]
        return {place: window for consumer in mine for place, window in tuple(consumer.windows.items())}

    def _move(self) -> None:
        if any(name.startswith(DELAYED) for name in self.destinations.values()):
            self.mover = Mover(self)

    # -- looking and mending

    async def groups(self, pattern: str = ">") -> Sequence[spi.GroupInfo]:
        await self.news()
        return await self.groups_.infos(pattern)

    async def rename(self, group: str, to: str) -> None:
        await self.ensure([GROUP + to, DEAD + to])
        await self.groups_.rename(group, to)

    async def drop(self, group: str) -> None:
        await self.groups_.drop(group)

    async def seek(self, group: str, start: float) -> None:
        await self.news()
        await self.groups_.seek(group, start)

    async def tick(self, name: str, due: float) -> bool:
        return await self.groups_.tick(name, due)
