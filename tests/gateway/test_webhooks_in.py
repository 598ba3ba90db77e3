"""Webhooks in: verified as they came, published once, and answered when the bus has them."""

from __future__ import annotations

import asyncio
import json
import random
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from starlette.types import ASGIApp
from tests.gateway.receiver import Receiver, free, served
from tests.gateway.serving import known
from tests.gateway.serving import served as serving
from tests.servers import server
from tests.state.stores import url_of

from tidings import App, Message, Topic
from tidings.gateway import Gateway, Limits
from tidings.gateway.asgi import asgi
from tidings.gateway.inbox import Remembered, Stored, inbox
from tidings.gateway.receiving import WebhookIn
from tidings.gateway.rights import ANYONE
from tidings.gateway.sending import WebhookOut, webhooks
from tidings.gateway.settings import Webhooks
from tidings.gateway.signatures import (
    new_secret,
    plain_key,
    sign_github,
    sign_standard,
    sign_stripe,
    standard_key,
)
from tidings.kernel.errors import InvalidName, InvalidOption, TooLarge
from tidings.testing.conformance import buses
from tidings.testing.faults import Processes

DEADLINE = 30.0
SECRET, OLD = new_secret(), new_secret()
JSON = {"content-type": "application/json"}
NAMES = ("standard", "github", "stripe")
HOOKS = [
    WebhookIn(name="standard", topic="partner.{type}", secrets=(OLD, SECRET), key="data.customer"),
    WebhookIn(name="github", topic="github.{type}", secrets=(OLD, SECRET), scheme="github", key="repository.full_name"),
    WebhookIn(name="stripe", topic="stripe.events", secrets=(OLD, SECRET), scheme="stripe", key="data.object.customer"),
]

# What each provider sends, and the (topic, type, key) of its message.
BODIES: dict[str, dict[str, Any]] = {
    "standard": {"type": "user.created", "timestamp": "2026-01-31T12:00:00Z", "data": {"customer": 7}},
    "github": {"ref": "refs/heads/main", "repository": {"full_name": "acme/shop"}},
    "stripe": {"id": "evt_1", "object": "event", "type": "invoice.paid", "data": {"object": {"customer": "cus_9"}}},
}
EXPECTED = {
    "standard": ("partner.user.created", "user.created", "7"),
    "github": ("github.push", "push", "acme/shop"),
    "stripe": ("stripe.events", "invoice.paid", "cus_9"),
}


def signed(
    scheme: str, body: bytes, id: str = "evt_1", at: float | None = None, secret: str = SECRET
) -> dict[str, str]:
    """A provider's headers."""
    import time

    now = time.time() if at is None else at
    if scheme == "standard":
        return {**JSON, **sign_standard([standard_key(secret)], id, now, body)}
    if scheme == "stripe":
        return {**JSON, **sign_stripe([plain_key(secret)], now, body)}
    return {**JSON, **sign_github(plain_key(secret), body), "x-github-delivery": id, "x-github-event": "push"}


def body_of(scheme: str, **more: Any) -> bytes:
    return json.dumps(BODIES[scheme] | more).encode()


def free_port() -> int:
    with free() as sock:
        return int(sock.getsockname()[1])


class Inside:
    """The app behind it, and what it was told."""

    def __init__(self, url: str, hooks: list[WebhookIn], **limits: Any) -> None:
        self.app, self.came = App("inside", url), list[Message[bytes]]()
        self.asgi = asgi(self.app, webhooks_in=hooks, limits=Limits(**limits))
        self.client: httpx.AsyncClient

        @self.app.on(">")
        async def take(message: Message[bytes]) -> None:
            self.came.append(message)

    async def post(self, name: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        return await self.client.post(f"/webhooks/{name}", content=body, headers=headers)

    async def idle(self) -> list[Message[bytes]]:
        """All that was published, once a last message has come, too."""
        await self.app.publish(Topic("z.last", int), 0)
        while not (self.came and self.came[-1].topic == "z.last"):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return self.came[:-1]


@asynccontextmanager
async def inside(url: str = "memory://", hooks: list[WebhookIn] = HOOKS, **limits: Any) -> AsyncIterator[Inside]:
    made = Inside(url, hooks, **limits)
    async with asyncio.timeout(DEADLINE), made.app, served(made.asgi) as address:
        made.client = httpx.AsyncClient(base_url=address, timeout=DEADLINE)
        async with made.client:
            yield made


async def test_it_is_published() -> None:
    async with inside() as made:
        for scheme in NAMES:
            body = body_of(scheme)
            answer = await made.post(scheme, body, signed(scheme, body))
            assert (answer.status_code, answer.json()) == (202, {"id": f"{scheme}/evt_1"})
        came = {message.id: message for message in await made.idle()}
    assert len(came) == 3
    for scheme, expected in EXPECTED.items():
        message = came[f"{scheme}/evt_1"]
        assert (message.topic, message.type, message.key) == expected
        assert (message.body, message.content_type) == (body_of(scheme), "application/json")
        assert message.source == f"/webhooks/{scheme}"


async def test_what_is_not_theirs_is_refused() -> None:
    async with inside() as made:
        for scheme in NAMES:
            body = body_of(scheme)
            good = signed(scheme, body)
            wrong = [
                (body, JSON),
                (body + b" ", good),
                (body, signed(scheme, body, secret=new_secret())),
                (body, signed(NAMES[NAMES.index(scheme) - 1], body)),
            ]
            if scheme != "github":
                wrong += [(body, signed(scheme, body, at=at)) for at in (1e9, 4e9)]
            answers = [await made.post(scheme, *each) for each in wrong]
            assert {answer.status_code for answer in answers} == {401}
            assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}
            signature = next(value for name, value in good.items() if "signature" in name)
            assert not any(each in answer.text for answer in answers for each in (SECRET, OLD, signature))
        assert await made.idle() == []


async def test_either_secret_is_good_while_it_is_changed() -> None:
    async with inside() as made:
        for scheme in NAMES:
            body = body_of(scheme)
            assert (await made.post(scheme, body, signed(scheme, body, secret=OLD))).status_code == 202


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_what_comes_again_is_published_once(kind: str, tmp_path: Path) -> None:
    """Also at the same time, and after a restart."""
    url = url_of(kind, tmp_path)
    async with inside(url) as made:
        for scheme in NAMES:
            body, other = body_of(scheme), body_of(scheme, id="evt_2")
            answers = await asyncio.gather(*(made.post(scheme, body, signed(scheme, body)) for _ in range(10)))
            assert sorted(answer.status_code for answer in answers) == [200] * 9 + [202]
            assert len({answer.text for answer in answers}) == 1
            assert (await made.post(scheme, other, signed(scheme, other, "evt_2"))).status_code == 202
        came = [message.id for message in await made.idle()]
    assert sorted(came) == sorted(f"{scheme}/{id}" for scheme in NAMES for id in ("evt_1", "evt_2"))
    if kind == "sqlite":
        async with inside(url) as made:
            for scheme in NAMES:
                body = body_of(scheme)
                assert (await made.post(scheme, body, signed(scheme, body))).status_code == 200
            assert await made.idle() == []


async def test_it_is_forgotten_in_the_end() -> None:
    hook = msgspec.structs.replace(HOOKS[0], remember=0)
    body = body_of("standard")
    async with inside(hooks=[hook]) as made:
        for _ in range(2):
            assert (await made.post("standard", body, signed("standard", body))).status_code == 202


async def test_an_event_is_taken_out_of_its_envelope() -> None:
    event = {"specversion": "1.0", "id": "e", "source": "/shop", "type": "order.placed", "partitionkey": "ann"}
    more = {"tdgreplyto": "elsewhere", "tdgpriority": "9", "tdgtopic": "_dead.x", "region": "eu", "data": {"n": 1}}
    body = json.dumps(event | more).encode()
    headers = signed("standard", body) | {"content-type": "application/cloudevents+json; charset=utf-8"}
    async with inside() as made:
        assert (await made.post("standard", body, headers)).status_code == 202
        (message,) = await made.idle()
    assert (message.topic, message.type, message.key) == ("partner.order.placed", "order.placed", "ann")
    assert (message.body, message.content_type, message.source) == (b'{"n": 1}', "application/json", "/shop")
    assert (message.id, message.reply_to, message.priority) == ("standard/evt_1", None, 0)
    assert message.header("region") == "eu"


async def test_any_type_is_a_topic() -> None:
    types = {"a..b.": "a.b", "_dead.x": "_dead.x", "größe >*": "gr%C3%B6%C3%9Fe%20%3E%2A", "...": "untyped"}
    async with inside() as made:
        for number, kind in enumerate(types):
            body = body_of("standard", type=kind)
            assert (await made.post("standard", body, signed("standard", body, f"e-{number}"))).status_code == 202
        came = {message.type: message.topic for message in await made.idle()}
    assert came == {kind: f"partner.{topic}" for kind, topic in types.items()}


async def test_a_body_without_a_type_is_published_too() -> None:
    bodies = [b"", b"plain", b'"text"', b"[1]", b'{"type":7}', b'{"type":"a\\nb"}', b"\xff\xfe"]
    async with inside() as made:
        for number, body in enumerate(bodies):
            assert (await made.post("standard", body, signed("standard", body, f"e-{number}"))).status_code == 202
        came = await made.idle()
    assert sorted(message.body for message in came) == sorted(bodies)
    assert {(message.topic, message.type, message.key) for message in came} == {("partner.untyped",) * 2 + (None,)}


async def test_a_key_is_plain_text_or_a_number() -> None:
    keys = {
        "ann": "ann",
        7: "7",
        "": None,
        "a\0b": None,
        "\ud800": None,
        True: None,
        1.5: None,
        None: None,
        "x" * 999: "x" * 500,
    }
    async with inside() as made:
        for number, customer in enumerate(keys):
            body = body_of("standard", data={"customer": customer}, n=number)
            assert (await made.post("standard", body, signed("standard", body, f"e-{number}"))).status_code == 202
        came = {json.loads(message.body)["n"]: message.key for message in await made.idle()}
    assert came == dict(enumerate(keys.values()))


async def test_what_says_too_little_of_itself_is_refused() -> None:
    github = signed("github", b"{}")
    async with inside() as made:
        for name, body, headers in (
            ("github", b"{}", {k: v for k, v in github.items() if k != "x-github-delivery"}),
            ("github", b"{}", github | {"x-github-delivery": "x" * 201}),
            ("github", b"{}", github | {"x-github-event": ""}),
            ("stripe", b"{}", signed("stripe", b"{}")),
            ("stripe", b'{"id":"evt"}', signed("stripe", b'{"id":"evt"}')),
            ("stripe", b"not json", signed("stripe", b"not json")),
            ("standard", b"{}", signed("standard", b"{}") | {"content-encoding": "gzip"}),
            ("standard", b"{}", signed("standard", b"{}") | {"content-type": "application/cloudevents+json"}),
        ):
            answer = await made.post(name, body, headers)
            assert answer.status_code == 422, answer.text
        assert await made.idle() == []


async def test_bounds() -> None:
    body = b'"' + b"x" * 1000 + b'"'
    async with inside(body=1000) as made:
        assert (await made.post("standard", body, signed("standard", body))).status_code == 413

        async def parts() -> AsyncIterator[bytes]:
            for part in range(0, len(body), 100):
                yield body[part : part + 100]

        answer = await made.client.post("/webhooks/standard", content=parts(), headers=signed("standard", body))
        assert answer.status_code == 413
        assert (await made.post("nobody", b"{}", signed("standard", b"{}"))).status_code == 404
        assert (await made.client.get("/webhooks/standard")).status_code == 405
        assert await made.idle() == []


async def test_bodies_that_nobody_has_signed_yet_block_no_known_client() -> None:
    body, end = body_of("standard"), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * 995
        await end.wait()
        yield b"x"

    async with inside(intake=1000, body=1000) as made:
        unsigned = asyncio.create_task(made.client.post("/webhooks/standard", content=slow()))
        while (await made.post("standard", body, signed("standard", body))).status_code != 429:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert (await made.client.post("/topics/z.a", json="x" * 500)).status_code == 202
        end.set()
        assert (await unsigned).status_code == 401
        assert (await made.post("standard", body, signed("standard", body))).status_code in (200, 202)


async def test_the_rate_is_limited_by_name() -> None:
    async with inside(rate=1.0) as made:
        answers = []
        for number in range(4):
            body = body_of("github", number=number)
            answers.append(await made.post("github", body, signed("github", body, f"d-{number}")))
        assert answers[0].status_code == 202
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["retry-after"]) >= 1
        body = body_of("standard")
        assert (await made.post("standard", body, signed("standard", body))).status_code == 202


async def test_what_the_bus_did_not_accept_is_not_remembered(tmp_path: Path) -> None:
    body = body_of("standard", filler="x" * 3000)
    async with inside(f"sqlite:///{tmp_path / 'bus.db'}?max_size=16KB", hooks=HOOKS) as made:
        for number in range(9):
            answer = await made.post("standard", body, signed("standard", body, f"e-{number}"))
            if answer.status_code != 202:
                break
        assert answer.status_code == 507, answer.text
        assert (await made.post("standard", body, signed("standard", body, f"e-{number}"))).status_code == 507


async def test_a_gateway_by_itself_takes_them(tmp_path: Path) -> None:
    """It is connected to the bus, and handles nothing there."""
    url, body = url_of("sqlite", tmp_path), body_of("standard")
    async with served(asgi(url, webhooks_in=HOOKS)) as address, httpx.AsyncClient(base_url=address) as client:
        for status in (202, 200):
            answer = await client.post("/webhooks/standard", content=body, headers=signed("standard", body))
            assert answer.status_code == status
    app = App("looks", url)
    async with app.connect():
        bus: Any = app.bus()
        assert [stored.message.body for stored in await bus.peek("partner.>", 0, 9)] == [body]


async def test_tidings_serve_takes_and_sends_them() -> None:
    """Where all others need a token, their signature is enough."""
    receiver, body = Receiver(), body_of("standard")
    async with asyncio.timeout(DEADLINE), served(receiver.app) as url:
        out = WebhookOut(name="on", pattern="partner.>", url=url, secrets=(SECRET,), private=True)
        told = Webhooks(incoming=tuple(HOOKS), outgoing=(out,))
        async with serving(webhooks=told, clients=(known("ops"),)) as running, running.client() as client:
            answer = await client.post("/webhooks/standard", content=body, headers=signed("standard", body))
            assert answer.status_code == 202
            assert (await client.post("/topics/a", content=body)).status_code == 401
            (came,) = await receiver.took(1)
    assert json.loads(came.body)["data"] == json.loads(body)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nats", "redis"])
async def test_buses_without_records(kind: str) -> None:
    receiver, body, options = Receiver(), body_of("github"), buses.served(server(kind).url).options(2.0)
    async with asyncio.timeout(DEADLINE), served(receiver.app) as url:
        app = App("inside", options)
        webhooks(app, [WebhookOut(name="on", pattern="github.>", url=url, secrets=(SECRET,), private=True)])
        async with app, served(asgi(app, webhooks_in=HOOKS)) as address, httpx.AsyncClient(base_url=address) as client:
            for status in (202, 200):
                answer = await client.post("/webhooks/github", content=body, headers=signed("github", body))
                assert answer.status_code == status
            (came,) = await receiver.took(1)
    told = json.loads(came.body)
    assert (told["id"], told["type"], told["tdgtopic"]) == ("github/evt_1", "push", "github.push")
    assert (told["partitionkey"], told["data"]) == ("acme/shop", json.loads(body))


@pytest.mark.slow
async def test_killed_receivers_take_each_once(tmp_path: Path) -> None:
    """``kill -9`` while providers send, and send again until they are answered: what they sent is there, once."""
    url, port, count, answered = url_of("sqlite", tmp_path), str(free_port()), 120, list[int]()
    body, target = body_of("standard"), f"http://127.0.0.1:{port}/webhooks/standard"

    async def provide(client: httpx.AsyncClient, numbers: Iterator[int]) -> None:
        for number in numbers:
            while True:
                with suppress(httpx.TransportError):
                    answer = await client.post(target, content=body, headers=signed("standard", body, f"e-{number}"))
                    assert answer.status_code in (200, 202)
                    break
                await asyncio.sleep(0.02)
            answered.append(number)

    async with asyncio.timeout(60), Processes() as processes:
        command = ("tests.gateway.webhook_server", url, port, SECRET)
        running = await processes.start(*command)
        async with httpx.AsyncClient(timeout=DEADLINE) as client, asyncio.TaskGroup() as providers:
            numbers = iter(range(count))
            for _ in range(4):
                providers.create_task(provide(client, numbers))
            for deaths in range(3):
                while len(answered) < 25 * (deaths + 1):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                running.kill()
                await running.wait()
                assert len(answered) < count, "it had taken all before"
                running = await processes.start(*command)
    app = App("looks", url)
    async with app.connect():
        bus: Any = app.bus()
        came = [stored.message.id for stored in await bus.peek("partner.>", 0, 999)]
    assert sorted(came) == sorted(f"standard/e-{number}" for number in range(count))


# -- where the bus keeps no records


@asynccontextmanager
async def remembering() -> AsyncIterator[tuple[Remembered, list[str]]]:
    app, came = App("inside", "memory://"), list[str]()

    @app.on("a")
    async def take(message: Message[bytes]) -> None:
        came.append(message.id)

    async with asyncio.timeout(DEADLINE), app, Gateway(app) as gateway:
        assert isinstance(inbox(gateway), Stored)
        yield Remembered(gateway), came


async def test_a_process_remembers() -> None:
    async with remembering() as (box, came):
        draft = Message[Any]("a", b"1", id="x", type="a")
        admitted = await asyncio.gather(*(box.admit(ANYONE, draft, 60.0) for _ in range(5)))
        assert sorted(admitted) == [False] * 4 + [True]
        assert await box.admit(ANYONE, msgspec.structs.replace(draft, id="y"), 0.0)
        assert await box.admit(ANYONE, msgspec.structs.replace(draft, id="y"), 0.0)
        while len(came) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert sorted(came) == ["x", "y", "y"]


async def test_what_failed_may_come_again() -> None:
    async with remembering() as (box, _):
        large = Message[Any]("a", b"x" * 2**24, id="x", type="a")
        results = await asyncio.gather(*(box.admit(ANYONE, large, 60.0) for _ in range(3)), return_exceptions=True)
        assert {type(result) for result in results} == {TooLarge}
        assert await box.admit(ANYONE, msgspec.structs.replace(large, body=b"x"), 60.0)


async def test_it_goes_on_when_who_waited_is_gone() -> None:
    async with remembering() as (box, _):
        draft = Message[Any]("a", b"1", id="x", type="a")
        waiting = asyncio.create_task(box.admit(ANYONE, draft, 60.0))
        await asyncio.sleep(0)
        waiting.cancel()
        assert not await box.admit(ANYONE, draft, 60.0)


# -- what is configured


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"name": "a/b"}, InvalidName),
        ({"topic": "{type}.x"}, InvalidName),
        ({"topic": "x.a{type}"}, InvalidName),
        ({"topic": "_dead.x"}, InvalidName),
        ({"topic": "x.>"}, InvalidName),
        ({"secrets": ()}, InvalidOption),
        ({"secrets": ("whsec_****",)}, InvalidOption),
        ({"secrets": ("env:NOBODY_SET_THIS",)}, InvalidOption),
        ({"secrets": ("",), "scheme": "github"}, InvalidOption),
        ({"tolerance": "soon"}, InvalidOption),
        ({"remember": -1}, InvalidOption),
    ],
)
def test_what_means_nothing_is_refused(more: dict[str, Any], error: type[Exception]) -> None:
    usual: dict[str, Any] = {"name": "x", "topic": "x", "secrets": (SECRET,)}
    with pytest.raises(error) as refused:
        asgi("memory://", webhooks_in=[WebhookIn(**(usual | more))])
    assert "****" not in str(refused.value)


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidOption, match="same name"):
        asgi("memory://", webhooks_in=[HOOKS[0], HOOKS[0]])


def test_it_comes_from_toml_and_shows_no_secret() -> None:
    written = f"""
    [[webhooks.in]]
    name = "github"
    topic = "github.{{type}}"
    scheme = "github"
    secrets = ["{SECRET}"]
    key = "repository.full_name"
    """
    (made,) = msgspec.convert(tomllib.loads(written)["webhooks"]["in"], list[WebhookIn])
    assert repr(made) == "WebhookIn('github', 'github.{type}', 'github')"
    with pytest.raises(msgspec.ValidationError, match="scheme"):
        msgspec.convert({"name": "x", "topic": "x", "secrets": ["x"], "scheme": "md5"}, WebhookIn)


# -- whatever comes

DEEP = [b"[" * 50_000, b'{"a":' * 5_000 + b"1" + b"}" * 5_000, b'{"data":' + b"[" * 20_000 + b"]" * 20_000 + b"}"]
BITS = [
    b'{"type":"\\ud800"}',
    b'{"type":"\\u0000"}',
    b'{"id":"evt","type":"x","data":{"customer":"\\u0000"}}',
    b"\x00",
    b"",
]
BITS += [b'{"id":' + b"9" * 4000 + b"}", b'{"type":1e999}', b'{"a":1,"a":2,"type":null}', b'{"specversion":"1.0"}']
VALUES = ["", " ", "v1,", "t=,v1=", "\xff" * 9, "x" * 8000, "0", "-1", "1e9", "9" * 30, "a,b;c=d", "%00", "null", '"']


def mutated(luck: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """A delivery in which something may be wrong: before it is signed, or afterwards."""
    scheme = luck.choice(NAMES)
    body = luck.choice([body_of(scheme), *BITS, luck.choice(DEEP), luck.randbytes(luck.randrange(200))])
    if luck.random() < 0.3:
        body = body[: luck.randrange(len(body) + 1)] + luck.randbytes(luck.randrange(3))
    headers = signed(scheme, body, id=luck.choice(["evt", f"evt_{luck.random()}", "x" * 300, "a b", "%"]))
    if luck.random() < 0.3:
        headers["content-type"] = luck.choice(
            ["application/cloudevents+json", "text/plain", "a/b;" * 90, "application/json"]
        )
    for _ in range(luck.choice([0, 0, 1, 2])):
        name = luck.choice([*headers, "content-encoding", "transfer-encoding", "x-other", "ce-specversion"])
        if luck.random() < 0.3:
            headers.pop(name, None)
        elif name != "transfer-encoding":
            headers[name] = luck.choice(VALUES)
    if luck.random() < 0.1:
        body += b"x"
    return luck.choice([scheme, scheme, scheme, "nobody", "%2e%2e", "standard%00"]), body, headers


async def asked(app: ASGIApp, name: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    """A request as a server hands it over, without one."""
    told: list[Any] = []
    pieces = [body[: len(body) // 2], body[len(body) // 2 :]]

    async def receive() -> Any:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        told.append(message)

    raw = [(key.encode(), value.encode("latin-1")) for key, value in headers.items()]
    path = f"/webhooks/{name}"
    scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "query_string": b"", "headers": raw}
    await app(scope, receive, send)
    return told[0]["status"], b"".join(part.get("body", b"") for part in told[1:])


@pytest.mark.slow
async def test_whatever_comes_is_answered() -> None:
    """10,000 deliveries: answers that say whose fault it is, nothing lost that was accepted, and nothing twice."""
    luck, accepted, seen = random.Random(7), set[str](), set[int]()
    async with inside() as made:
        for _ in range(500):
            for status, told in await asyncio.gather(*(asked(made.asgi, *mutated(luck)) for _ in range(20))):
                seen.add(status)
                if status in (200, 202):
                    accepted.add(json.loads(told)["id"])
        came = [message.id for message in await made.idle()]
    assert seen == {200, 202, 401, 404, 422}
    assert sorted(came) == sorted(accepted)


@pytest.mark.slow
async def test_broken_requests_hurt_nobody_else() -> None:
    """Bytes that are no HTTP, or end in the middle; then a good one."""
    luck, body = random.Random(7), body_of("standard")
    head = b"\r\n".join(b"%s: %s" % (k.encode(), v.encode()) for k, v in signed("standard", body).items())
    whole = b"POST /webhooks/standard HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n%s\r\n\r\n%s" % (
        len(body),
        head,
        body,
    )
    async with inside() as made:
        address = made.client.base_url
        for _ in range(300):
            data = bytearray(whole[: luck.randrange(1, len(whole))])
            for _ in range(luck.randrange(4)):
                data[luck.randrange(len(data))] = luck.randrange(256)
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(bytes(data))
            writer.write_eof()
            await reader.read()
            writer.close()
        assert (await made.post("standard", body, signed("standard", body))).status_code in (200, 202)
        assert {message.id for message in await made.idle()} >= {"standard/evt_1"}
