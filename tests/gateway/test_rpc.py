"""The service ``tidings.v1.Bus``: as its clients see it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tests.servers import Missing, node, unavailable
from tests.state.stores import url_of
from tests.transports.consuming import until

from tidings import App, Backoff, Service
from tidings.gateway import Gateway, Limits, Rights
from tidings.gateway.access import Access, Client, hashed, new_token
from tidings.gateway.rpc import RPCServer, serve_grpc, vacant
from tidings.kernel.errors import BusUnavailable, InvalidOption, NoAnswerer
from tidings.transports.grpc.wire import BUS, DETAILS, TRANSPORT, pb

KINDS = ["memory", "sqlite"]
DEADLINE = 30.0
OPEN = Access()
HERE = Path(__file__).parent
PROTO = Path(sys.modules["tidings"].__file__ or "").parent / "transports" / "grpc" / "tidings_v1.proto"

METHODS = {
    "Publish": ("unary_unary", "Publish"),
    "PublishStream": ("stream_stream", "Publish"),
    "Subscribe": ("stream_stream", "Subscribe"),
    "Request": ("unary_unary", "Request"),
    "RequestStream": ("unary_stream", "Request"),
}


class Stub:
    """A client, as generated code would be; ``token``: it says who it is."""

    def __init__(self, channel: aio.Channel, token: str = "") -> None:
        self.channel = channel
        self.metadata = (("authorization", f"Bearer {token}"),) if token else None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kind, types = METHODS[name]
        request, response = getattr(pb, f"{types}Request"), getattr(pb, f"{types}Response")
        method = getattr(self.channel, kind)(f"/{BUS}/{name}", request.SerializeToString, response.FromString)
        return lambda *given: method(*given, metadata=self.metadata)


@asynccontextmanager
async def serving(
    kind: str, folder: Path, access: Access = OPEN, address: str = "127.0.0.1:0", **limits: Any
) -> AsyncIterator[tuple[RPCServer, Gateway]]:
    app = App("gate", url_of(kind, folder), backoff=Backoff(attempts=3, first=0.01, jitter=0))
    async with asyncio.timeout(DEADLINE), Gateway(app, Limits(**limits)) as gateway:
        server = await serve_grpc(gateway, access, address)
        try:
            yield server, gateway
        finally:
            await server.stop(1.0)


@asynccontextmanager
async def client(server: RPCServer, token: str = "") -> AsyncIterator[Stub]:
    async with aio.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield Stub(channel, token)


def messages(topic: str, numbers: Sequence[int], **more: Any) -> Any:
    return pb.PublishRequest(messages=[pb.Message(topic=topic, body=b"%d" % n, **more) for n in numbers])


async def opened(stub: Stub, **what: Any) -> Any:
    """A subscription that is in place."""
    call = stub.Subscribe()
    await call.write(pb.SubscribeRequest(open=pb.Open(**what)))
    first = await call.read()
    assert first.HasField("opened")
    return call


async def take(call: Any, count: int) -> list[Any]:
    found = list[Any]()
    while len(found) < count:
        found += (await call.read()).messages
    return found


def bodies(found: Sequence[Any]) -> list[int]:
    return [int(each.message.body) for each in found]


def why(error: aio.AioRpcError) -> Any:
    """The details of a status."""
    told = pb.Error.FromString(dict(error.trailing_metadata() or ())[DETAILS])
    assert error.details() == told.what
    return told


async def ended(call: Any) -> aio.AioRpcError:
    """How a stream that is refused ends."""
    try:
        while await call.read() is not aio.EOF:
            pass
    except aio.AioRpcError as error:
        return error
    raise AssertionError("it was not refused")


# -- publishing


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_published_is_followed(kind: str, tmp_path: Path) -> None:
    async with serving(kind, tmp_path) as (server, _), client(server) as stub:
        call = await opened(stub, pattern="orders.>")
        response = await stub.Publish(messages("orders.placed", [1, 2], key="k", headers={"a": "1"}, id=""))
        found = await take(call, 2)
        assert bodies(found) == [1, 2]
        assert [each.message.id for each in found] == list(response.ids)
        first = found[0].message
        assert (first.key, first.type, first.source, first.headers["a"]) == ("k", "orders.placed", "gate", "1")
        assert first.content_type == "application/json"
        assert first.time > 1e9


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cursor_goes_on_where_it_was(kind: str, tmp_path: Path) -> None:
    async with serving(kind, tmp_path) as (server, _), client(server) as stub:
        call = await opened(stub, pattern="a")
        await stub.Publish(messages("a", range(5)))
        found = await take(call, 5)
        call.cancel()
        again = await opened(stub, pattern="a", after=found[2].cursor)
        assert bodies(await take(again, 2)) == [3, 4]


async def test_each_request_of_a_stream_is_answered(tmp_path: Path) -> None:
    async with serving("sqlite", tmp_path, body=100) as (server, _), client(server) as stub:
        call = stub.PublishStream()
        for request in (messages("a", [1, 2]), messages("_dead.x", [3]), messages("a", [10**200]), messages("a", [4])):
            await call.write(request)
        await call.done_writing()
        first, reserved, large, last = [response async for response in call]
        assert (len(first.ids), first.HasField("error"), len(last.ids)) == (2, False, 1)
        assert (reserved.error.code, large.error.code) == ("TDG-E001", "TDG-E009")
        follower = await opened(stub, pattern="a", after="0")
        assert bodies(await take(follower, 3)) == [1, 2, 4]


async def test_what_is_delayed_comes_later(tmp_path: Path) -> None:
    async with serving("sqlite", tmp_path) as (server, _), client(server) as stub:
        call = await opened(stub, pattern="a")
        await stub.Publish(messages("a", [1], delay=0.2))
        await stub.Publish(messages("a", [2]))
        assert bodies(await take(call, 2)) == [2, 1]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"topic": "a..b"}, "TDG-E001"),
        ({"topic": "_group.x"}, "TDG-E001"),
        ({"topic": "a", "priority": 12}, "TDG-E002"),
        ({"topic": "a", "delay": float("nan")}, "TDG-E002"),
        ({"topic": "a", "expires": -1.0}, "TDG-E002"),
        ({"topic": "a", "deliver_at": float("inf")}, "TDG-E065"),
        ({"topic": "a", "address": "_group.x"}, "TDG-E065"),
        ({"topic": "a", "body": b"x" * 200}, "TDG-E009"),
    ],
)
async def test_what_cannot_be_is_refused(message: dict[str, Any], code: str, tmp_path: Path) -> None:
    async with serving("memory", tmp_path, body=100) as (server, _), client(server) as stub:
        with pytest.raises(aio.AioRpcError) as found:
            await stub.Publish(pb.PublishRequest(messages=[pb.Message(**message)]))
        assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert why(found.value).code == code


# -- groups


@pytest.mark.parametrize("kind", KINDS)
async def test_a_group_gets_each_until_it_is_acknowledged(kind: str, tmp_path: Path) -> None:
    async with serving(kind, tmp_path) as (server, gateway), client(server) as stub:
        await stub.Publish(messages("a", range(4)))
        call = await opened(stub, pattern="a", group="web.bill", start=0.0)
        held = await take(call, 4)
        assert [each.attempt for each in held] == [1] * 4
        await call.write(pb.SubscribeRequest(acknowledged=[held[0].number, held[1].number]))
        await call.write(pb.SubscribeRequest(acknowledged=[held[0].number]))
        assert list((await call.read()).late) == [held[0].number]
        call.cancel()
        await until(lambda: gateway.streams == 0)
        again = await opened(stub, pattern="a", group="web.bill")
        assert sorted(bodies(await take(again, 2))) == [2, 3]


async def test_who_says_goodbye_has_acknowledged_what_it_said(tmp_path: Path) -> None:
    async with serving("sqlite", tmp_path) as (server, gateway), client(server) as stub:
        call = await opened(stub, pattern="a", group="web.bill")
        await stub.Publish(messages("a", range(100)))
        held = await take(call, 100)
        await call.write(pb.SubscribeRequest(acknowledged=[each.number for each in held]))
        await call.done_writing()
        assert await call.read() is aio.EOF
        bus: Any = gateway.bus.transport
        (group,) = await bus.groups("web.*")
        assert (group.lag, group.in_flight, group.parked) == (0, 0, 0)


@pytest.mark.parametrize(
    ("failed", "attempts"), [({"fate": "RETRY", "delay": 0.01}, [1, 2]), ({"fate": "DEFER"}, [1, 1]), ({}, [1, 2])]
)
async def test_what_failed_comes_again(failed: dict[str, Any], attempts: list[int], tmp_path: Path) -> None:
    async with serving("memory", tmp_path) as (server, _), client(server) as stub:
        call = await opened(stub, pattern="a", group="web.bill")
        await stub.Publish(messages("a", [1]))
        (first,) = await take(call, 1)
        await call.write(pb.SubscribeRequest(failed=[pb.Failed(number=first.number, **failed)]))
        (again,) = await take(call, 1)
        assert [first.attempt, again.attempt] == attempts


async def test_what_is_rejected_is_a_dead_letter(tmp_path: Path) -> None:
    access = Access(anonymous=Rights(publish=(">",), subscribe=(">", "_dead.>"), group=(">",)))
    async with serving("memory", tmp_path, access) as (server, _), client(server) as stub:
        letters = await opened(stub, pattern="_dead.web.bill")
        call = await opened(stub, pattern="a", group="web.bill")
        await stub.Publish(messages("a", [1, 2]))
        first, second = await take(call, 2)
        failed = [pb.Failed(number=first.number, fate="REJECT", why="no"), pb.Failed(number=second.number, fate="SKIP")]
        await call.write(pb.SubscribeRequest(failed=failed))
        (letter,) = await take(letters, 1)
        assert (letter.message.topic, letter.message.body) == ("a", b"1")
        assert (letter.message.headers["tdgreason"], letter.message.headers["tdgdetail"]) == ("rejected", "no")


async def test_credit_bounds_what_is_in_hand(tmp_path: Path) -> None:
    async with serving("memory", tmp_path) as (server, gateway), client(server) as stub:
        call = await opened(stub, pattern="a", group="web.bill", credit=0)
        await stub.Publish(messages("a", range(10)))
        await call.write(pb.SubscribeRequest(credit=2))
        held = await take(call, 2)
        reading = asyncio.ensure_future(call.read())
        bus: Any = gateway.bus.transport
        (group,) = await bus.groups()
        assert group.in_flight <= 2 + 8  # what a worker takes beforehand is small where the credit is
        assert not reading.done()
        await call.write(pb.SubscribeRequest(acknowledged=[held[0].number], credit=10))
        assert len((await reading).messages) >= 1


# -- asking


async def test_requests(tmp_path: Path) -> None:
    prices = Service("prices.quote", int, int)
    url = url_of("memory", tmp_path)
    answerer = App("shop", url)

    @answerer.answer(prices)
    async def quote(n: int) -> Any:
        if n < 0:
            raise ValueError("no such thing")
        return 2 * n

    @answerer.answer(Service("prices.all", int, int))
    async def quotes(n: int) -> AsyncIterator[int]:
        for each in range(n):
            yield each

    async with answerer, Gateway(App("gate", url)) as gateway, asyncio.timeout(DEADLINE):
        server = await serve_grpc(gateway, OPEN, "127.0.0.1:0")
        async with client(server) as stub:
            reply = await stub.Request(pb.RequestRequest(service="prices.quote", body=b"21"))
            assert (reply.body, reply.content_type) == (b"42", "application/json")
            streamed = stub.RequestStream(pb.RequestRequest(service="prices.all", body=b"3"))
            assert [reply.body async for reply in streamed] == [b"0", b"1", b"2"]
            for body, service, code in (
                (b"-1", "prices.quote", grpc.StatusCode.UNKNOWN),
                (b"1", "prices.none", grpc.StatusCode.NOT_FOUND),
            ):
                with pytest.raises(aio.AioRpcError) as found:
                    await stub.Request(pb.RequestRequest(service=service, body=body))
                assert found.value.code() is code
            assert why(found.value).code == NoAnswerer.code
        await server.stop(1.0)


# -- rights and limits


def known(**rights: tuple[str, ...]) -> tuple[Access, str]:
    token = new_token()
    return Access([Client(name="till", token=hashed(token), rights=Rights(**rights))], None), token


ASKS: dict[str, Callable[[Stub], Any]] = {
    "publish": lambda stub: stub.Publish(messages("secret.plans", [1])),
    "subscribe": lambda stub: opened(stub, pattern="secret.>"),
    "group": lambda stub: opened(stub, pattern="orders.>", group="shop.bill"),
    "request": lambda stub: stub.Request(pb.RequestRequest(service="secret.plans")),
}


@pytest.mark.parametrize("action", ASKS)
async def test_each_right_is_needed(action: str, tmp_path: Path) -> None:
    allowed = ("orders.>",)
    access, token = known(publish=allowed, subscribe=allowed, group=("till.*",), request=allowed)
    async with serving("memory", tmp_path, access) as (server, _), client(server, token) as stub:
        with pytest.raises(aio.AioRpcError, match="PERMISSION_DENIED") as found:
            await ASKS[action](stub)
        assert token not in str(found.value)
        await opened(stub, pattern="orders.placed", group="till.one")
        assert (await stub.Publish(messages("orders.placed", [1]))).ids


@pytest.mark.parametrize("token", ["", "tdg_wrong"])
async def test_who_does_not_say_who_it_is_is_refused(token: str, tmp_path: Path) -> None:
    access, _ = known(publish=(">",))
    async with serving("memory", tmp_path, access) as (server, _), client(server, token) as stub:
        with pytest.raises(aio.AioRpcError, match="UNAUTHENTICATED") as found:
            await stub.Publish(messages("a", [1]))
        assert "tdg_" not in str(found.value)
        for call in (stub.Subscribe(), stub.PublishStream(), stub.RequestStream(pb.RequestRequest(service="a"))):
            assert (await ended(call)).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_only_members_join(tmp_path: Path) -> None:
    access, token = known(publish=(">",))
    async with serving("memory", tmp_path, access) as (server, _), client(server, token) as stub:
        call = stub.channel.stream_stream(f"/{TRANSPORT}/Join")(metadata=stub.metadata)
        assert (await ended(call)).code() is grpc.StatusCode.PERMISSION_DENIED


async def test_streams_are_limited(tmp_path: Path) -> None:
    async with serving("memory", tmp_path, connections=2) as (server, gateway), client(server) as stub:
        first, _ = await opened(stub, pattern="a"), await opened(stub, pattern="b")
        call = stub.Subscribe()
        error = await ended(call)
        assert (error.code(), why(error).code) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TDG-E063")
        first.cancel()
        await until(lambda: gateway.streams == 1)
        await opened(stub, pattern="a")


async def test_the_rate_is_limited(tmp_path: Path) -> None:
    async with serving("memory", tmp_path, rate=1.0) as (server, _), client(server) as stub:
        await stub.Publish(messages("a", [1, 2]))
        with pytest.raises(aio.AioRpcError) as found:
            await stub.Publish(messages("a", [3, 4]))
        assert found.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 0 < why(found.value).after <= 2


@pytest.mark.parametrize("name", ["ce-id", "tdgreason", "Nats-Rollup"])
async def test_headers_in_one_are_judged_as_all_others(name: str, tmp_path: Path) -> None:
    """``tdgheaders`` is how a name may come twice, and no way past the door."""
    async with serving("memory", tmp_path) as (server, _), client(server) as stub:
        with pytest.raises(aio.AioRpcError) as found:
            await stub.Publish(messages("a", [1], headers={"tdgheaders": f'[["a", "1"], ["{name}", "x"]]'}))
        assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await stub.Publish(messages("a", [1], headers={"tdgheaders": '[["a", "1"], ["a", "2"]]'}))


async def test_who_does_not_read_is_let_go(tmp_path: Path) -> None:
    """And hurts nobody else."""
    async with serving("memory", tmp_path, patience=0.3, window=5000) as (server, gateway), client(server) as stub:
        slow, other = await opened(stub, pattern="a"), await opened(stub, pattern="a")
        for n in range(20):
            await stub.Publish(messages("a", [n], headers={"x": "y" * 500_000}))
            assert bodies(await take(other, 1)) == [n]
        await until(lambda: gateway.streams == 1, "the slow one is let go")
        error = await ended(slow)
        assert (error.code(), why(error).code) == (grpc.StatusCode.ABORTED, "TDG-E064")


FOLLOWS = """
import asyncio, sys
from grpc import aio
from tidings.transports.grpc.wire import BUS, pb
async def main():
    async with aio.insecure_channel(sys.argv[1]) as channel:
        method = channel.stream_stream(f"/{BUS}/Subscribe", pb.SubscribeRequest.SerializeToString)
        call = method()
        await call.write(pb.SubscribeRequest(open=pb.Open(pattern="a", group="web.bill")))
        for _ in range(2):
            await call.read()
            print("read", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_half_open_client_is_dropped(tmp_path: Path) -> None:
    """It answers no sign of life: what it had goes to who is there."""
    async with serving("sqlite", tmp_path, heartbeat=0.2, patience=0.3) as (server, gateway), client(server) as stub:
        pipe = asyncio.subprocess.PIPE
        gone = await asyncio.create_subprocess_exec(sys.executable, "-c", FOLLOWS, server.address, stdout=pipe)
        try:
            assert gone.stdout is not None
            assert await gone.stdout.readline()
            await stub.Publish(messages("a", [1]))
            assert await gone.stdout.readline()
            gone.send_signal(signal.SIGSTOP)
            call = await opened(stub, pattern="a", group="web.bill")
            assert bodies(await take(call, 1)) == [1]
            await until(lambda: gateway.streams == 1)
        finally:
            gone.kill()
            await gone.wait()


@pytest.mark.parametrize(
    "requests",
    [
        [pb.SubscribeRequest(credit=1)],
        [pb.SubscribeRequest(open=pb.Open(pattern="a..b"))],
        [pb.SubscribeRequest(open=pb.Open(pattern="{x}.b"))],
        [pb.SubscribeRequest(open=pb.Open(pattern="a", credit=5))],
        [pb.SubscribeRequest(open=pb.Open(pattern="a", group="g", after="1"))],
        [pb.SubscribeRequest(open=pb.Open(pattern="a", group="g", start=float("nan")))],
        [pb.SubscribeRequest(open=pb.Open(pattern="a", group="_g"))],
        [pb.SubscribeRequest(open=pb.Open(pattern="a")), pb.SubscribeRequest(acknowledged=[1])],
        [pb.SubscribeRequest(open=pb.Open(pattern="a", group="g"))] * 2,
        [
            pb.SubscribeRequest(open=pb.Open(pattern="a", group="g")),
            pb.SubscribeRequest(failed=[pb.Failed(number=1, fate="RETRY", delay=-1.0)]),
        ],
    ],
)
async def test_subscriptions_that_mean_nothing(requests: list[Any], tmp_path: Path) -> None:
    async with serving("memory", tmp_path) as (server, _), client(server) as stub:
        call = stub.Subscribe()
        for request in requests:
            await call.write(request)
        error = await ended(call)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert why(error).mend


async def test_bytes_that_are_no_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A clean refusal: neither a crash, nor a traceback, at either end."""
    async with serving("memory", tmp_path) as (server, _), client(server) as stub:
        for size in range(50):
            junk = b"\x0a\xff" + bytes((size * 37 + n * 101) % 256 for n in range(size))
            for name in (f"{BUS}/Publish", f"{BUS}/Subscribe", f"{BUS}/RequestStream", f"{TRANSPORT}/Join"):
                error = await ended(stub.channel.unary_stream(f"/{name}")(junk))
                assert (error.code(), why(error).code) == (grpc.StatusCode.INVALID_ARGUMENT, "TDG-E065")
        assert (await ended(stub.channel.unary_stream(f"/{BUS}/None")(b""))).code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await stub.Publish(messages("a", [1]))).ids
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


# -- the server


async def test_streams_end_when_the_server_stops(tmp_path: Path) -> None:
    async with serving("memory", tmp_path) as (server, gateway), client(server) as stub:
        calls = [
            await opened(stub, pattern="a"),
            await opened(stub, pattern="a", group="web.bill"),
            stub.PublishStream(),
        ]
        await calls[-1].write(messages("a", [1]))
        await calls[-1].read()
        await server.stop(5.0)
        for call in calls:
            error = await ended(call)
            assert (error.code(), why(error).mend) == (grpc.StatusCode.UNAVAILABLE, "come again")
        assert gateway.streams == 0


async def test_health_and_reflection(tmp_path: Path) -> None:
    async with serving("memory", tmp_path) as (server, _), client(server) as stub:
        check = stub.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        assert (await check(health_pb2.HealthCheckRequest(service=BUS))).status == 1
        reflect = stub.channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )()
        await reflect.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = await reflect.read()
        assert {each.name for each in listed.list_services_response.service} >= {BUS, TRANSPORT}
        await reflect.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=BUS))
        assert (await reflect.read()).file_descriptor_response.file_descriptor_proto
        reflect.cancel()


async def test_who_is_not_known_does_not_stay(tmp_path: Path) -> None:
    """Whatever stays open is a stream of somebody known: the rest of gRPC is not taken from those who are."""
    access, token = known(publish=(">",))
    async with (
        serving("memory", tmp_path, access, connections=5) as (server, gateway),
        client(server) as stub,
        client(server, token) as other,
    ):
        health, reflection = "/grpc.health.v1.Health", "/grpc.reflection.v1alpha.ServerReflection"
        watches = [stub.channel.unary_stream(f"{health}/Watch")(b"") for _ in range(10)]
        reflects = [stub.channel.stream_stream(f"{reflection}/ServerReflectionInfo")() for _ in range(10)]
        for call in (*watches, *reflects):
            assert (await ended(call)).code() is grpc.StatusCode.UNAUTHENTICATED
        assert await stub.channel.unary_unary(f"{health}/Check")(b"") == b"\x08\x01"
        with pytest.raises(aio.AioRpcError, match="NOT_FOUND"):
            await stub.channel.unary_unary(f"{health}/Check")(b"\x0a\x01x")
        watch = other.channel.unary_stream(f"{health}/Watch")(b"", metadata=other.metadata)
        assert await watch.read() == b"\x08\x01"
        assert gateway.streams == 1
        assert (await other.Publish(messages("a", [1]))).ids
        watch.cancel()


async def test_nothing_is_read_of_who_may_not_come(tmp_path: Path) -> None:
    """And who may has so long to say what it wants."""
    access, token = known(publish=(">",))
    async with serving("memory", tmp_path, access, patience=0.3) as (server, _), client(server, token) as stub:
        method = stub.channel.stream_stream(f"/{BUS}/Publish")  # as a unary call, whose request does not come
        assert (await ended(method())).code() is grpc.StatusCode.UNAUTHENTICATED
        error = await ended(method(metadata=stub.metadata))
        assert (error.code(), why(error).code) == (grpc.StatusCode.ABORTED, "TDG-E064")
        call = method(metadata=stub.metadata)
        await call.done_writing()
        error = await ended(call)
        assert (error.code(), why(error).code) == (grpc.StatusCode.INVALID_ARGUMENT, "TDG-E065")


async def test_a_connection_has_so_many_calls(tmp_path: Path) -> None:
    """The server says so first (RFC 9113, 6.5.2): SETTINGS_MAX_CONCURRENT_STREAMS."""
    async with serving("memory", tmp_path) as (server, _):
        host, _, port = server.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        head = await reader.readexactly(9)
        told = await reader.readexactly(int.from_bytes(head[:3], "big"))
        settings = dict(struct.iter_unpack(">HI", told))
        assert (head[3], settings[3]) == (4, 1000)
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="tdg") as folder:
        yield Path(folder)


async def test_a_unix_socket_is_for_its_owner(short: Path, tmp_path: Path) -> None:
    path = f"{short}/bus.sock"
    async with serving("memory", tmp_path, address=f"unix:{path}") as (server, gateway), client(server) as stub:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert (await stub.Publish(messages("a", [1]))).ids
        with pytest.raises(BusUnavailable, match="somebody listens"):
            await serve_grpc(gateway, OPEN, f"unix:{path}")


def test_a_file_is_no_socket(short: Path) -> None:
    (short / "file").write_text("mine")
    with pytest.raises(BusUnavailable, match="no socket"):
        vacant(short / "file")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(short / "dead"))
    vacant(short / "dead")


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    async with serving("memory", tmp_path) as (server, gateway):
        with pytest.raises(BusUnavailable, match="cannot listen"):
            await serve_grpc(gateway, OPEN, server.address)
        for address in ("somewhere", "localhost:http", "localhost:99999"):
            with pytest.raises(InvalidOption, match="no address"):
                await serve_grpc(gateway, OPEN, address)


# -- another language


@pytest.mark.slow
async def test_a_client_in_node(tmp_path: Path) -> None:
    """Without our code: it loads the published proto."""
    try:
        modules = node.modules()
    except Missing as missing:
        unavailable(str(missing))
    access, token = known(publish=("orders.>",), subscribe=("orders.>",), group=("node.*",))
    async with serving("sqlite", tmp_path, access) as (server, gateway):
        run = await asyncio.create_subprocess_exec(
            *("node", str(HERE / "client.js"), server.address, str(PROTO), token),
            env=os.environ | {"NODE_PATH": str(modules / "node_modules")},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, error = await run.communicate()
        assert run.returncode == 0, error.decode()
        told = [json.loads(line) for line in out.splitlines()]
        assert {"published": 3} in told
        assert [line["refused"] for line in told if "refused" in line] == ["PERMISSION_DENIED"]
        came = [(line["n"], line["attempt"]) for line in told if "n" in line]
        assert sorted(came) == [(1, 1), (2, 1), (2, 2), (3, 1)]
        bus: Any = gateway.bus.transport
        (group,) = await bus.groups("node.*")
        assert (group.lag, group.in_flight, group.parked) == (0, 0, 0)
