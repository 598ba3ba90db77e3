"""Webhooks out: a durable handler that POSTs each message, signed, until it was taken."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as some
from standardwebhooks import Webhook
from tests.gateway.receiver import Receiver, free, served
from tests.servers.base import certificates
from tests.state.stores import url_of

from tidings import App, Message, Topic
from tidings.gateway.outside import is_public
from tidings.gateway.sending import Sender, WebhookOut, retry_after, webhooks
from tidings.gateway.signatures import new_secret
from tidings.kernel.errors import DuplicateGroup, InvalidName, InvalidOption
from tidings.testing.faults import Processes

DEADLINE = 30.0
SECRET, OLD = new_secret(), new_secret()
placed = Topic("orders.placed", dict[str, int])


def hook(url: str, **more: Any) -> WebhookOut:
    usual = {"name": "billing", "pattern": "orders.>", "secrets": (SECRET,), "private": True, "first": "10ms"}
    return WebhookOut(url=url, **{**usual, **more})


class Shop:
    """A running app with one webhook, and its dead letters."""

    def __init__(self, url: str, hooks: list[WebhookOut]) -> None:
        self.app, self.letters = App("shop", url), asyncio.Queue[Message[bytes]]()
        webhooks(self.app, hooks)

        @self.app.on("_dead.>")
        async def dead(letter: Message[bytes]) -> None:
            self.letters.put_nowait(letter)

    async def publish(self, *numbers: int, **meta: Any) -> None:
        await self.app.publish_many([placed({"n": number}, **meta) for number in numbers])


@asynccontextmanager
async def shop(url: str, *hooks: WebhookOut) -> AsyncIterator[Shop]:
    made = Shop(url, list(hooks))
    async with asyncio.timeout(DEADLINE), made.app:
        yield made


@asynccontextmanager
async def sending(**options: Any) -> AsyncIterator[tuple[Shop, Receiver]]:
    receiver = Receiver()
    async with served(receiver.app) as url, shop("memory://", hook(f"{url}/hooks?of=shop", **options)) as made:
        yield made, receiver


def numbers(receiver: Receiver) -> list[int]:
    return [json.loads(came.body)["data"]["n"] for came in receiver.came]


async def test_an_event_arrives_whole_and_signed() -> None:
    async with sending(headers={"x-tenant": "7 a"}) as (made, receiver):
        await made.publish(1, key="ann", id="order.1", headers={"region": "eu"})
        (came,) = await receiver.took(1)
    told = Webhook(SECRET).verify(came.body, dict(came.headers))
    assert {name: told[name] for name in ("id", "type", "partitionkey", "tdgtopic", "region", "data")} == {
        "id": "order.1",
        "type": "orders.placed",
        "partitionkey": "ann",
        "tdgtopic": "orders.placed",
        "region": "eu",
        "data": {"n": 1},
    }
    assert came.path == "/hooks"
    assert came.headers["content-type"] == "application/cloudevents+json"
    assert came.headers["webhook-id"] == "order%2E1"  # no full stop: it divides what is signed
    assert came.headers["user-agent"].startswith("Tidings/")
    assert came.headers["x-tenant"] == "7 a"


async def test_binary_sends_the_body_as_it_is() -> None:
    async with sending(mode="binary") as (made, receiver):
        await made.app.publish(Message("orders.raw", b"\xff\x00", content_type="application/x-scan", id="scan-1"))
        await receiver.took(1)
        await made.publish(1)
        raw, came = await receiver.took(2)
    assert raw.body == b"\xff\x00"
    assert raw.headers["content-type"] == "application/x-scan"
    assert raw.headers["ce-id"] == raw.headers["webhook-id"] == "scan-1"
    assert raw.headers["ce-tdgtopic"] == "orders.raw"
    assert Webhook(SECRET).verify(came.body, dict(came.headers)) == {"n": 1}


async def test_while_a_secret_is_changed_both_are_good() -> None:
    async with sending(secrets=(SECRET, OLD)) as (made, receiver):
        await made.publish(1)
        (came,) = await receiver.took(1)
    assert Webhook(SECRET).verify(came.body, dict(came.headers)) == Webhook(OLD).verify(came.body, dict(came.headers))


async def test_connections_are_kept() -> None:
    async with sending(concurrency=2) as (made, receiver):
        await made.publish(*range(20))
        came = await receiver.took(20)
    assert len({each.client for each in came}) <= 2


async def test_order_per_key_is_kept_while_one_is_tried_again() -> None:
    async with sending() as (made, receiver):
        receiver.answers.extend([500, 503])
        await made.publish(*range(5), key="ann")
        await receiver.took(7)
    assert numbers(receiver) == [0, 0, 0, 1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_ordered_keeps_it_while_that_takes_longer(kind: str, tmp_path: Path) -> None:
    receiver = Receiver()
    receiver.answers.append(500)
    async with served(receiver.app) as url:
        slowly = hook(url, ordered=True, first="1100ms")  # longer than what waits in place
        async with shop(url_of(kind, tmp_path), slowly) as made:
            await made.publish(*range(3), key="ann")
            await receiver.took(4)
    assert numbers(receiver) == [0, 0, 1, 2]


async def test_retry_after_is_waited_for() -> None:
    async with sending() as (made, receiver):
        receiver.answers.append((503, {"retry-after": "1"}))
        await made.publish(1)
        first, second = await receiver.took(2)
    assert second.at - first.at > 0.9  # its own backoff is 10 ms
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    Webhook(SECRET).verify(second.body, dict(second.headers))


def test_retry_after_hurries_nobody_and_keeps_nobody_for_ever() -> None:
    sender = Sender(hook("https://example.com/", first="5s", limit="1h"))
    assert sender.wait(1, "30", 0.0) == 30.0
    assert sender.wait(1, "0", 0.0) >= 5.0
    assert sender.wait(1, "99999999", 0.0) == 3600.0


async def test_what_is_not_taken_is_tried_and_then_a_dead_letter() -> None:
    async with sending(attempts=3) as (made, receiver):
        for number, status in enumerate((307, 404, 429, 500)):
            receiver.answers.extend([(status, {"location": "/elsewhere"})] * 3)
            await made.publish(number)
            letter = await made.letters.get()
            assert numbers(receiver) == [each for each in range(number + 1) for _ in range(3)]
            assert letter.body == b'{"n":%d}' % number
            assert (letter.header("tdgreason"), letter.header("tdgfailures")) == ("failed", "3")
            assert letter.header("tdgdetail") == f"webhook 'billing' answered {status}"
    assert {came.path for came in receiver.came} == {"/hooks"}  # no redirect was followed


async def test_gone_is_final() -> None:
    async with sending() as (made, receiver):
        receiver.answers.append(410)
        await made.publish(1)
        letter = await made.letters.get()
    assert len(receiver.came) == 1
    assert letter.header("tdgreason") == "rejected"
    assert "410 Gone" in letter.header("tdgdetail")


async def test_no_answer_in_time_is_a_failure() -> None:
    async with sending(timeout="300ms", attempts=2) as (made, receiver):
        answer = asyncio.Event()
        receiver.answers.extend([answer, answer])
        await made.publish(1)
        letter = await made.letters.get()
        answer.set()
    assert letter.header("tdgdetail") == "webhook 'billing' did not answer within 0.3 s"


async def test_no_connection_in_time_is_a_failure() -> None:
    """Its queue of connections is full, so that it answers nothing at all."""
    with ExitStack() as open_sockets:
        full = open_sockets.enter_context(free())
        full.listen(0)
        for _ in range(8):
            waiting = open_sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/"
        async with shop("memory://", hook(url, timeout="400ms", attempts=2)) as made:
            await made.publish(1)
            letter = await made.letters.get()
    assert letter.header("tdgdetail") == "webhook 'billing' did not answer within 0.4 s"


async def test_a_receiver_that_is_away_is_waited_for() -> None:
    receiver, sock = Receiver(), free()
    async with shop(
        "memory://", hook(f"http://127.0.0.1:{sock.getsockname()[1]}/", limit="50ms", attempts=999)
    ) as made:
        await made.publish(1)
        while not made.app.stats()["shop.webhook-billing"].failed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with served(receiver.app, sock):
            await receiver.took(1)
    assert numbers(receiver) == [1]


async def test_one_that_is_broken_hinders_no_other() -> None:
    receiver = Receiver()
    async with served(receiver.app) as url:
        broken = hook("http://127.0.0.1:1/", name="broken", limit="1h", first="1h")
        async with shop("memory://", broken, hook(url)) as made:
            await made.publish(*range(10))
            await receiver.took(10)
            assert made.app.stats()["shop.webhook-broken"].handled == 0
    assert sorted(numbers(receiver)) == [*range(10)]


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        except ConnectionError:
            ended.set()
        finally:
            writer.close()

    ended = asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, shop("memory://", hook(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")) as made:
        await made.publish(1)
        await ended.wait()
        while not made.app.stats()["shop.webhook-billing"].handled:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert made.letters.empty()


@pytest.mark.slow
async def test_killed_senders_lose_nothing(tmp_path: Path) -> None:
    """``kill -9`` in the middle of deliveries, again and again; each sender goes on where the last one stopped."""
    receiver, bus, count = Receiver(), f"sqlite:///{tmp_path / 'bus.db'}?lease=1s", 300
    command = ("tests.gateway.webhook_worker", bus)
    async with asyncio.timeout(60), served(receiver.app) as url, Processes() as processes:
        worker = await processes.start(*command, url, SECRET)
        await worker.line("ready")
        outside = App("shop", bus)
        async with outside.connect():
            await outside.publish_many([placed({"n": number}, id=f"order-{number}") for number in range(count)])
        for deaths in range(3):
            await receiver.took((deaths + 1) * 40)
            worker.kill()
            await worker.wait()
            assert len({came.headers["webhook-id"] for came in receiver.came}) < count, "it had done all before"
            worker = await processes.start(*command, url, SECRET)
        while len({came.headers["webhook-id"] for came in receiver.came}) < count:
            await receiver.took(len(receiver.came) + 1)
    for came in receiver.came:
        told = Webhook(SECRET).verify(came.body, dict(came.headers))
        assert told["id"] == came.headers["webhook-id"] == f"order-{told['data']['n']}"


# -- where it may connect to


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((ip, True) for ip in ("8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1")),
        *((ip, False) for ip in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0")),
        *((ip, False) for ip in ("100.64.0.1", "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "240.0.0.1")),
        *((ip, False) for ip in ("::1", "::", "fe80::1%eth0", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1")),
        *((ip, False) for ip in ("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::7f00:1", "64:ff9b::7f00:1")),
        *((ip, False) for ip in ("2002:7f00:1::1", "64:ff9b:1::808:808", "2001::1")),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "https://localhost/",
        "https://127.0.0.1/",
        "https://[::1]:8443/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::ffff:10.0.0.1]/",
    ],
)
def test_a_private_target_is_refused_where_its_url_says_so(url: str) -> None:
    with pytest.raises(InvalidOption, match="is refused"):
        webhooks(App("shop", "memory://"), [hook(url, private=False)])


@pytest.mark.parametrize("host", ["127.1", "2130706433"])
async def test_a_name_is_judged_when_it_is_connected_to(host: str) -> None:
    """Each of these resolves to this machine, where somebody listens."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.close()

    connections = list[Any]()
    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, shop("memory://", hook(f"https://{host}:{port}/", private=False, attempts=1)) as made:
        await made.publish(1)
        letter = await made.letters.get()
    assert "private network" in letter.header("tdgdetail")
    assert connections == []


@pytest.mark.parametrize("trusted", [True, False])
async def test_certificates_are_verified(trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificates(tmp_path / "tls")
    tls: dict[str, Any] = {
        f"ssl_{name}": str(tmp_path / "tls" / f"server.{end}")
        for name, end in (("certfile", "pem"), ("keyfile", "key"))
    }
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tls" / "ca.pem"))
    receiver = Receiver()
    async with served(receiver.app, **tls) as url, shop("memory://", hook(url, attempts=1)) as made:
        await made.publish(1)
        if trusted:
            await receiver.took(1)
        else:
            letter = await made.letters.get()
            assert "CERTIFICATE_VERIFY_FAILED" in letter.header("tdgdetail")
    assert len(receiver.came) == trusted


# -- what is configured

WRONG: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"name": "a.b"}, InvalidName),
    ({"pattern": "orders.>.x"}, InvalidName),
    ({"secrets": ()}, InvalidOption),
    ({"secrets": ("whsec_c2hvcnQ=",)}, InvalidOption),
    ({"secrets": ("whsec_****",)}, InvalidOption),
    ({"secrets": ("env:NOBODY_SET_THIS",)}, InvalidOption),
    ({"url": "env:NOBODY_SET_THIS"}, InvalidOption),
    *(({"url": url}, InvalidOption) for url in ("", "hooks", "ftp://h/", "https:///x", "https://h:x/", "https://h:0/")),
    *(({"url": url}, InvalidOption) for url in ("https://u:p@h/", "https://h/a b", "https://h/\n", "https://é/")),
    *(({"headers": {name: "x"}}, InvalidOption) for name in ("Host", "Webhook-Id", "ce-id", "content-length", "a b")),
    *(({"headers": {"x": value}}, InvalidOption) for value in ("a\nb", "", "é")),
    ({"attempts": 0}, InvalidOption),
    ({"timeout": "soon"}, InvalidOption),
    ({"concurrency": 0}, InvalidOption),
]


@pytest.mark.parametrize(("more", "error"), WRONG, ids=lambda value: re.sub(r"\W+", "-", str(value))[:40])
def test_what_means_nothing_is_refused(more: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as refused:
        webhooks(App("shop", "memory://"), [hook(**{"url": "https://example.com/", **more})])
    told = str(refused.value)
    assert not any(each in told for each in ("u:p", *more.get("secrets", ())) if "env:" not in each)


def test_without_its_client_it_says_what_to_install() -> None:
    """It needs the HTTP client of the extra, and no server."""
    script = """
import sys
sys.modules["httpcore"] = sys.modules["starlette"] = None
from tidings import App
from tidings.gateway.sending import WebhookOut, webhooks
webhooks(App("shop", "memory://"), [WebhookOut(name="x", pattern="x", url="https://a.example/", secrets=("x",))])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "TDG-E007" in done.stderr
    assert "pip install 'tidings[serve]'" in done.stderr


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(DuplicateGroup):
        webhooks(App("shop", "memory://"), [hook("https://a.example/"), hook("https://b.example/")])


def test_it_comes_from_toml_and_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    written = """
    [[webhooks.out]]
    name = "billing"
    pattern = "orders.>"
    url = "env:BILLING_URL"
    secrets = ["env:BILLING_SECRET"]
    timeout = "5s"
    headers = {authorization = "env:BILLING_TOKEN"}
    """
    (made,) = msgspec.convert(tomllib.loads(written)["webhooks"]["out"], list[WebhookOut])
    assert repr(made) == "WebhookOut('billing', 'orders.>')"
    for name, value in (("URL", "https://billing.example/T0/secret"), ("SECRET", SECRET), ("TOKEN", "Bearer t")):
        monkeypatch.setenv(f"BILLING_{name}", value)
    app = App("shop", "memory://")
    webhooks(app, [made])
    assert SECRET not in repr(vars(app))
    with pytest.raises(msgspec.ValidationError, match="secret"):
        msgspec.convert({"name": "x", "pattern": "x", "url": "x", "secrets": ["x"], "secret": "x"}, WebhookOut)


def test_retry_after_may_be_a_date() -> None:
    at = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert retry_after(format_datetime(at, usegmt=True), (at - timedelta(seconds=90)).timestamp()) == 90.0
    assert retry_after(format_datetime(at, usegmt=True), (at + timedelta(seconds=90)).timestamp()) == 0.0
    assert retry_after("120", 0.0) == 120.0


@given(text=some.text())
@example("Fri, 31 Dec 9999 23:59:59 -9959")
@example("Fri, 31 Dec 0000 23:59:59 GMT")
@example("9" * 400)
@example("-1")
def test_retry_after_of_any_text_is_a_time(text: str) -> None:
    assert retry_after(text, 0.0) >= 0.0
