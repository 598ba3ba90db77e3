"""A member of a group: its partitions, as windows, and the commits of what is known of them.

All that is known of a partition belongs to the loop. The poller's thread makes windows and asks for them back. Commits
are made one at a time, each for everything that has become known meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition
from msgspec import Struct

from tidings.kernel.errors import BusError
from tidings.kernel.message import Message
from tidings.kernel.transport import Delivery, Failure, Session
from tidings.transports._offsets import AHEAD, OrderedWindow, State, Window, read
from tidings.transports._points import passed

from .clients import Poller
from .records import Opened, Place, lean

if TYPE_CHECKING:
    from .transport import KafkaTransport

log = logging.getLogger("tidings")

AGAIN = 0.1  # seconds between tries to commit
LOOK_AGAIN = 5.0  # seconds; delays follow the wall clock, which may step
ASIDE = 1000  # records of a partition that are set aside until it is paused
HAND_OVER = 0.001  # seconds: how often a busy loop lets the other threads have the GIL


LOST = Session()
LOST.alive = False


class Reads(Struct, frozen=True):
    """What a group's member reads. ``topics``: Kafka's names; ``start`` and ``until`` of a topic and partition."""

    group: str
    ordered: bool
    lease: float
    topics: Callable[[], Sequence[str]]
    start: Callable[[str, int], int]
    until: Callable[[str, int], int | None]
    opened: Callable[[str, Any], Message[Any] | Opened] = lean
    most: int = 0  # unsettled of a partition; 0: as many as can be remembered
    prepare: Callable[[list[TopicPartition]], Any] = list  # called in the poller's thread before offsets are read
    patient: bool = True  # what is in hand is finished before its partition is given up


class Member:
    """Of a group, in this process."""

    def __init__(self, transport: KafkaTransport, reads: Reads) -> None:
        self.transport, self.reads = transport, reads
        self.clock, self.loop = transport.clock, asyncio.get_running_loop()
        self.windows: dict[Place, Window] = {}
        self.seen = 0  # records taken from what the poller has read
        self.topics: list[str] = []
        self.dirty: set[Window] = set()
        self.round: asyncio.Future[None] | None = None
        self.committing: asyncio.Task[None] | None = None
        self.exclusive = asyncio.Lock()  # who commits
        self.stopped = self.closed = False
        self.limited = False  # more is there than is declared as handed out
        self.future: asyncio.Future[None] | None = None
        self.joined = asyncio.Event()
        self.finished = asyncio.Event()  # something left our hands
        self.timers: dict[str, asyncio.TimerHandle] = {}
        config = transport.group_config(transport.names.group(reads.group))
        self.poller = Poller(config, self.wake, transport.troubled, self._ailing)
        self.poller.begin(self._again)
        self.refresh()

    def wake(self) -> None:
        """There is something to receive, or nothing more."""
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def refresh(self) -> None:
        """Read the topics that are to be read now."""
        if self.stopped:
            held = {window.place[0] for window in tuple(self.windows.values()) if window.held}
            topics = [topic for topic in self.topics if topic in held]
        else:
            topics = sorted(self.reads.topics())
        for window in tuple(self.windows.values()):  # the poller's thread adds to them
            window.until = self.reads.until(*window.place)
        if topics != self.topics:
            self.topics = topics
            self.poller.do(lambda: self._subscribe(topics))

    async def join(self, within: float, *, anyhow: bool) -> None:
        """Wait for partitions, not too long; or ``anyhow`` until we are a member, so that who asks next finds one."""
        if anyhow:
            await self.joined.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not self.windows:
                    self.joined.clear()
                    await self.joined.wait()

    def rejoin(self) -> None:
        """Leave and come again, to read what is committed."""
        self.topics = []
        self.poller.do(self.poller.consumer.unsubscribe)
        self.refresh()

    def _ailing(self, detail: str, well: bool) -> None:
        if not well:
            self._forget(tuple(self.windows.values()))
        self.transport.ailing(detail, well)

    def _again(self, consumer: Any) -> None:
        """In the poller's thread: nothing of the former consumer is ours."""
        for window in tuple(self.windows.values()):
            window.alive = False
        self._subscribe(self.topics)

    def _subscribe(self, topics: list[str]) -> None:
        consumer = self.poller.consumer
        if topics:
            consumer.subscribe(topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        else:
            consumer.unsubscribe()

    def _assigned(self, consumer: Any, places: list[TopicPartition]) -> None:
        """In the poller's thread: go on where the group is."""
        starts: list[TopicPartition] = []
        for known in self._committed(consumer, places) if places else ():
            topic, partition, start = known.topic, known.partition, self.reads.start(known.topic, known.partition)
            if known.offset < 0 < start and start > self._end(consumer, topic, partition):
                start = 0  # another topic of that name: the former was deleted, and its offsets with it
            state = read(known.metadata) if known.offset >= start else State()
            offset = max(known.offset, start, 0)
            kind = OrderedWindow if self.reads.ordered else Window
            window = kind((topic, partition), offset, state, self.reads.until(topic, partition))
            window.most = self.reads.most or window.most
            window.since = self.poller.total
            self.windows[topic, partition] = window
            at = OFFSET_BEGINNING if known.offset < 0 and start < 0 else offset
            starts.append(TopicPartition(topic, partition, at))
        consumer.incremental_assign(starts)
        self.poller.call(self._joined)

    def _end(self, consumer: Any, topic: str, partition: int) -> float:
        with suppress(KafkaException):
            return float(consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1])
        return math.inf

    def _committed(self, consumer: Any, places: list[TopicPartition]) -> list[TopicPartition]:
        """Once nothing of it is under way: what others left so is ended, or one waits."""
        while True:
            try:
                self.reads.prepare(places)
            except KafkaException as error:
                log.warning("what another member left under way cannot be ended: %s", error)
            try:
                known: list[TopicPartition] = consumer.committed(places, timeout=10)
                if not any(place.error for place in known):
                    return known
            except KafkaException as error:
                self.poller.call(self.transport.troubled, error.args[0])
            if self.poller.ending:
                return []
            time.sleep(AGAIN)

    def _joined(self) -> None:
        self.joined.set()
        self.wake()

    def _revoked(self, consumer: Any, places: list[TopicPartition]) -> None:
        """In the poller's thread: wait until what is in hand is done, or nobody extends it any more."""
        windows = [w for place in places if (w := self.windows.get((place.topic, place.partition)))]
        given = threading.Event()
        if windows and not self.closed:
            self.poller.call(self._give, windows, given)
            self.poller.serve(given, self.transport.patience)
        for window in windows:  # also in the hands of who was not done in time
            window.alive = False
        self.poller.call(self._forget, windows)

    def _lost(self, consumer: Any, places: list[TopicPartition]) -> None:
        windows = [w for place in places if (w := self.windows.get((place.topic, place.partition)))]
        for window in windows:
            window.alive = False
        self.poller.call(self._forget, windows)

    def _give(self, windows: list[Window], given: threading.Event) -> None:
        self.transport.spawn(self._giving(windows, given))

    async def _giving(self, windows: list[Window], given: threading.Event) -> None:
        for window in windows:
            window.giving = True
        while self.reads.patient and any(window.held for window in windows if window.alive) and not self.closed:
            self.finished.clear()
            await self.finished.wait()
        if self.committing is not None:
            await self.committing
        if not self.closed:
            await self._commit(windows, clean=True)
            for window in windows:
                window.given = window.alive
        self._forget(windows)
        given.set()

    def _forget(self, windows: Iterable[Window]) -> None:
        """These are not ours any more."""
        gone = set(windows)
        for window in gone:
            window.alive = False
            window.open.clear()
            if self.windows.get(window.place) is window:
                del self.windows[window.place]
        self.finished.set()
        self.wake()

    # -- what was read

    def _take(self, limit: int) -> list[Delivery]:
        self.poller.taken()
        now, taken = self.clock.now(), list[Delivery]()
        for window in tuple(self.windows.values()):
            window.ahead = max(2 * limit, window.ahead * 7 // 8, AHEAD)  # the faster, the further
            if window.back and not window.giving:
                taken += window.due(now, limit - len(taken))
            if window.aside and not window.giving:
                self._take_aside(window, taken, limit)
        arrived, windows, kinds, place = self.poller.arrived, self.windows, self.transport.destinations, None
        while arrived and len(taken) < limit:
            raw = arrived.popleft()
            self.seen += 1
            if (at := (raw.topic(), raw.partition())) != place:
                place, found, destination = at, windows.get(at), kinds.get(at[0], at[0])
            if found is None or found.giving or self.seen <= found.since:
                continue
            offset = raw.offset()
            if found.aside or offset >= found.upto or len(found.open) >= found.most:
                self._put_aside(found, raw)
            else:
                self._open(found, raw, offset, destination, taken)
        return taken

    def _open(self, window: Window, raw: Any, offset: int, destination: str, taken: list[Delivery]) -> None:
        if raw.error() is not None:  # the end, beyond what is no record
            if window.skip(offset):
                self.transport.spawn(self.commit((window,)))
        elif window.wanted(offset):
            found = self.reads.opened(destination, raw)
            if isinstance(found, Message):
                delivery = window.fresh(offset, found)
            else:
                delivery = window.fresh(offset, found.message, found.failures, found.crashes, found.suspect)
            if delivery is not None:
                taken.append(delivery)

    def _put_aside(self, window: Window, raw: Any) -> None:
        """It is further than was declared as handed out, or than can be remembered."""
        if not window.aside:
            window.reach(raw.offset())
        window.aside.append(raw)
        self.limited |= not window.full
        if len(window.aside) >= ASIDE and (not window.paused or not len(window.aside) % ASIDE):
            window.paused = True
            self.poller.do(lambda: self.poller.consumer.pause([TopicPartition(*window.place)]))

    def _take_aside(self, window: Window, taken: list[Delivery], limit: int) -> None:
        aside, destination = window.aside, self.transport.destinations.get(window.place[0], window.place[0])
        while aside and len(taken) < limit and len(window.open) < window.most:
            window.reach(offset := aside[0].offset())
            if offset >= window.upto:
                break
            self._open(window, aside.popleft(), offset, destination, taken)
        self.limited |= bool(aside and not window.full and len(taken) < limit)
        if window.paused and len(aside) < ASIDE // 2:
            window.paused = False
            self.poller.do(lambda: self.poller.consumer.resume([TopicPartition(*window.place)]))

    # -- commits

    async def commit(self, windows: Iterable[Window]) -> None:
        """Have what is known of these durable, as far as they are still ours."""
        self.dirty.update(windows)
        mine = self.round = self.round or self.loop.create_future()
        if self.committing is None:
            self.committing = asyncio.ensure_future(self._commits())
        await mine

    async def _commits(self) -> None:
        try:
            while self.round is not None:
                windows, done = tuple(self.dirty), self.round
                self.dirty.clear()
                self.round = None
                try:
                    await self._commit_round(windows)
                except Exception as error:
                    done.set_exception(error)
                if not done.done():
                    done.set_result(None)
        finally:
            self.committing = None

    async def _commit_round(self, windows: Collection[Window]) -> None:
        await self._commit(windows)

    async def _commit(self, windows: Iterable[Window], *, clean: bool = False) -> None:
        """Tries for as long as they are ours."""
        while alive := [window for window in windows if window.alive]:
            async with self.exclusive:
                if await self.store([w for w in alive if w.alive], clean=clean):
                    return
            if self.closed:
                return
            await asyncio.sleep(AGAIN)

    async def store(self, windows: Sequence[Window], *, clean: bool = False) -> bool:
        """Try it once, for who is alone in doing so."""
        offsets = [TopicPartition(*w.place, w.floor, w.state(clean=clean)) for w in windows]
        self._hand_over()
        passed("commit.before")
        try:
            found = await self.poller.do(partial(self._stored, windows, offsets)) if offsets else ()
        except KafkaException as error:
            self.transport.troubled(error.args[0])
            return False
        except RuntimeError:  # the consumer is closed
            return True
        passed("commit.after")
        return not any(place.error for place in found)

    def _stored(self, windows: Sequence[Window], offsets: list[TopicPartition]) -> list[TopicPartition]:
        """In the poller's thread: what is ours still. The broker only looks at who is a member, not at who has what."""
        mine = [offset for window, offset in zip(windows, offsets, strict=True) if window.alive]
        return self.poller.consumer.commit(offsets=mine, asynchronous=False) or [] if mine else []

    # -- time

    def _arm(self) -> None:
        """Be woken when the next of what came back is due."""
        dues = [window.back[0][0] for window in tuple(self.windows.values()) if window.back and not window.giving]
        if dues:
            self._at("due", max(0.0, min(min(dues) - self.clock.now(), LOOK_AGAIN)), self.wake)

    def _at(self, name: str, delay: float, call: Callable[[], Any]) -> None:
        if (before := self.timers.get(name)) is not None:
            before.cancel()
        self.timers[name] = self.loop.call_later(delay, call)

    def _hand_over(self) -> None:
        """While there is work the threads have some too: a loop that is busy starves them of the GIL."""
        if "hand" not in self.timers:
            self._at("hand", HAND_OVER, self._handed_over)

    def _handed_over(self) -> None:
        del self.timers["hand"]
        time.sleep(1e-6)
        if self.committing is not None or any(window.held for window in tuple(self.windows.values())):
            self._hand_over()


def not_held(index: int, delivery: Delivery) -> Failure:
    why = "its partition or its lease was lost, or it was settled"
    return Failure(index, "fenced", BusError(f"{delivery.message.topic!r}: not held any more", why=why))
