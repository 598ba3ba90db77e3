"""Two clients: the producer, which the event loop looks after, and a consumer with a thread of its own.

The producer needs no thread: while anything is on its way the loop looks for delivery reports every millisecond; after
many records it waits for them in place, for less time than producing them took. (Each report needs the
GIL, so a thread that waits for them starves beside a busy loop, or starves it.)

A consumer must be polled, whatever the event loop does. Its thread fetches into ``arrived``, at most ``HIGH`` records,
and wakes the loop once per poll. When nobody takes them for half a second it pauses the partitions and goes on polling,
so that the group does not think it dead. Only this thread may touch the consumer: a call of another one waits until a
poll ends, and loses the race against the next one for seconds. So everything else, commits too, is a *command*, done
between two polls; and a poll waits for a tenth of the time since the last record or command, which is how long a
command may have to wait.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from tidings.kernel import errors
from tidings.kernel.transport import Failure
from tidings.transports._points import passed

from .records import Record
from .transactions import REJECTED

log = logging.getLogger("tidings")

POLL, SHORT = 0.1, 0.001  # seconds a poll waits at most, and at least
FETCH, HIGH = 1000, 2000  # records at once, and waiting
PATIENCE = 0.5  # seconds without room until partitions are paused
AGAIN = 1.0  # seconds until another consumer takes the place of one that failed

END = KafkaError._PARTITION_EOF
QUIET = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}

LOOK = 0.001  # seconds between looks for reports
SLICE = 500  # records produced before the loop gets a breath
SPARE, LARGE = 4, 4096  # batches kept, and records of the largest of them

BROKEN = {KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._AUTHENTICATION, KafkaError._SSL}
MOVING = {KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS}
MOVING |= {KafkaError.NOT_CONTROLLER, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.BROKER_NOT_AVAILABLE}
MOVING |= {KafkaError.UNSTABLE_OFFSET_COMMIT, KafkaError.REQUEST_TIMED_OUT, KafkaError.NETWORK_EXCEPTION}
MOVING |= {KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE, KafkaError._WAIT_COORD, KafkaError._RESOLVE}
VANISHED = {KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART}


def passing(reason: Any) -> bool:
    """Whether an error may pass by itself: who would answer moves, has just started, or does not answer yet."""
    return reason.retriable() or reason.code() in (*BROKEN, *MOVING)


class Batch:
    """Records on their way, and what became of them. Its callbacks, one for each, serve the next batch, too."""

    def __init__(self) -> None:
        self.reports: list[Callable[[Any, Any], None]] = []

    def begin(self, count: int) -> None:
        self.left = count
        self.errors: dict[int, Any] = {}
        self.first = -1  # the offset of the first record
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reports += [partial(self.reported, index) for index in range(len(self.reports), count)]

    def reported(self, index: int, error: Any, message: Any) -> None:
        if error is not None:
            self.errors[index] = error
        elif not index:
            self.first = message.offset()
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


def administrator(config: Mapping[str, Any]) -> AdminClient:
    """Raises ``BusUnavailable`` when the client will not have the options, or cannot read their files."""
    try:
        return AdminClient(dict(config))
    except KafkaException as error:
        mend = "ca=, cert= and key= name PEM files, mechanism= is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
        why = error.args[0].str()
        raise errors.BusUnavailable("Kafka's client will not have these options", why=why, mend=mend) from error


class Sender:
    """One producer. ``reason`` says why the broker is not there, if it is not."""

    def __init__(self, config: Mapping[str, Any], reason: Callable[[], str], vanished: Callable[[str], None]) -> None:
        self.config, self.reason, self.vanished = dict(config), reason, vanished
        self.producer = Producer(self.config)
        self.loop = asyncio.get_running_loop()
        self.timer: asyncio.TimerHandle | None = None
        self.spare: list[Batch] = []

    async def send(self, records: Sequence[Record]) -> list[Failure]:
        """Produce all; returns when each is stored or failed. Order within a partition is that given."""
        if not records:
            return []
        errors, _ = await self._sent(records)
        for index in [i for i, error in errors.items() if error.code() == KafkaError.MSG_SIZE_TOO_LARGE]:
            alone, _ = await self._sent((records[index],))  # the broker refuses all that it was sent together with
            del errors[index]
            errors.update(dict.fromkeys((index,) if alone else (), alone.get(0)))
        return self.failures(records, errors) if errors else []

    async def store(self, record: Record) -> int:
        """Produce one; its offset. Raises ``BusError``."""
        errors, offset = await self._sent((record,))
        for failure in self.failures((record,), errors):
            raise failure.error
        return offset

    async def _sent(self, records: Sequence[Record]) -> tuple[dict[int, Any], int]:
        """Errors by index, and the offset of the first."""
        passed("produce.before")
        batch, produce = self.spare.pop() if self.spare else Batch(), self.producer.produce
        batch.begin(len(records))
        for index, (r, report) in enumerate(zip(records, batch.reports, strict=False)):
            try:
                produce(r.topic, r.value, r.key, r.partition, report, None, 0, r.headers)
            except BufferError:  # the queue is full: until there is room
                await self._room(partial(produce, r.topic, r.value, r.key, r.partition, report, None, 0, r.headers))
            except KafkaException as error:
                report(error.args[0], None)
            if index % SLICE == SLICE - 1:
                self.producer.poll(0)
                await asyncio.sleep(0)
        until = time.monotonic() + LOOK * (len(records) // SLICE)
        while batch.left and time.monotonic() < until:  # a timer would be a millisecond late
            self.producer.poll(LOOK)
            await asyncio.sleep(0)
        if self.timer is None:
            self._arm()
        await batch.done
        if len(self.spare) < SPARE and len(batch.reports) <= LARGE:
            self.spare.append(batch)
        passed("produce.after")
        return batch.errors, batch.first

    async def _room(self, produce: Callable[[], Any]) -> None:
        while True:
            self.producer.poll(0)
            await asyncio.sleep(LOOK)
            try:
                produce()
                return
            except BufferError:
                continue

    def _arm(self) -> None:
        self.timer = self.loop.call_later(LOOK, self._due)

    def _due(self) -> None:
        self.producer.poll(0)
        if len(self.producer):
            self._arm()
        else:
            self.timer = None

    def failures(self, records: Sequence[Record], reported: Mapping[int, Any]) -> list[Failure]:
        """What failed, in our terms. A producer that has met a fatal error is replaced."""
        if any(error.fatal() or error.code() == KafkaError._FATAL for error in reported.values()):
            self.producer = Producer(self.config)
        return self.told(records, reported)

    def told(self, records: Sequence[Record], reported: Mapping[int, Any]) -> list[Failure]:
        """What failed, in our terms."""
        found = []
        for index, error in sorted(reported.items()):
            topic = records[index].topic
            if error.code() in VANISHED:
                self.vanished(topic)
            found.append(self._failure(index, error, topic))
        return found

    def _failure(self, index: int, error: Any, topic: str) -> Failure:
        what, why = f"Kafka did not take a message for {topic}", f"{error.name()}: {error.str()}"
        if error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE):
            return Failure(
                index, "rejected", errors.TooLarge(what, why=why, mend="raise the topic's max.message.bytes")
            )
        if error.code() in REJECTED:
            return Failure(index, "rejected", errors.BusError(what, why=why))
        why = "; ".join(filter(None, (why, self.reason())))
        mend = "publish again with the same id: it may be stored"
        return Failure(index, "unknown", errors.BusUnavailable(what, why=why, mend=mend))

    def close(self, within: float) -> None:
        """Wait for what is on its way, in a thread."""
        self.producer.flush(within)


class Poller(threading.Thread):
    """One consumer and its thread. ``wake`` is called on the loop when something has arrived; ``failed`` with errors.

    An error that nobody foresaw ends the consumer, not the thread: after a second there is another one, with which
    ``again`` is called, in the thread. ``ailing`` hears of it on the loop: why, and whether it is over.

    ``most``: keep only so many of the latest (a live subscription), instead of waiting for room.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        wake: Callable[[], None],
        failed: Callable[[Any], None],
        ailing: Callable[[str, bool], None],
        most: int | None = None,
    ) -> None:
        super().__init__(name=f"tidings-kafka-{config['group.id']}", daemon=True)
        self.config = dict(config)
        self.consumer = Consumer(self.config)
        self.loop = asyncio.get_running_loop()
        self.wake, self.failed, self.ailing, self.most = wake, failed, ailing, most
        self.again: Callable[[Any], None] = lambda consumer: None
        self.arrived: deque[Any] = deque(maxlen=most)
        self.commands: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self.signal, self.ended = threading.Event(), asyncio.Event()
        self.active = time.monotonic()
        self.told = self.ending = self.choked = False
        self.dropped = self.total = 0  # records: dropped, and ever put into ``arrived``

    # -- of the loop

    def do(self, command: Callable[[], Any]) -> asyncio.Future[Any]:
        """Have something done by the thread; its result."""
        done: asyncio.Future[Any] = self.loop.create_future()
        self.commands.append((command, done))
        self.signal.set()
        if self.ended.is_set():
            self._obey()
        return done

    def taken(self) -> None:
        """There may be room again."""
        self.told = False
        if self.choked:
            self.signal.set()

    async def end(self) -> None:
        """Leave the group, and end the thread."""
        self.ending = True
        self.signal.set()
        if self.ident is not None:
            await self.ended.wait()

    def begin(self, again: Callable[[Any], None]) -> None:
        """Start."""
        self.again = again
        self.start()

    # -- of the thread

    def run(self) -> None:
        while not self.ending:
            try:
                self._work()
            except Exception as error:
                log.exception("the Kafka consumer %s failed", self.name)
                self.call(self.ailing, f"{self.name}: {type(error).__name__}: {error}", False)
                self._close()
                self._replace()
        self._close()
        self.call(self._over)

    def _close(self) -> None:
        """What waits to be done meets a closed consumer."""
        with suppress(Exception):
            self.consumer.close()
        self._obey()

    def _work(self) -> None:
        while not self.ending:
            if self.commands:
                self._obey()
            try:
                if self.most is None and len(self.arrived) >= HIGH:
                    self._choked()
                else:
                    self._poll()
            except KafkaException as error:
                log.warning("the Kafka consumer %s: %s", self.name, error)
                time.sleep(POLL)

    def _replace(self) -> None:
        self.choked = False
        while not self.ending:
            self.signal.wait(AGAIN)
            self.signal.clear()
            self._obey()
            try:
                self.consumer = Consumer(self.config)
                self.again(self.consumer)
            except Exception:
                log.exception("the Kafka consumer %s cannot be replaced yet", self.name)
            else:
                self.call(self.ailing, self.name, True)
                return

    def _over(self) -> None:
        """On the loop: what came too late meets a closed consumer."""
        self.ended.set()
        self._obey()

    def _obey(self) -> None:
        while self.commands:
            command, done = self.commands.popleft()
            try:
                result = command()
            except Exception as error:
                self.call(_fail, done, error)
            else:
                self.call(_finish, done, result)
            self.active = time.monotonic()

    def serve(self, until: threading.Event, within: float) -> None:
        """In a callback: obey until something has happened."""
        end = time.monotonic() + within
        while not until.is_set() and time.monotonic() < end and not self.ending:
            self.signal.wait(POLL)
            self.signal.clear()
            self._obey()
        self._obey()

    def _poll(self) -> None:
        first = self.consumer.poll(min(max((time.monotonic() - self.active) / 10, SHORT), POLL))
        if first is None:
            return
        came = [first, *self.consumer.consume(FETCH, 0)]
        good = [raw for raw in came if (error := raw.error()) is None or error.code() == END]
        for raw in came if len(good) < len(came) else ():
            if (error := raw.error()) is not None and error.code() not in (END, *QUIET):
                self.call(self.failed, error)
        if self.most is not None:
            self.dropped += max(0, len(self.arrived) + len(good) - self.most)
        self.total += len(good)
        self.arrived.extend(good)
        if good:
            self.active = time.monotonic()
            if not self.told:
                self.told = True
                self.call(self.wake)

    def _choked(self) -> None:
        """Wait for room; when it does not come, poll without fetching."""
        self.choked = True
        end = time.monotonic() + PATIENCE
        while len(self.arrived) >= HIGH and time.monotonic() < end and not self.ending:
            self.signal.wait(SHORT * 10)
            self.signal.clear()
            self._obey()
        if len(self.arrived) >= HIGH:
            places = self.consumer.assignment()
            self.consumer.pause(places)
            while len(self.arrived) >= HIGH and not self.ending:
                if (raw := self.consumer.poll(SHORT * 10)) is not None and not raw.error():
                    self.total += 1
                    self.arrived.append(raw)
                self._obey()
            with suppress(KafkaException):
                self.consumer.resume(places)
        self.choked = False

    def call(self, what: Callable[..., Any], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(what, *arguments)


def _finish(done: asyncio.Future[Any], result: Any) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[Any], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
        done.exception()  # whoever waits sees it; if nobody does, nothing is to be said
