"""One stream after another: what is of one never goes out on the next; and a server that is odd, full, or left."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
from grpc import aio, method_handlers_generic_handler, stream_stream_rpc_method_handler
from tests.transports.consuming import settle, take, until

from tidings import App
from tidings.gateway import Gateway, Rights
from tidings.gateway.access import Access, Client, hashed, new_token
from tidings.gateway.rpc import serve_grpc
from tidings.kernel.errors import BusError, BusUnavailable
from tidings.kernel.message import Message
from tidings.kernel.transport import Settlement, Subscription
from tidings.transports.grpc import GRPC
from tidings.transports.grpc.consumers import GRPCConsumer
from tidings.transports.grpc.transport import GRPCTransport
from tidings.transports.grpc.wire import TRANSPORT, VERSION, pb
from tidings.transports.memory import Memory

DEADLINE = 30.0
_names = count()


@asynccontextmanager
async def serving(bus: Any = None, access: Access | None = None) -> AsyncIterator[tuple[str, Gateway]]:
    app = App("gate", bus or f"memory://streams-{next(_names)}")
    async with asyncio.timeout(DEADLINE), Gateway(app) as gateway:
        server = await serve_grpc(gateway, access or Access(), "127.0.0.1:0")
        try:
            yield server.address, gateway
        finally:
            await server.stop(1.0)


@asynccontextmanager
async def joined(address: str, **options: Any) -> AsyncIterator[GRPCTransport]:
    host, _, port = address.partition(":")
    bus = GRPC(host=host, port=int(port), **options).transport()
    await bus.open(lambda event: None)
    try:
        yield bus
    finally:
        await bus.close()


def group(name: str, pattern: str = "a") -> Subscription:
    return Subscription(app="x", pattern=pattern, group=f"x.{name}")


# -- a stream that is new


class Slow(GRPCConsumer):
    """It takes a while to subscribe again; until then the stream is there, but not for whoever waits for it."""

    def __init__(self, transport: GRPCTransport, subscription: Subscription) -> None:
        super().__init__(transport, subscription)
        self.began, self.gate = asyncio.Event(), asyncio.Event()
        transport.consumers[self] = None

    async def subscribe(self) -> None:
        self.began.set()
        await self.gate.wait()
        await super().subscribe()


async def test_what_came_on_a_stream_is_settled_on_it() -> None:
    """Now, though others have not subscribed again yet; it does not wait for a stream, which might be another."""
    async with serving() as (address, _), joined(address) as other, joined(address) as bus:
        consumer = await bus.subscribe(group("a"))
        slow = Slow(bus, group("b", "b"))
        bus.link.stream.cancel()
        await slow.began.wait()
        assert not await other.publish([Message("a", b"1", "m1"), Message("a", b"2", "m2")])
        first, second = await take(consumer, 2)
        await consumer.extend([first])
        assert await consumer.mark(second)
        await settle(consumer, [first, second])
        assert not bus.link.up.is_set()
        slow.gate.set()


async def test_what_is_left_of_a_settlement_is_not_settled_on_the_next_stream() -> None:
    """Where another message has its number."""
    async with serving() as (address, _), joined(address) as other, joined(address) as bus:
        consumer = await bus.subscribe(group("a"))
        slow = Slow(bus, group("b", "b"))
        assert not await bus.publish([Message("a", b"1", "m1"), Message("a", b"2", "m2")])
        before = await take(consumer, 2)
        bus.room = 1500  # so that it goes in two pieces
        outputs = [(Message("b", b"x" * 1000, f"b{n}"),) for n in range(2)]
        settling = asyncio.ensure_future(
            consumer.settle([Settlement(d, outgoing=out) for d, out in zip(before, outputs, strict=True)])
        )
        await asyncio.sleep(0)
        assert len(bus.link.asked) == 1, "the first piece is on its way"
        bus.link.stream.cancel()
        await slow.began.wait()
        assert not await other.publish([Message("a", b"3", "m3"), Message("a", b"4", "m4")])
        after = await take(consumer, 2)
        assert [d.token for d in after] == [d.token for d in before]
        slow.gate.set()
        assert [(failure.index, failure.kind) for failure in await settling] == [(0, "fenced"), (1, "fenced")]
        await settle(consumer, after)


async def test_who_stops_meanwhile_leaves_no_consumer_behind() -> None:
    async with serving() as (address, gateway), joined(address) as bus:
        consumer = await bus.subscribe(group("a"))
        slow = Slow(bus, group("b", "b"))
        bus.link.stream.cancel()
        await slow.began.wait()
        slow.gate.set()
        await asyncio.sleep(0)
        assert len(bus.link.asked) == 1, "it is on its way"
        await slow.close()
        await until(bus.link.up.is_set)
        await consumer.close()
        await until(lambda: gateway.streams == 1, "the member's stream alone")


# -- coming back


async def test_a_token_that_is_no_longer_known(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever waits is told, and the log; the app comes back when the token does."""
    token = new_token()
    known = Client(name="shop", token=hashed(token), rights=Rights(member=True))
    access = Access([known], None)
    async with serving(None, access) as (address, _), joined(address, token=token, publish_wait=0.5) as bus:
        access.admit([], None)
        await until(lambda: bus.link.away is not None)
        with pytest.raises(BusUnavailable, match="was waited for") as refusal:
            await bus.publish([Message("a", b"1", "m1")])
        assert "this token is not known" in refusal.value.why
        assert refusal.value.mend.startswith("?token=")
        warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert len([text for text in warned if "this token is not known" in text]) == 1
        assert token not in caplog.text + str(refusal.value)
        access.admit([known], None)
        await until(bus.link.up.is_set)
        assert not await bus.publish([Message("a", b"1", "m1")])


class Odd:
    """A server whose every second stream begins with what no server says."""

    def __init__(self, first: bytes) -> None:
        self.first, self.joins = first, 0

    async def join(self, requests: Any, context: Any) -> None:
        self.joins += 1
        welcome = pb.Welcome(capabilities=pb.Capabilities(durable="none", ordering="none"), version=VERSION)
        good = pb.Answers(answers=[pb.Answer(welcome=welcome)]).SerializeToString()
        await context.write(good if self.joins % 2 else self.first)
        await context.read()


@pytest.mark.parametrize("first", [b"", b"\x0a\xff"])
async def test_a_first_frame_that_says_nothing(first: bytes) -> None:
    """It is tried again."""
    odd, server = Odd(first), aio.server()
    handler = stream_stream_rpc_method_handler(odd.join)
    server.add_generic_rpc_handlers((method_handlers_generic_handler(TRANSPORT, {"Join": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with asyncio.timeout(DEADLINE), joined(f"127.0.0.1:{port}") as bus:
        bus.link.stream.cancel()
        await until(lambda: odd.joins == 3 and bus.link.up.is_set())
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(BusUnavailable, match="says nothing that is known"):
            await GRPC(host="127.0.0.1", port=port).transport().open(lambda event: None)
    await server.stop(0.0)


# -- many, and those who leave


async def test_consumers_that_wait_keep_nobody_waiting() -> None:
    """More than a member may ask at once."""
    async with serving() as (address, _), joined(address) as bus:
        consumers = await asyncio.gather(*(bus.subscribe(group(f"g{n}")) for n in range(1001)))
        receiving = [asyncio.ensure_future(consumer.receive(1)) for consumer in consumers]
        await until(lambda: len(bus.link.asked) == 1001 and not bus.link.waiting, "they are on their way")
        assert not await bus.publish([Message("a", b"1", "m1")])
        (delivery,) = await receiving[-1]
        await settle(consumers[-1], [delivery])
        await asyncio.gather(*receiving)


async def test_a_consumer_is_asked_once_at_a_time() -> None:
    async with serving() as (address, _), joined(address) as bus:
        consumer = await bus.subscribe(group("a"))
        receiving = asyncio.ensure_future(consumer.receive(1))
        await asyncio.sleep(0)
        with pytest.raises(BusError, match="once at a time"):
            await bus.link.put(bus.link.epoch, consumer=consumer.number, receive=1)
        assert not await bus.publish([Message("a", b"1", "m1")])
        assert len(await receiving) == 1


class Behind:
    """Options of a bus whose consumers' ends are counted, and may fail, and which may take a while to open."""

    def __init__(self) -> None:
        self.inner, self.told = Memory(name=f"behind-{next(_names)}"), Counter[str]()
        self.gate = asyncio.Event()
        self.gate.set()

    @classmethod
    def from_url(cls, url: str) -> Behind:
        raise NotImplementedError

    def transport(self) -> Any:
        return BehindTransport(self.inner.transport(), self)


class BehindTransport:
    def __init__(self, inner: Any, options: Behind) -> None:
        self.inner, self.behind = inner, options

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def open(self, notify: Callable[[Any], None]) -> None:
        await self.inner.open(notify)
        self.behind.told["opened"] += 1
        await self.behind.gate.wait()

    async def subscribe(self, subscription: Subscription) -> Any:
        return BehindConsumer(await self.inner.subscribe(subscription), self.behind, subscription.group == "x.odd")

    async def close(self) -> None:
        self.behind.told["closed"] += 1
        await self.inner.close()


class BehindConsumer:
    def __init__(self, inner: Any, options: Behind, odd: bool) -> None:
        self.inner, self.behind, self.odd = inner, options, odd

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def close(self) -> None:
        await self.inner.close()
        self.behind.told["left"] += 1
        if self.odd:
            raise RuntimeError("it is odd")


async def test_a_part_that_fails_keeps_nothing_open(caplog: pytest.LogCaptureFixture) -> None:
    behind = Behind()
    async with serving(behind) as (address, gateway):
        async with joined(address) as bus:
            await bus.subscribe(group("odd"))
            await bus.subscribe(group("even"))
        await until(lambda: behind.told["closed"] == 1, "its end of the bus is closed")
        assert behind.told["left"] == 2
        await until(lambda: gateway.streams == 0)
    assert "it is odd" in caplog.text


async def test_who_goes_while_the_bus_is_opened_leaves_it_closed() -> None:
    behind = Behind()
    async with serving(behind) as (address, gateway), aio.insecure_channel(address) as channel:
        behind.gate.clear()
        call = channel.stream_stream(f"/{TRANSPORT}/Join")()
        await until(lambda: behind.told["opened"] == 2, "the gateway's end, and the member's")
        call.cancel()
        await until(lambda: gateway.streams == 0, "it is known to be gone")
        behind.gate.set()
        await until(lambda: behind.told["closed"] == 1)
