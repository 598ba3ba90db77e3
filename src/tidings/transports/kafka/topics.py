"""Topics: which there are, created when they are first needed; their offsets; a look into them, or a lasting one: live
subscriptions.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.cimpl import NewTopic

from tidings.kernel import errors
from tidings.kernel.clock import Clock
from tidings.kernel.message import new_id, seconds
from tidings.kernel.topics import DEAD, GROUP, REPLY, is_pattern, matches
from tidings.kernel.transport import Delivery, Event, Failure, Session, Settlement, Stored, TopicInfo

from . import Kafka
from .clients import Poller, passing
from .records import DELAYED, MOVER, STATE, Names, Place, opened, share

if TYPE_CHECKING:
    from .transport import KafkaTransport

LIVE_BUFFER = 1024  # messages
AGAIN = 0.1  # seconds between tries
BEHIND = 5.0  # seconds for which a broker may not know of a topic that was made
FOREVER, HOUR, DAY = "-1", "3600000", "86400000"
_LATEST: Any = OffsetSpec.latest()  # type: ignore[no-untyped-call]
_EARLIEST: Any = OffsetSpec.earliest()  # type: ignore[no-untyped-call]


class Topics:
    """The topics of a bus. Subclassed by the transport, which is told what is new by ``renamed``."""

    options: Kafka
    names: Names
    clock: Clock
    loop: asyncio.AbstractEventLoop
    admin: AdminClient
    pool: ThreadPoolExecutor
    wait: float
    partitions: dict[str, int]  # by Kafka's names
    destinations: dict[str, str]
    made: dict[str, tuple[int, float]]  # topics made a moment ago: their partitions, and how long lists may lack them
    looking: asyncio.Lock

    def renamed(self) -> None:
        raise NotImplementedError

    def troubled(self, error: Any) -> None:
        raise NotImplementedError

    def group_config(self, group: str) -> dict[str, Any]:
        raise NotImplementedError

    async def look(self) -> None:
        """Read the list of topics, and tell consumers what is new. Raises ``KafkaException``."""
        async with self.looking:  # the last list is the newest
            found = await self.loop.run_in_executor(self.pool, partial(self.admin.list_topics, timeout=2))
        now = self.clock.monotonic()
        self.made = {topic: made for topic, made in self.made.items() if made[1] > now}
        partitions = {topic: count for topic, (count, _) in self.made.items()} | {
            name: len(topic.partitions)
            for name, topic in found.topics.items()
            if not topic.error and self.names.destination(name) is not None
        }
        if partitions != self.partitions:
            self.partitions = partitions
            self._named()

    async def insist(self, ask: Callable[[], Awaitable[Any]], what: str, *answers: int) -> Any:
        """Ask the broker, and again for as long as what is wrong may pass by itself, up to ``connect`` seconds and a
        last try. Raises ``BusUnavailable``, and ``BusError`` for what will not pass, which say ``what`` failed;
        ``KafkaException`` for the codes that are ``answers``.
        """
        deadline = self.clock.monotonic() + self.options.connect
        while True:
            try:
                return await ask()
            except KafkaException as error:
                reason = error.args[0]
                if reason.code() in answers:
                    raise
                if not passing(reason):
                    raise errors.BusError(what, why=reason.str()) from None
                if self.clock.monotonic() > deadline:
                    raise errors.BusUnavailable(what, why=reason.str()) from None
                await asyncio.sleep(AGAIN)

    async def news(self) -> None:
        """Know all topics that there are now. Raises ``BusError``."""
        await self.insist(self.look, "the list of topics cannot be read")

    def _named(self) -> None:
        self.destinations = {topic: self.names.destination(topic) or topic for topic in self.partitions}
        self.renamed()

    def _vanished(self, topic: str) -> None:
        """Somebody deleted it: the next publish creates it again."""
        self.partitions.pop(topic, None)
        self.made.pop(topic, None)

    async def ensure(self, destinations: Iterable[str]) -> None:
        """Create the topics that are not there. Raises ``BusError``."""
        wanted = {self.names.topic(name): name for name in destinations}
        missing = {topic: name for topic, name in wanted.items() if topic not in self.partitions}
        if not missing:
            return
        deadline = self.clock.monotonic() + self.wait
        while missing:
            topics = [self._new(topic, name) for topic, name in missing.items()]
            futures = self.admin.create_topics(topics, request_timeout=10)
            for topic, future in futures.items():
                if await self._created(topic, future, deadline):
                    count = self._new(topic, missing.pop(topic)).num_partitions
                    self.made[topic] = count, self.clock.monotonic() + BEHIND
        try:
            await self.look()
        except KafkaException as error:
            self.troubled(error.args[0])
            self.partitions |= {topic: self.made[topic][0] for topic in wanted if topic in self.made}
            self._named()

    async def refusals(self, destinations: set[str]) -> dict[str, errors.BusError]:
        """Topics that cannot be created, and why: they touch nobody else. Raises ``BusUnavailable``."""
        found: dict[str, errors.BusError] = {}
        for some in (destinations, *({name} for name in sorted(destinations))):
            try:
                await self.ensure(some)
            except errors.BusUnavailable:
                raise
            except errors.BusError as error:
                found |= {name: error for name in some if len(some) == 1}
            else:
                if some is destinations:
                    break
        return found

    async def _created(self, topic: str, future: Any, deadline: float) -> bool:
        try:
            await asyncio.wrap_future(future)
        except KafkaException as error:
            reason = error.args[0]
            if reason.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return True
            # "fenced" are brokers that have just started, or are too busy to say that they live
            transient = passing(reason) or "fenced" in reason.str()
            if not transient or self.clock.monotonic() > deadline:
                kind = errors.BusUnavailable if transient else errors.BusError
                mend = "create it beforehand, or allow this user to"
                raise kind(f"topic {topic!r} cannot be created", why=reason.str(), mend=mend) from None
            await asyncio.sleep(AGAIN)
            return False
        return True

    def _new(self, topic: str, name: str) -> NewTopic:
        options = self.options
        partitions, config = options.partitions, {"retention.ms": str(int(seconds(options.retain) * 1000))}
        if name.startswith((GROUP, DEAD, DELAYED)):
            partitions, config = 1, {"retention.ms": FOREVER}
        elif name == STATE:
            partitions, config = 1, {"cleanup.policy": "compact", "min.compaction.lag.ms": DAY}
        elif name.startswith(REPLY):
            config = {"retention.ms": HOUR}
        return NewTopic(topic, partitions, options.replication, config=config)

    async def _largest(self) -> int:
        """Bytes of a record that the broker takes; its default if it does not say."""
        try:
            config = await self.insist(self._config, "the broker's settings cannot be read")
            return int(config["message.max.bytes"].value)
        except (errors.BusError, KeyError, ValueError):
            return 1_048_588

    async def _config(self) -> Any:
        """Of one of the brokers."""
        brokers = (await self.loop.run_in_executor(self.pool, partial(self.admin.list_topics, timeout=10))).brokers
        if not brokers:  # one that has just started may not know itself yet
            raise KafkaException(KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE))
        resource = ConfigResource(ConfigResource.Type.BROKER, str(min(brokers)))
        return await asyncio.wrap_future(self.admin.describe_configs([resource])[resource])

    def places(self, topic: str) -> list[Place]:
        return [(topic, partition) for partition in range(self.partitions.get(topic, 0))]

    def places_of(self, pattern: str) -> list[Place]:
        """All partitions of the topics that match."""
        if pattern.startswith(REPLY) and not is_pattern(pattern):  # all replies share a topic
            topic = self.names.topic(pattern)
            return [(topic, share(pattern, self.partitions[topic]))]
        return [p for topic, name in self.destinations.items() if matches(pattern, name) for p in self.places(topic)]

    async def _offsets(self, places: Sequence[Place], spec: Any) -> dict[Place, int]:
        """Of each partition an offset. A topic that was just created may have no leader yet."""
        found: dict[Place, int] = {}
        deadline = self.clock.monotonic() + self.wait
        while left := [place for place in places if place not in found]:
            asked = {TopicPartition(*place): spec for place in left}
            futures = self.admin.list_offsets(asked, isolation_level=IsolationLevel.READ_COMMITTED)
            for place, future in zip(left, futures.values(), strict=True):
                try:
                    found[place] = (await asyncio.wrap_future(future)).offset
                except KafkaException as error:
                    if self.clock.monotonic() > deadline:
                        what = f"the offsets of {place[0]!r} cannot be read"
                        raise errors.BusUnavailable(what, why=error.args[0].str()) from None
            if len(found) < len(places):
                await asyncio.sleep(0.02)
                with suppress(KafkaException):  # else the client goes on believing that there is no leader
                    await self.look()
        return found

    async def ends(self, places: Sequence[Place]) -> dict[Place, int]:
        return await self._offsets(places, _LATEST)

    async def firsts(self, places: Sequence[Place]) -> dict[Place, int]:
        return await self._offsets(places, _EARLIEST)

    async def offsets_at(self, places: Sequence[Place], time: float) -> dict[Place, int]:
        """Where each partition was at a time; its end if nothing came since."""
        found = await self._offsets(places, OffsetSpec.for_timestamp(math.ceil(time * 1000)))
        later = [place for place, offset in found.items() if offset < 0]
        return found | (await self.ends(later) if later else {})

    async def topics(self, pattern: str = ">") -> Sequence[TopicInfo]:
        await self.news()
        places = self.places_of(pattern)
        ends, firsts = await self.ends(places), await self.firsts(places)
        counts: dict[str, int] = {}
        for topic, partition in places:
            name = self.destinations[topic]
            counts[name] = counts.get(name, 0) + ends[topic, partition] - firsts[topic, partition]
        return [TopicInfo(name, count) for name, count in sorted(counts.items()) if count]

    async def peek(self, pattern: str, after: int = 0, limit: int = 100) -> Sequence[Stored]:
        await self.news()
        places = self.places_of(pattern)
        starts = await (self.offsets_at(places, (after >> 22) / 1000) if after else self.firsts(places))
        ends = await self.ends(places)
        wanted = {place: (start, ends[place]) for place, start in starts.items() if start < ends[place]}
        found = await self.loop.run_in_executor(self.pool, self._read, wanted, after, limit)
        return sorted(found, key=lambda stored: stored.position)[:limit]

    def _read(self, wanted: Mapping[Place, tuple[int, int]], after: int, limit: int) -> list[Stored]:
        """Up to ``limit`` of each partition, in a thread."""
        consumer = Consumer(self.group_config(f"{MOVER}.{new_id()}"))
        found: list[Stored] = []
        left = dict(wanted)
        counts = dict.fromkeys(wanted, 0)
        try:
            consumer.assign([TopicPartition(*place, start) for place, (start, _) in wanted.items()])
            while left:
                raw = consumer.poll(10)
                if raw is None:
                    break
                place = (str(raw.topic()), int(raw.partition() or 0))
                if (error := raw.error()) is not None or place not in left:
                    if error is not None and error.code() == KafkaError._PARTITION_EOF:
                        left.pop(place, None)
                    continue
                position = _position(raw)
                if position > after:
                    found.append(Stored(position, opened(self.destinations[place[0]], raw).message))
                    counts[place] += 1
                if int(raw.offset() or 0) + 1 >= left[place][1] or counts[place] >= limit:
                    del left[place]
        finally:
            consumer.close()
        return found


class LiveConsumer:
    """A live subscription: no group, at most once; a bounded buffer from which the oldest is dropped."""

    lease = math.inf

    def __init__(self, transport: KafkaTransport, pattern: str, config: dict[str, Any]) -> None:
        self.transport, self.pattern, self.stopped = transport, pattern, False
        self.known: set[Place] = set()
        self.future: asyncio.Future[None] | None = None
        self.poller = Poller(config, self.wake, transport.troubled, transport.ailing, LIVE_BUFFER)
        self.session = Session()

    async def start(self) -> None:
        """From now on."""
        places = self.transport.places_of(self.pattern)
        ends = await self.transport.ends(places)
        self.known.update(places)
        self.poller.begin(self._again)
        self._assign([TopicPartition(*place, end) for place, end in ends.items()])

    def _again(self, consumer: Any) -> None:
        """In the poller's thread: from now on, once more."""
        consumer.assign([TopicPartition(*place, OFFSET_END) for place in tuple(self.known)])

    def _assign(self, places: list[TopicPartition]) -> None:
        self.poller.do(lambda: self.poller.consumer.incremental_assign(places))

    def refresh(self) -> None:
        """Read also the topics and partitions that are new, from their beginning."""
        new = [place for place in self.transport.places_of(self.pattern) if place not in self.known]
        self.known.update(new)
        if new:
            self._assign([TopicPartition(*place, OFFSET_BEGINNING) for place in new])

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not self.stopped:
            if taken := self._take(limit):
                return taken
            self.future = asyncio.get_running_loop().create_future()
            await self.future
        return ()

    def _take(self, limit: int) -> list[Delivery]:
        poller, taken = self.poller, list[Delivery]()
        poller.taken()
        if poller.dropped:
            dropped, poller.dropped = poller.dropped, 0
            self.transport.notify(Event("dropped", dropped, self.pattern))
        while poller.arrived and len(taken) < limit:
            raw = poller.arrived.popleft()
            if raw.error() is not None:
                continue
            found = opened(self.transport.destinations.get(raw.topic(), raw.topic()), raw)
            if matches(self.pattern, found.message.destination):
                taken.append(Delivery(found.message, self.session, None, found.failures, found.crashes))
        return taken

    def wake(self) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        out = [(index, message) for index, s in enumerate(settlements) for message in s.outgoing]
        failures = await self.transport.send([message for _, message in out]) if out else ()
        return [Failure(out[failure.index][0], failure.kind, failure.error) for failure in failures]

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """There is no lease."""

    async def mark(self, delivery: Delivery) -> bool:
        return True

    def stop(self) -> None:
        self.stopped = True
        self.wake()

    async def close(self) -> None:
        self.stop()
        await self.poller.end()
        self.transport.consumers.pop(self, None)


def _position(raw: Any) -> int:
    """When it was stored, in milliseconds, then its offset, then its partition: larger is later."""
    place = sum(raw.topic().encode()) * 31 + raw.partition()
    position: int = raw.timestamp()[1] << 22 | (raw.offset() & 0x3FFF) << 8 | place & 0xFF
    return position
