"""Options, and joining a served bus: over TCP, TLS and a Unix socket, with and without the right to."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from scripts.grpc_descriptor import descriptor
from tests.servers.base import certificates
from tests.transports.consuming import settle, take, until

from tidings import App, Topic, connect
from tidings.gateway import Gateway, Limits, Rights
from tidings.gateway.access import Access, Client, hashed, new_token
from tidings.gateway.rpc import serve_grpc, tls
from tidings.kernel.errors import BusError, BusUnavailable, InvalidOption, InvalidURL, NotFound, NotOpen
from tidings.kernel.message import Message
from tidings.kernel.transport import Inspectable, Manageable, Settlement, Subscription
from tidings.schedule import Ticking
from tidings.transports.grpc import GRPC
from tidings.transports.grpc.transport import GRPCTransport
from tidings.urls import options_for

MEMBER = Rights(member=True)
_names = count()


@asynccontextmanager
async def served(
    access: Access, address: str = "127.0.0.1:0", credentials: Any = None, url: str = "", **limits: Any
) -> AsyncIterator[str]:
    app = App("gate", url or f"memory://joining-{next(_names)}")
    async with asyncio.timeout(30), Gateway(app, Limits(**limits)) as gateway:
        server = await serve_grpc(gateway, access, address, credentials)
        yield server.address
        await server.stop(1.0)


@asynccontextmanager
async def joined(url: str) -> AsyncIterator[GRPCTransport]:
    options: Any = options_for(url)
    bus: GRPCTransport = options.transport()
    await bus.open(lambda event: None)
    yield bus
    await bus.close()


async def works(bus: GRPCTransport) -> None:
    consumer = await bus.subscribe(Subscription(app="x", pattern="a", group="x.a"))
    assert not await bus.publish([Message("a", b"1", "m1")])
    await settle(consumer, await take(consumer, 1))
    await consumer.close()


def test_the_descriptor_is_fresh() -> None:
    from tidings.transports.grpc import wire

    kept = (Path(wire.__file__).parent / "tidings_v1.descriptor").read_bytes()
    assert kept == descriptor(), "run: python -m scripts.grpc_descriptor > …/tidings_v1.descriptor"


def test_urls() -> None:
    one = GRPC.from_url("grpc://bus.example:4000?token=tdg_secret&publish_wait=5s")
    assert (one.target, one.tls, one.token, one.publish_wait) == ("bus.example:4000", False, "tdg_secret", "5s")
    assert "tdg_secret" not in repr(one)
    assert GRPC.from_url("grpc://").target == "localhost:50051"
    assert GRPC.from_url("grpc://[::1]:4000").target == "[::1]:4000"
    assert GRPC.from_url("grpc+tls://bus.example").tls
    assert GRPC.from_url("grpc+unix:///run/tidings.sock?token=t").target == "unix:/run/tidings.sock"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("grpc://host?tokne=3", "token"),
        ("grpc://host/path", "grpc+unix"),
        ("grpc://one,two", "several"),
        ("grpc://me:secret@host", "token"),
        ("grpc+unix://host/path", "socket"),
        ("grpc+unix://", "socket"),
        ("grpc://host?publish_wait=soon", "publish_wait"),
        ("grpc://host?port=70", "port"),
    ],
)
def test_a_wrong_url_says_what_is_wrong(url: str, told: str) -> None:
    with pytest.raises(InvalidURL) as refusal:
        GRPC.from_url(url)
    assert told in str(refusal.value)
    assert "secret" not in str(refusal.value)


async def test_files_of_tls_without_tls() -> None:
    with pytest.raises(InvalidOption, match="TLS"):
        await GRPC(ca="ca.pem").transport().open(lambda event: None)
    with pytest.raises(BusUnavailable, match="cannot be set up"):
        await GRPC(tls=True, ca="/none/ca.pem").transport().open(lambda event: None)


async def test_nobody_there() -> None:
    bus = GRPC(host="127.0.0.1", port=1).transport()
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1 cannot be reached"):
        await bus.open(lambda event: None)
    with pytest.raises(NotOpen):
        await bus.publish([Message("a")])


async def test_a_token_says_who_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token, weak = new_token(), new_token()
    known = Client(name="shop", token=hashed(token), rights=MEMBER)
    other = Client(name="till", token=hashed(weak), rights=Rights(publish=(">",)))
    async with served(Access([known, other], None)) as address:
        async with joined(f"grpc://{address}?token={token}") as bus:
            await works(bus)
        for given, told in (("", "without saying"), ("?token=tdg_wrong", "not known"), (f"?token={weak}", "'member'")):
            with pytest.raises(BusUnavailable, match="refuses") as refusal:
                await GRPC.from_url(f"grpc://{address}{given}").transport().open(lambda event: None)
            assert told in str(refusal.value)
            assert not any(secret in str(refusal.value) for secret in ("tdg_", token, weak))
    assert not any(secret in text for text in caplog.messages for secret in (token, weak, "tdg_wrong"))


async def test_a_unix_socket() -> None:
    path = f"/tmp/tidings-test-{os.getpid()}-joining.sock"
    async with served(Access(), f"unix:{path}") as address, joined(f"grpc+{address.replace(':', '://')}") as bus:
        await works(bus)


async def test_mutual_tls(tmp_path: Path) -> None:
    """Who a client is says its certificate: by its common name."""
    certificates(folder := tmp_path / "pem")
    certificates(tmp_path / "others")
    credentials = tls(str(folder / "server.pem"), str(folder / "server.key"), str(folder / "ca.pem"))
    known = Access([Client(name="shop", certificate="client", rights=MEMBER)], None)
    async with served(known, "localhost:0", credentials) as address:
        files = f"ca={folder}/ca.pem&certificate={folder}/client.pem&key={folder}/client.key"
        async with joined(f"grpc+tls://{address}?{files}") as bus:
            await works(bus)
        for wrong in (files.replace("pem/ca.pem", "others/ca.pem"), f"ca={folder}/ca.pem"):
            with pytest.raises(BusUnavailable, match="cannot be reached"):
                await GRPC.from_url(f"grpc+tls://{address}?{wrong}").transport().open(lambda event: None)
        with pytest.raises(BusUnavailable, match="cannot be reached"):
            await GRPC.from_url(f"grpc://{address}").transport().open(lambda event: None)


async def test_a_member_can_what_the_bus_behind_can() -> None:
    async with served(Access()) as address, joined(f"grpc://{address}") as bus:
        assert isinstance(bus, Inspectable)
        assert isinstance(bus, Manageable)
        assert isinstance(bus, Ticking)
        assert (await bus.groups(), await bus.position()) == ([], 0)  # type: ignore[attr-defined]
        with pytest.raises(NotFound, match="no group"):
            await bus.drop("x.none")
    unopened = GRPC().transport()
    assert not isinstance(unopened, Inspectable)


async def test_members_share_a_memory_bus_without_a_name() -> None:
    """A lost one's messages go to the other, as suspects."""
    async with (
        served(Access(), url="memory://?lease=0.3s") as address,
        joined(f"grpc://{address}") as stays,
        joined(f"grpc://{address}") as bus,
    ):
        consumer = await bus.subscribe(Subscription(app="x", pattern="a", group="x.a"))
        assert not await stays.publish([Message("a", b"1", "m1")])
        (lost,) = await take(consumer, 1)
        other = await stays.subscribe(Subscription(app="x", pattern="a", group="x.a"))
        bus.link.stream.cancel()
        await until(lambda: not lost.session.alive)
        (again,) = await take(other, 1)
        assert (again.message.id, again.suspect) == ("m1", True)
        await settle(other, [again])


async def test_the_rate_of_members_is_limited() -> None:
    async with served(Access(), rate=1.0) as address, joined(f"grpc://{address}") as bus:
        assert not await bus.publish([Message("a", b"1", "m1"), Message("a", b"2", "m2")])
        with pytest.raises(BusError, match="more than 1 messages a second"):
            await bus.publish([Message("a", b"3", "m3"), Message("a", b"4", "m4")])


async def test_outputs_that_the_server_would_not_read() -> None:
    """Rejected, as any output that is too large: the input stays in hand."""
    async with served(Access()) as address, joined(f"grpc://{address}") as bus:
        consumer = await bus.subscribe(Subscription(app="x", pattern="a", group="x.a"))
        assert not await bus.publish([Message("a", b"1", "m1"), Message("a", b"2", "m2")])
        first, second = await take(consumer, 2)
        many = tuple(Message("b", b"x" * 2_000_000, f"b{n}") for n in range(20))
        failures = await consumer.settle([Settlement(first, outgoing=many), Settlement(second, outgoing=many[:1])])
        assert [(failure.index, failure.kind) for failure in failures] == [(0, "rejected")]
        await settle(consumer, [first])


async def test_an_app_and_a_client_in_a_thread() -> None:
    """Two loops in one process."""
    ints = Topic("numbers.sent", int)
    app, came = App("shop", "memory://"), Counter[int]()

    @app.on(ints)
    async def count(n: int) -> None:
        came[n] += 1

    def publish(url: str) -> None:
        with connect(url) as client:
            for n in range(100):
                client.publish(ints, n)

    async with served(Access()) as address:
        app.use(f"grpc://{address}")
        async with app:
            thread = asyncio.create_task(asyncio.to_thread(publish, f"grpc://{address}"))
            for n in range(100, 200):
                await app.publish(ints, n)
            await thread
            await until(lambda: len(came) == 200)
    assert set(came.values()) == {1}


async def test_more_at_once_than_the_server_takes() -> None:
    """All or none: it is refused here, not at the other end."""
    async with served(Access()) as address, joined(f"grpc://{address}") as bus:
        many = [Message("a", b"x" * 2_000_000, f"m{n}") for n in range(20)]
        failures = await bus.publish(many)
        assert {failure.kind for failure in failures} == {"rejected"}
        assert len(failures) == 20
        assert await bus.position() == 0  # type: ignore[attr-defined]
        assert not await bus.publish(many[:5])
        consumer = await bus.subscribe(Subscription(app="x", pattern="a", group="x.a", start=0.0))
        assert len(await take(consumer, 5)) == 5
