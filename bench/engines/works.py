"""What is measured on a server, the same for every library: publish, consume a backlog, end to end, and delays.

Theory of operation. A *library* works at a *place* of its own (a stream, a queue, a topic) with one group, which is
there before anything is published. Each work makes the place, does its part, asks the server what is left, and removes
the place. A rate is returned only if every message was handled exactly once and nothing is left unsettled.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any, Protocol

from msgspec import Struct

from ..pacer import RUNNING_INTERVAL, pace
from ..payload import Order
from ..peers._shared import BATCH, Delays, Tally, accepted, batches, beside, orders

GROUP = "bench"
PATIENCE = 60.0  # seconds until what has not arrived is lost
EMPTIED = 10.0  # seconds until what a server still counts is left
WARM = 0.5  # seconds of messages until delays count: connections, metadata, caches
POLL = 0.002  # seconds between two looks at a counter
RATES = ("publish", "backlog", "end_to_end")

Watch = AbstractContextManager[Any]  # entered while the clock runs
UNWATCHED: Watch = nullcontext()
Sink = Tally | Delays
Settled = Callable[[], Awaitable[None]]  # returns when the sink has everything, and all of it was settled


class Publisher(Protocol):
    """An open connection."""

    async def many(self, items: Sequence[Struct]) -> None:
        """A batch, in the best way there is; returns when the server has accepted all of it."""

    async def one(self, item: Struct) -> None:
        """Without waiting for others; returns when the server has accepted it, or fails later with the publisher."""


class Library(Protocol):
    """One object a process; what it does alone is not timed."""

    url: str
    place: str

    def __init__(self, url: str, place: str) -> None: ...

    async def create(self) -> None:
        """The place, empty, and its group."""

    def publishing(self) -> AbstractAsyncContextManager[Publisher]: ...

    def consuming(self, sink: Sink) -> AbstractAsyncContextManager[Settled]:
        """Entered when it is ready; what comes goes to the sink until the end."""

    async def left(self) -> int:
        """What waits for the group or is unsettled."""

    async def remove(self) -> None: ...


class Consumed(Struct, frozen=True):
    """So many messages, and when (``perf_counter``) it began, handled the first, and settled the last."""

    messages: int
    began: float
    first: float
    ended: float

    @property
    def rate(self) -> float:
        """Messages a second since the beginning."""
        return self.messages / (self.ended - self.began)

    @property
    def steady(self) -> float:
        """Messages a second since the first was handled: without connecting and joining a group."""
        return (self.messages - 1) / (self.ended - self.first)


def place() -> str:
    """A name that any server takes, and nobody has."""
    return f"bench{secrets.token_hex(5)}"


@asynccontextmanager
async def created(library: Library) -> AsyncIterator[None]:
    await library.create()
    try:
        yield
    finally:
        await library.remove()


async def emptied(library: Library) -> int:
    """What is left when nothing goes any more; some servers count late."""
    deadline = time.monotonic() + EMPTIED
    while (left := await library.left()) and time.monotonic() < deadline:  # noqa: ASYNC110 - others work
        await asyncio.sleep(0.05)
    return left


async def _publish_all(publisher: Publisher, whole: Sequence[Order]) -> None:
    for batch in batches(whole):
        await publisher.many(batch)


async def publish(library: Library, messages: int, watch: Watch = UNWATCHED) -> float:
    """Batches of 1,000, one after the other, each accepted before the next; after a first one that is not timed."""
    async with created(library), library.publishing() as publisher:
        whole = orders(BATCH + messages)
        await publisher.many(whole[:BATCH])
        with watch:
            began = time.perf_counter()
            await _publish_all(publisher, whole[BATCH:])
            took = time.perf_counter() - began
        accepted(await library.left(), len(whole))
        return messages / took


async def concurrent(library: Library, messages: int, publishers: int) -> float:
    """Tasks, each of which waits until its message was accepted."""
    async with created(library), library.publishing() as publisher:
        each = messages // publishers
        whole = orders(each * publishers)

        async def publish_part(part: Sequence[Order]) -> None:
            for item in part:
                await publisher.one(item)

        began = time.perf_counter()
        await asyncio.gather(*(publish_part(whole[at : at + each]) for at in range(0, len(whole), each)))
        took = time.perf_counter() - began
        accepted(await library.left(), len(whole))
        return len(whole) / took


async def backlog(library: Library, messages: int, watch: Watch = UNWATCHED) -> Consumed:
    """What was published before."""
    async with created(library):
        async with library.publishing() as publisher:
            await _publish_all(publisher, orders(messages))
        tally = Tally(messages)
        with watch:
            began = time.perf_counter()
            async with library.consuming(tally) as settled:
                await settled()
                ended = time.perf_counter()
        tally.check(await emptied(library))
        return Consumed(messages, began, tally.first, ended)


async def end_to_end(library: Library, messages: int, watch: Watch = UNWATCHED) -> Consumed:
    """Publishing and consuming at once, in one process."""
    async with created(library):
        tally, whole = Tally(messages), orders(messages)
        with watch:
            async with library.consuming(tally) as settled, library.publishing() as publisher:
                began = time.perf_counter()
                await _publish_all(publisher, whole)
                await settled()
                ended = time.perf_counter()
        tally.check(await emptied(library))
        return Consumed(messages, began, tally.first, ended)


async def rate(work: str, library: Library, messages: int, watch: Watch = UNWATCHED) -> float:
    """Of one of ``RATES``, in messages a second."""
    if work == "publish":
        return await publish(library, messages, watch)
    return (await (backlog if work == "backlog" else end_to_end)(library, messages, watch)).steady


async def latency(library: Library, rate: float, seconds: float) -> list[float]:
    """Seconds from when a message was due, in another process, to its handler in this one."""
    async with created(library):
        delays = Delays(rate, seconds + WARM, WARM, PATIENCE)
        async with library.consuming(delays):
            with beside(_publisher, type(library), library.url, library.place, rate, seconds + WARM) as check:
                while delays.more():
                    check()
                    await asyncio.sleep(0.01)
        if left := await emptied(library):
            raise RuntimeError(f"all were handled, {left} are left")
        return delays.values


def _publisher(kind: type[Library], url: str, place: str, rate: float, seconds: float) -> None:
    async def paced() -> None:
        async with kind(url, place).publishing() as publisher:
            await pace(publisher.one, rate, seconds)

    sys.setswitchinterval(RUNNING_INTERVAL)
    asyncio.run(paced())


# -- for libraries


@asynccontextmanager
async def background(consume: Coroutine[Any, Any, None]) -> AsyncIterator[Settled]:
    """A loop that ends by itself, when all that was to come is settled; it is cancelled where others do not wait."""
    task = asyncio.create_task(consume)

    async def settled() -> None:
        if not (await asyncio.wait((task,), timeout=PATIENCE))[0]:
            raise TimeoutError(f"not everything came within {PATIENCE:g} s")
        task.result()

    try:
        yield settled
    finally:
        if task.done():
            task.result()
        task.cancel()
        await asyncio.wait((task,))


async def until(done: Callable[[], bool], sink: Sink) -> None:
    """Raises ``TimeoutError``, saying how far it came."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{sink.count} messages came, not all were settled within {PATIENCE:g} s")
        await asyncio.sleep(POLL)
