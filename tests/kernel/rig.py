"""One worker on a memory bus, in virtual time: what every test of the loop is driven with."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, ParamSpec

from tidings import Backoff, Breaker, Delivery, Message
from tidings.kernel.chunks import ChunkWorker
from tidings.kernel.clock import current_clock
from tidings.kernel.handler import Handler, Many, Outcome
from tidings.kernel.message import new_id
from tidings.kernel.settling import Policy
from tidings.kernel.transport import Ack, Event, Failure, Retry, Settlement, Stored, Subscription
from tidings.kernel.worker import Work, Worker
from tidings.testing.clock import run_virtual
from tidings.transports.memory import GroupConsumer, Memory

P = ParamSpec("P")
GROUP = "shop.bill"
FAST = Backoff(first=0.1, factor=2, limit=0.5, jitter=0, attempts=3)  # every wait is in place


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test's coroutine in virtual time; two days of it are the deadline."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def main() -> None:
            async with asyncio.timeout(172_800):
                await test(*args, **kwargs)

        run_virtual(main())

    return run


def message(id: str = "", key: str | None = None, topic: str = "orders.placed", **fields: Any) -> Message[Any]:
    """A sealed message."""
    fields.setdefault("time", current_clock().now())
    return Message(topic, body=fields.pop("body", b"{}"), id=id or new_id(), key=key, **fields)


async def until(condition: Callable[[], bool], within: float = 600.0) -> None:
    """Wait for a condition, with a deadline in virtual time."""
    end = current_clock().monotonic() + within
    while not condition():
        assert current_clock().monotonic() < end, f"not within {within:g} s"
        await asyncio.sleep(0.01)


class Tap:
    """A memory consumer whose calls are written down, and can be told to fail."""

    def __init__(self, inner: GroupConsumer) -> None:
        self.inner, self.lease = inner, inner.lease
        self.settled: list[Settlement] = []
        self.limits: list[int] = []
        self.extended: Counter[str] = Counter()
        self.receive_errors: list[Exception] = []
        self.settle_errors: list[Exception] = []
        self.mark_takes = 0.0  # seconds
        self.refuse: Callable[[Settlement], Failure | None] = lambda settlement: None

    async def receive(self, limit: int) -> Sequence[Delivery]:
        if self.receive_errors:
            raise self.receive_errors.pop(0)
        self.limits.append(limit)
        return await self.inner.receive(limit)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        await asyncio.sleep(0.0001)  # as a bus that is not memory would
        if self.settle_errors:
            raise self.settle_errors.pop(0)
        failures = []
        for index, settlement in enumerate(settlements):
            if refusal := self.refuse(settlement):
                failures.append(Failure(index, refusal.kind, refusal.error))
            else:
                failures += [
                    Failure(index, failure.kind, failure.error) for failure in await self.inner.settle([settlement])
                ]
                self.settled.append(settlement)
        return failures

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        self.extended.update(delivery.message.id for delivery in deliveries)
        await self.inner.extend(deliveries)

    async def mark(self, delivery: Delivery) -> bool:
        await asyncio.sleep(self.mark_takes)
        return await self.inner.mark(delivery)

    def stop(self) -> None:
        self.inner.stop()

    async def close(self) -> None:
        await self.inner.close()


class Stage:
    """A bus, a worker, and what became of each message."""

    def __init__(self, options: Memory) -> None:
        self.transport = options.transport()
        self.events: Counter[str] = Counter()
        self.tap: Tap
        self.worker: Worker
        self.running: asyncio.Task[None]

    def note(self, event: Event) -> None:
        self.events[event.kind] += event.count

    async def publish(self, *messages: Message[Any]) -> None:
        assert not await self.transport.publish(messages)

    def fates(self, id: str) -> list[Any]:
        """The actions settled for a message, in order."""
        return [s.action for s in self.tap.settled if s.delivery.message.id == id]

    def acked(self) -> list[str]:
        """Ids that were handled, in the order of their settling."""
        return [s.delivery.message.id for s in self.tap.settled if isinstance(s.action, Ack)]

    def retries(self, id: str) -> list[tuple[float, int]]:
        return [(action.delay, action.failures) for action in self.fates(id) if isinstance(action, Retry)]

    async def dead(self) -> list[Message[Any]]:
        """The dead letters of the group."""
        letters: Sequence[Stored] = await self.transport.peek("_dead." + GROUP, limit=100_000)
        return [letter.message for letter in letters]

    async def settled(self, count: int, within: float = 600.0) -> None:
        """Until so many messages were acknowledged."""
        await until(lambda: self.running.done() or len(set(self.acked())) >= count, within)
        if self.running.done():
            self.running.result()

    async def stop(self) -> None:
        self.worker.stop()
        await asyncio.wait_for(self.running, 300)


One = Callable[[Delivery], Awaitable[Any]]


@asynccontextmanager
async def stage(
    one: One | None = None,
    *,
    many: Many | None = None,
    batch: int = 1,
    within: float = 0.0,
    concurrency: int = 16,
    timeout: float = 3600.0,
    grace: float = 30.0,
    backoff: Backoff = FAST,
    breaker: Breaker | None = None,
    ordered: bool = False,
    once: bool = False,
    name: str = "",
    pattern: str = "orders.>",
    cancellable: bool = True,
    busy: set[Any] | None = None,
) -> AsyncIterator[Stage]:
    """A stage whose worker runs; drained at the end."""
    staged = Stage(Memory(name=name))
    await staged.transport.open(staged.note)

    async def handle(delivery: Delivery) -> tuple[Message[Any], ...]:
        assert one is not None
        return tuple(await one(delivery) or ())

    handler = (
        Handler(one=handle, cancellable=cancellable)
        if many is None
        else Handler(many=many, limit=lambda: batch, batch=batch > 1, cancellable=cancellable)
    )
    subscription = Subscription(
        app="shop", pattern=pattern, group=GROUP, ordered=ordered, concurrency=concurrency, timeout=timeout
    )
    policy = Policy(group=GROUP, ordered=ordered, once=once, backoff=backoff)
    work = Work(policy=policy, concurrency=concurrency, within=within, timeout=timeout, grace=grace)
    staged.tap = Tap(await staged.transport.subscribe(subscription))
    kind = Worker if many is None else ChunkWorker
    staged.worker = kind(staged.tap, handler, work, current_clock(), set(), breaker)
    staged.running = asyncio.get_running_loop().create_task(staged.worker.run())
    try:
        yield staged
        if not staged.running.done():
            await staged.stop()
        staged.running.result()
    finally:
        staged.running.cancel()
        await staged.transport.close()


def each(one: One) -> Many:
    """A batch handler that handles its items one after the other, and fails as a whole."""

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        return [tuple(await one(delivery) or ()) for delivery in deliveries]

    return many
