"""How fast a bus is: what ``tidings bench`` measures, by publishing and handling like any app.

All of it happens on topics and in a group whose names begin with a name of their own. What waits for the group is
bounded: a bus that others use as well must not be filled up.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import struct
import time
from collections.abc import Callable, Sequence
from threading import Thread

from msgspec import Struct

from tidings import App, Message, Topic
from tidings.kernel.errors import BusUnavailable, InvalidOption
from tidings.kernel.topics import matches
from tidings.kernel.transport import Inspectable, Manageable, Options

PUBLISHERS, BATCH, BATCH_BYTES = 100, 1_000, 4 << 20
WAITING, WAITING_BYTES = 50_000, 32 << 20  # most that waits for the group at a time
RATE = 200.0  # messages a second while delays are measured; half of what the bus takes, where that is less
STAMP = struct.Struct("d")  # how a body begins: when it was due (monotonic seconds), or 0
AHEAD = 0.05  # seconds until the first message is due
PATIENCE = 30.0  # seconds without any message until a bus counts as stuck
PARTS = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


class Measured(Struct):
    """Something measured: its messages in so many seconds; ``delays``: by percentile, in milliseconds."""

    name: str
    messages: int
    seconds: float
    delays: dict[str, float] = {}

    @property
    def rate(self) -> float:
        return self.messages / self.seconds

    def add(self, messages: int, began: float) -> None:
        """More of them, in the time since ``began`` (of ``perf_counter``)."""
        self.messages += messages
        self.seconds += time.perf_counter() - began


class Left(Struct):
    """What could not be cleaned up: retained messages, and groups."""

    topics: str
    messages: int | None  # None: the bus cannot tell
    groups: list[str]


class Speed:
    """An app of its own on a bus, its only handler counts."""

    def __init__(self, options: Options, size: int, length: float, told: Callable[[str], None]) -> None:
        self.options, self.size, self.length, self.told = options, size, length, told
        self.name = f"tidings-bench-{secrets.token_hex(4)}"
        self.app = self._app()
        self.lone: Topic[bytes] = Topic(f"{self.name}.unheard", bytes)
        self.load: Topic[bytes] = Topic(f"{self.name}.load", bytes)
        self.delays = list[float]()
        self.durable = ""  # what an accepted message survives
        self.app.on(self.load, group=f"{self.name}.take", breaker=None)(self._take)

    def _app(self) -> App:
        app = App(self.name, self.options)
        app.use(self.options)  # whatever TIDINGS_URL says
        return app

    async def _take(self, body: bytes) -> None:
        if due := STAMP.unpack_from(body)[0]:
            self.delays.append(time.monotonic() - due)

    def body(self, due: float = 0.0) -> bytes:
        return STAMP.pack(due).ljust(self.size, b".")

    @property
    def group(self) -> str:
        return f"{self.name}.take"

    @property
    def handled(self) -> int:
        return self.app.stats()[self.group].handled

    async def measure(self) -> list[Measured]:
        """Everything, one after the other. Raises ``InvalidOption`` when others would get the messages."""
        async with self.app:
            await self._refuse_listeners()
            self.durable = self.app.bus().capabilities.durable
            self.told("100 concurrent publishers")
            concurrent = await self.concurrent()
            self.told("publishing many at once, then consuming it")
            published, backlog = await self.in_turn()
            self.told("publishing and consuming")
            both = await self.end_to_end()
            rate = min(RATE, concurrent.rate / 2)
            self.told(f"delays at {rate:.3g} messages a second")
            return [concurrent, published, backlog, both, await self.paced(rate)]

    async def _refuse_listeners(self) -> None:
        bus = self.app.bus()
        if not isinstance(bus, Inspectable):
            return
        topics = self.lone.name, self.load.name
        for group in await bus.groups():
            if group.name != self.group and any(matches(group.pattern, topic) for topic in topics):
                raise InvalidOption(
                    f"group {group.name} would get every message of the bench",
                    why=f"it listens to {group.pattern}",
                    mend="measure a bus of its own: tidings bench sqlite:///bench.db, on the same disk",
                )

    async def concurrent(self) -> Measured:
        """Each publisher waits until its message is accepted."""
        count, body, began = 0, self.body(), time.perf_counter()

        async def publisher() -> None:
            nonlocal count
            while time.perf_counter() - began < self.length:
                await self.app.publish(self.lone, body)
                count += 1

        await asyncio.gather(*(publisher() for _ in range(PUBLISHERS)))
        return Measured(f"{PUBLISHERS} concurrent publish", count, time.perf_counter() - began)

    async def in_turn(self) -> tuple[Measured, Measured]:
        """Publish as much as may wait, then let it be consumed, until publishing has had its time."""
        published, backlog = Measured("publish_many", 0, 0.0), Measured("consume a backlog", 0, 0.0)
        batch, most = self._batch()
        while published.seconds < self.length:
            self.app.pause(self.group)
            count, began = 0, time.perf_counter()
            while count < most and published.seconds + time.perf_counter() - began < self.length:
                await self.app.publish_many(batch)
                count += len(batch)
            published.add(count, began)
            target, began = self.handled + count, time.perf_counter()
            self.app.pause(self.group, False)
            await self._until(target)
            backlog.add(count, began)
        return published, backlog

    async def end_to_end(self) -> Measured:
        """Published and handled, the one beside the other."""
        both, count, before, began = Measured("end to end", 0, 0.0), 0, self.handled, time.perf_counter()
        batch, most = self._batch()
        while time.perf_counter() - began < self.length:
            await self.app.publish_many(batch)
            count += len(batch)
            await self._until(before + count - most)
        await self._until(before + count)
        both.add(count, began)
        return both

    def _batch(self) -> tuple[list[Message[bytes]], int]:
        """What is published at once, and how many messages may wait."""
        count = min(BATCH, max(1, BATCH_BYTES // self.size))
        return [self.load(self.body()) for _ in range(count)], max(count, min(WAITING, WAITING_BYTES // self.size))

    async def _until(self, handled: int) -> None:
        seen, since = self.handled, time.monotonic()
        while self.handled < handled:
            if self.handled != seen:
                seen, since = self.handled, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                why = f"{handled - seen:,} messages are missing, and for {PATIENCE:g} s none has come"
                raise BusUnavailable("the bus does not deliver what it accepted", why=why)
            await asyncio.sleep(0.002)

    async def paced(self, rate: float) -> Measured:
        """Delays from the moment a message is due to its handler.

        Message n is due at n / ``rate`` whatever became of those before it, so a bus that stalls makes all messages of
        the stall late. The clock is a thread: an event loop's timers are a millisecond coarse.
        """
        loop, total, tasks = asyncio.get_running_loop(), max(1, int(rate * self.length)), list[asyncio.Task[None]]()
        target, began = self.handled + total, time.monotonic() + AHEAD

        def one(due: float) -> None:
            tasks.append(loop.create_task(self.app.publish(self.load, self.body(due))))

        def clock() -> None:
            for n in range(total):
                due = began + n / rate
                time.sleep(max(0.0, due - time.monotonic()))
                loop.call_soon_threadsafe(one, due)

        self.delays.clear()
        thread = Thread(target=clock, daemon=True)
        thread.start()
        await self._until(target)
        await asyncio.gather(*tasks)
        return Measured(f"delay at {rate:.3g}/s", total, time.monotonic() - began, percentiles(self.delays))

    async def clean_up(self) -> Left:
        """Drop the group, where the bus can; afterwards, for nobody may be at work in it."""
        app, topics = self._app(), f"{self.name}.>"
        async with app.connect():
            bus = app.bus()
            if not isinstance(bus, Inspectable):
                return Left(topics, None, [self.group])
            groups = [group.name for group in await bus.groups(topics)]
            if isinstance(bus, Manageable):
                for group in groups:
                    await bus.drop(group)
                groups = []
            return Left(topics, sum(topic.messages for topic in await bus.topics(topics)), groups)


def percentiles(delays: Sequence[float]) -> dict[str, float]:
    """Milliseconds, by name."""
    ordered = sorted(delays)
    return {name: ordered[max(0, math.ceil(len(ordered) * part) - 1)] * 1e3 for name, part in PARTS.items()}
