"""What a transport's author tells the suite about the transport, and what each test gets to drive it with."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar, TypeVar

import pytest
from msgspec import Struct

from tidings import App, Topic
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import Unsupported
from tidings.kernel.message import Message, new_id
from tidings.kernel.transport import (
    Capabilities,
    Consumer,
    Delivery,
    Event,
    Failure,
    Options,
    Release,
    Retry,
    Settlement,
    Subscription,
    Transport,
)
from tidings.testing.clock import VirtualLoop

S = TypeVar("S")

LONG = 30.0  # seconds; a lease that no test outlives


class Bus(Struct, frozen=True, kw_only=True):
    """One fresh bus for one test.

    ``options(lease)`` gives options of the same bus each time, with a lease of so many seconds. ``virtual``: it needs
    no real time, so tests run on a virtual clock. ``crash(transport)`` ends a transport as a killed process would,
    where that can be done in process. ``url(lease)``: the same bus for other processes; naming it adds the tests with
    worker processes. ``foreign(transport, topic, body)`` publishes with the native client, as a stranger would.
    ``lose(transport)`` ends its connection, where that is the lease.
    ``lease``: the shortest that is safe on this machine. ``orphaned``: the lease of processes that will be killed; a
    short one where the bus learns of a death only by it. ``patience``: how much longer than usual to wait before a
    test has failed. ``mutant``: what worker processes shall break.
    """

    options: Callable[[float], Options]
    virtual: bool = False
    crash: Callable[[Transport], None] | None = None
    url: Callable[[float], str] | None = None
    foreign: Callable[[Transport, str, bytes], Awaitable[None]] | None = None
    lose: Callable[[Transport], Awaitable[None]] | None = None
    lease: float = 1.0
    orphaned: float = LONG
    patience: float = 1.0
    mutant: str = ""

    def run(self, main: Coroutine[Any, Any, None], seconds: float = 60.0) -> None:
        """Run a test's coroutine on a loop of its own; ``seconds`` are multiplied by ``patience``."""
        factory = VirtualLoop if self.virtual else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main if self.virtual else asyncio.wait_for(main, seconds * self.patience))


class Rig:
    """Opens transports, consumers and apps of one bus, and closes them when the test is over."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.clock = current_clock()
        self.stack = AsyncExitStack()
        self.events: Counter[str] = Counter()

    async def open(self, lease: float = LONG) -> Transport:
        """One more end of the bus: what another process would be."""
        transport = self.bus.options(lease).transport()
        await transport.open(self.note)
        self.stack.push_async_callback(transport.close)
        return transport

    def note(self, event: Event) -> None:
        self.events[event.kind] += event.count

    async def tap(self, transport: Transport, pattern: str, group: str | None, **more: Any) -> Tap:
        """A consumer; ``start=``, ``ordered=``, ``limit=`` as in a subscription and in ``receive``."""
        limit = more.pop("limit", 100)
        subscription = Subscription(app="conformance", pattern=pattern, group=group, **more)
        tap = Tap(await transport.subscribe(subscription), group or "", limit, self.bus.patience)
        self.stack.push_async_callback(tap.close)
        return tap

    def message(self, topic: str = "orders.placed", body: bytes = b"{}", **fields: Any) -> Message[Any]:
        """A sealed message, as a transport sees it."""
        given = {"id": new_id(), "time": self.clock.now(), "type": topic, "source": "conformance", **fields}
        return Message(topic, body=body, **given)

    def messages(self, count: int, topic: str = "orders.placed", keys: int = 0) -> list[Message[Any]]:
        return [self.message(topic, b'{"n":%d}' % n, **({"key": f"k{n % keys}"} if keys else {})) for n in range(count)]

    def app(self, name: str = "shop", *, lease: float = LONG, **options: Any) -> App:
        return App(name, self.bus.options(lease), **options)

    async def until(self, condition: Callable[[], bool], within: float = 10.0, what: str = "") -> None:
        """Wait for a condition, with a deadline."""
        end = self.clock.monotonic() + within * self.bus.patience
        while not condition():
            assert self.clock.monotonic() < end, f"not within {within:g} s: {what or condition}"
            await asyncio.sleep(0.005)

    async def publish(self, transport: Transport, *messages: Message[Any]) -> None:
        failures = await transport.publish(messages)
        assert not failures, failures[0].error


class Tap:
    """A consumer whose ``receive`` is never cancelled, as the kernel promises; with what it received so far."""

    def __init__(self, consumer: Consumer, group: str, limit: int, patience: float = 1.0) -> None:
        self.consumer, self.group, self.limit, self.patience = consumer, group, limit, patience
        self.ready: deque[Delivery] = deque()
        self.pending: asyncio.Task[Sequence[Delivery]] | None = None
        self.stopped = self.closed = False

    async def take(self, count: int = 1, within: float = 10.0) -> list[Delivery]:
        """Exactly ``count`` deliveries, or the test fails."""
        end = current_clock().monotonic() + within * self.patience
        while len(self.ready) < count:
            if not await self._more(end - current_clock().monotonic()):
                raise AssertionError(f"{self.group}: {len(self.ready)} of {count} deliveries came within {within:g} s")
        return [self.ready.popleft() for _ in range(count)]

    async def quiet(self, seconds: float = 0.15) -> None:
        """Nothing comes for so long."""
        await self._more(seconds)
        assert not self.ready, f"{self.group}: an unexpected delivery of {self.ready[0].message.destination!r}"

    async def _more(self, seconds: float) -> bool:
        if self.stopped or seconds <= 0:
            return False
        if self.pending is None:
            self.pending = asyncio.ensure_future(self.consumer.receive(self.limit))
        done, _ = await asyncio.wait({self.pending}, timeout=seconds)
        if not done:
            return False
        came, self.pending = self.pending.result(), None
        assert len(came) <= self.limit, f"receive({self.limit}) returned {len(came)}"
        self.stopped = not came
        self.ready.extend(came)
        return bool(came)

    async def settle(self, *settlements: Settlement) -> Sequence[Failure]:
        return await self.consumer.settle(settlements)

    async def ack(self, *deliveries: Delivery) -> None:
        failures = await self.consumer.settle([Settlement(delivery) for delivery in deliveries])
        assert not failures, failures[0].error

    async def retry(self, delivery: Delivery, delay: float = 0.0, failures: int = 1) -> None:
        failed = await self.settle(Settlement(delivery, Retry(delay, failures, "test")))
        assert not failed, failed[0].error

    async def release(self, *deliveries: Delivery) -> None:
        failed = await self.consumer.settle([Settlement(delivery, Release()) for delivery in deliveries])
        assert not failed, failed[0].error

    async def stop(self) -> None:
        """Stop, and let ``receive`` end by itself; what it still brought is in ``ready``."""
        self.consumer.stop()
        if self.pending is not None:
            self.ready.extend(await asyncio.wait_for(self.pending, 5))
            self.pending = None
        self.stopped = True

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            await self.stop()
            await self.consumer.close()

    async def forsake(self) -> None:
        """Never extend or settle again, as a hung process does: only its ``receive`` ends."""
        await self.stop()
        self.closed = True


class Suite:
    """What suites have in common. ``opt_outs``: tests that a transport is known to fail, with the reason."""

    opt_outs: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        for name, reason in cls.opt_outs.items():
            original = getattr(cls, name)

            def known_to_fail(self: Any, bus: Bus, original: Any = original) -> None:
                original(self, bus)

            setattr(cls, name, pytest.mark.xfail(strict=True, reason=reason)(known_to_fail))


def scenario(test: Callable[[S, Rig], Coroutine[Any, Any, None]]) -> Callable[[S, Bus], None]:
    """A coroutine of a test as a plain test function, on the loop its bus asks for."""

    @functools.wraps(test)
    def run(self: S, bus: Bus) -> None:
        async def main() -> None:
            rig = Rig(bus)
            failed = True
            try:
                await test(self, rig)
                failed = False
            finally:
                await _closed(rig, failed)

        bus.run(main())

    del run.__wrapped__  # pytest shall see the fixture ``bus``, not the coroutine's parameters
    return run


async def _closed(rig: Rig, failed: bool) -> None:
    """Close; after a failure, without hiding it behind what closing a broken bus raises."""
    try:
        await asyncio.wait_for(rig.stack.aclose(), 20)
    except Exception:
        if not failed:
            raise


def needs(*features: str) -> Callable[[Callable[[S, Rig], Any]], Callable[[S, Rig], Any]]:
    """A test of what only some buses can do. On the others it is the test that asking for it is refused."""

    def decorate(test: Callable[[S, Rig], Any]) -> Callable[[S, Rig], Any]:
        @functools.wraps(test)
        async def run(self: S, rig: Rig) -> None:
            capabilities = (await rig.open()).capabilities
            missing = [feature for feature in features if not has(capabilities, feature)]
            if not missing:
                await test(self, rig)
            for feature in missing:
                await refused(rig, feature)

        return run

    return decorate


def has(capabilities: Capabilities, feature: str) -> bool:
    return getattr(capabilities, feature) not in ("unavailable", "none", False)


async def refused(rig: Rig, feature: str) -> None:
    """Asking an app for ``feature`` raises ``Unsupported`` at start-up or at the call, and says what is missing."""
    app = rig.app()
    asked: dict[str, dict[str, Any]] = {"ordered": {"ordered": True}, "start": {"start": "first"}}
    sent: dict[str, dict[str, Any]] = {"delay": {"delay": 1}, "priority": {"priority": 5}, "expiry": {"expires": 5}}
    pattern = "orders.>" if feature == "wildcards" else "orders.placed"

    async def handler(order: Any) -> None: ...

    app.on(pattern, **asked.get(feature, {}))(handler)

    if feature in asked or feature == "wildcards":
        await _raises(app.__aenter__(), feature)
    elif feature in sent:
        async with app.connect():
            await _raises(app.publish(Topic("orders.placed"), {}, **sent[feature]), feature)


async def _raises(attempt: Awaitable[Any], feature: str) -> None:
    with pytest.raises(Unsupported) as refusal:
        await attempt
    assert feature in str(refusal.value), f"the refusal does not name {feature!r}: {refusal.value}"
