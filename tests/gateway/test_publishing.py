"""``POST /topics/{topic}``: what is accepted is on the bus, what is not is answered by its status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cloudevents.core.bindings import http as binding
from cloudevents.core.v1.event import CloudEvent
from tests.servers import fresh
from tests.state.stores import url_of
from tests.transports.consuming import until

from tidings import App, Message
from tidings.gateway import Limits, Rights
from tidings.gateway.access import Access, Client, hashed
from tidings.gateway.asgi import asgi
from tidings.gateway.publishing import with_options

from .over_http import DEADLINE, asking, client, listening, problem

LINES = {"content-type": "application/x-ndjson"}
PNG = b"\x89PNG\r\n\x1a\n\x00\xff"


class Seen:
    """An app that keeps what it gets."""

    def __init__(self, url: Any) -> None:
        self.app, self.messages, self.came = App("shop", url), list[Message[Any]](), asyncio.Condition()
        self.app.on(">", group="seen")(self.see)

    async def see(self, message: Message[bytes]) -> None:
        async with self.came:
            self.messages.append(message)
            self.came.notify_all()

    async def all(self, count: int) -> list[Message[Any]]:
        async with self.came:
            await self.came.wait_for(lambda: len(self.messages) >= count)
        return self.messages


@asynccontextmanager
async def shop(url: Any, **options: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Seen]]:
    seen = Seen(url)
    async with seen.app, client(seen.app, **options) as http:
        yield http, seen


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_one_message_of_any_kind(kind: str, tmp_path: Path) -> None:
    async with shop(url_of(kind, tmp_path)) as (http, seen):
        ids = list[str]()
        for body, content_type in (
            (b'{"total": 3}', "application/json"),
            (b"[1, 2]", "application/json"),
            ("Grüezi".encode(), "text/plain; charset=utf-8"),
            (PNG, "image/png"),
            (b'{"a":1}', ""),
            (b"", "application/json"),
        ):
            headers = {"content-type": content_type} if content_type else {}
            answer = await http.post("/topics/orders.placed", content=body, headers=headers)
            assert answer.status_code == 202
            assert answer.headers["content-type"] == "application/json"
            ids += answer.json()["ids"]
        got = await seen.all(6)
        assert [m.id for m in got] == ids
        assert {(m.topic, m.type, m.source) for m in got} == {("orders.placed", "orders.placed", "shop")}
        assert [(m.body or m.data, m.content_type) for m in got[2:4]] == [
            ("Grüezi".encode(), "text/plain; charset=utf-8"),
            (PNG, "image/png"),
        ]


async def test_many_messages(tmp_path: Path) -> None:
    async with shop("memory://") as (http, seen):
        lines = b'{"n": 1}\n\n  2\r\n"three"\nnull'
        first = await http.post("/topics/a?key=k", content=lines, headers=LINES)
        second = await http.post("/topics/a?batch", json=[{"n": 1}, 2, "three", None])
        assert [answer.status_code for answer in (first, second)] == [202, 202]
        got = await seen.all(8)
        assert [m.id for m in got] == first.json()["ids"] + second.json()["ids"]
        assert [json.loads(m.data) for m in got] == [{"n": 1}, 2, "three", None] * 2
        assert {m.content_type for m in got} == {"application/json"}
        assert [m.key for m in got] == ["k"] * 4 + [None] * 4
        for answer in (
            await http.post("/topics/a", content=b"", headers=LINES),
            await http.post("/topics/a?batch", json=[]),
        ):
            assert (answer.status_code, answer.json()) == (202, {"ids": []})


async def test_cloudevents_of_the_sdk_in_three_modes() -> None:
    async with shop("memory://") as (http, seen):
        events = [
            CloudEvent({"type": "order", "source": "/s", "id": f"e{n}", "partitionkey": "ä b"}, {"n": n})
            for n in (1, 2, 3)
        ]
        for event, write in zip(events, (binding.to_binary_event, binding.to_structured_event), strict=False):
            sent = write(event)
            answer = await http.post("/topics/orders", content=sent.body, headers=sent.headers)
            assert (answer.status_code, answer.json()) == (202, {"ids": [event.get_id()]})
        batch = b"[%b]" % binding.to_structured_event(events[2]).body
        answer = await http.post(
            "/topics/orders", content=batch, headers={"content-type": "application/cloudevents-batch+json"}
        )
        assert (answer.status_code, answer.json()) == (202, {"ids": ["e3"]})
        got = await seen.all(3)
        assert [(m.id, m.key, m.source, json.loads(m.data)) for m in got] == [
            (f"e{n}", "ä b", "/s", {"n": n}) for n in (1, 2, 3)
        ]


async def test_options_of_the_query_and_the_trace() -> None:
    async with shop("memory://") as (http, seen):
        trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1"}
        await http.post("/topics/a?key=7&priority=3&expires=1h&delay=10ms", json=1, headers=trace)
        await http.post("/topics/a?delay=0&key=", json=1)
        first, second = sorted(await seen.all(2), key=lambda m: m.key or "", reverse=True)
        assert (first.key, first.priority, dict(first.headers or ())) == ("7", 3, trace)
        assert round((first.expires_at or 0) - first.time) == 3600
        assert first.deliver_at is not None
        assert 0 < first.deliver_at - first.time < 0.02
        assert (second.key, second.priority, second.headers) == ("", 0, None)


async def test_an_idempotency_key_is_the_id() -> None:
    async with shop("memory://") as (http, _):
        for given, ids in (("pay-7", ["pay-7"]), ('"a \\"b\\""', ['a "b"'])):
            answer = await http.post("/topics/a", json=1, headers={"idempotency-key": given})
            assert answer.json() == {"ids": ids}
        for many in ([1, 2], [1]):
            answer = await http.post("/topics/a?batch", json=many, headers={"idempotency-key": "k"})
            assert answer.json() == {"ids": ["k-0", "k-1"][: len(many)]}
        event = binding.to_binary_event(CloudEvent({"type": "t", "source": "s", "id": "its own"}, {}))
        answer = await http.post("/topics/a", content=event.body, headers={**event.headers, "idempotency-key": "k"})
        assert answer.json() == {"ids": ["its own"]}
        for wrong in ("", "x" * 256, '""'):
            problem(await http.post("/topics/a", json=1, headers={"idempotency-key": wrong}), 422)


SENSELESS = [  # path, content type, body, status
    ("a", "application/json", b"{'a': 1}", 422),
    ("a", "application/json", b'"\xff"', 422),
    ("a", "application/vnd.a+json", b"[" * 100_000, 422),
    ("a", "application/x-ndjson", b"1\n{\n3", 422),
    ("a?batch", "application/json", b'{"a": 1}', 422),
    ("a?batch=perhaps", "application/json", b"[]", 422),
    ("a?batch", "text/plain", b"[]", 415),
    ("a", "application/x-www-form-urlencoded", b'{"a": 1}', 415),
    ("a", "multipart/form-data; boundary=x", b"", 415),
    ("a", "application/cloudevents+xml", b"<a/>", 415),
    ("a", "application/cloudevents+json", b"{}", 422),
    ("a?prio=1", "text/plain", b"", 422),
    ("a?priority=10", "text/plain", b"", 422),
    ("a?priority=" + "9" * 5000, "text/plain", b"", 422),
    ("a?delay=soon", "text/plain", b"", 422),
    ("a?delay=2s&expires=1s", "text/plain", b"", 422),
    ("a.*", "text/plain", b"", 422),
    ("a..b", "text/plain", b"", 422),
    ("_dead.a", "text/plain", b"", 422),
    ("%ff", "text/plain", b"", 422),
]


async def test_what_makes_no_sense_is_refused() -> None:
    async with client("memory://") as http:
        for path, kind, body, status in SENSELESS:
            told = problem(await http.post(f"/topics/{path}", content=body, headers={"content-type": kind}), status)
            assert "Traceback" not in json.dumps(told)


async def test_what_there_is_not_is_a_problem_too() -> None:
    async with client("memory://") as http:
        for method, path, status in (
            ("GET", "/nowhere", 404),
            ("DELETE", "/topics/a", 405),
            ("POST", "/topics/a/b", 404),
        ):
            answer = await http.request(method, path)
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
            assert answer.json()["status"] == status


async def test_sizes_have_bounds() -> None:
    limits = Limits(body=1000, batch=5000, messages=10)

    async def pieces(count: int, more: bytes = b"", size: int = 100) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * size
        yield more

    async with client("memory://", limits=limits) as http:
        text = {"content-type": "text/plain"}
        assert (await http.post("/topics/a", content=b"x" * 1000, headers=text)).status_code == 202
        assert (await http.post("/topics/a", content=pieces(10), headers=text)).status_code == 202
        problem(await http.post("/topics/a", content=b"x" * 1001, headers=text), 413)
        problem(await http.post("/topics/a", content=pieces(10, b"x"), headers=text), 413)
        problem(await http.post("/topics/a", content=pieces(100, size=100_000), headers=text), 413)
        problem(await http.post("/topics/a?batch", json=["x" * 1000]), 413)
        problem(await http.post("/topics/a?batch", json=[0] * 11), 413)
        problem(await http.post("/topics/a?batch", json=["x" * 900] * 6), 413)
        assert (await http.post("/topics/a?batch", json=["x" * 900] * 5)).status_code == 202


@pytest.mark.parametrize(
    "sent", [b"content-length: 1001\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001 + b"\r\n"]
)
async def test_what_is_too_large_is_refused_before_all_of_it_came(sent: bytes) -> None:
    app = asgi("memory://", limits=Limits(body=1000))
    async with asyncio.timeout(DEADLINE), listening(app) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST /topics/a HTTP/1.1\r\nhost: localhost\r\n" + sent)
        assert b" 413 " in await reader.readline()
        assert app.state.site.intake.held == 0
        writer.close()


PART = b"POST /topics/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 90000\r\n\r\n" + b"x" * 60_000


async def test_bodies_together_have_a_bound_and_who_goes_holds_nothing() -> None:
    app = asgi("memory://", limits=Limits(intake=100_000))
    intake = app.state.site.intake
    async with (
        asyncio.timeout(DEADLINE),
        listening(app) as url,
        asking(url) as http,
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(PART)
        await until(lambda: intake.held >= 60_000)
        answer = await http.post("/topics/a", content=b"x" * 60_000)
        problem(answer, 429)
        assert int(answer.headers["retry-after"]) >= 1
        writer.close()
        await until(lambda: not intake.held)
        assert (await http.post("/topics/a", content=b"x" * 60_000)).status_code == 202


async def test_a_client_that_pauses_is_not_waited_for() -> None:
    app = asgi("memory://", limits=Limits(patience=0.2))
    async with asyncio.timeout(DEADLINE), listening(app) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(PART)
        assert b" 408 " in await reader.readline()
        await until(lambda: not app.state.site.intake.held)
        writer.close()


async def test_who_publishes_too_much_is_told_when_to_come_again() -> None:
    async with client("memory://", limits=Limits(rate=0.5)) as http:
        assert (await http.post("/topics/a", json=1)).status_code == 202
        answer = await http.post("/topics/a", json=1)
        problem(answer, 429)
        assert answer.headers["retry-after"] == "2"


async def test_rights() -> None:
    access = Access([Client(name="ada", token=hashed("tdg_a"), rights=Rights(publish=("orders.*",)))], anonymous=None)
    async with client("memory://", access=access) as http:
        answer = await http.post("/topics/orders.placed", json=1)
        problem(answer, 401)
        assert answer.headers["www-authenticate"] == 'Bearer realm="tidings"'
        problem(await http.post("/topics/orders.placed", json=1, headers={"authorization": "Bearer tdg_b"}), 401)
        problem(await http.post("/topics/orders.placed", json=1, headers={"authorization": "Basic tdg_a"}), 401)
        ada = {"authorization": "Bearer tdg_a"}
        problem(await http.post("/topics/payments.made", json=1, headers=ada), 403)
        assert (await http.post("/topics/orders.placed", json=1, headers=ada)).status_code == 202


async def test_a_bus_that_is_full(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/bus.db?max_size=1MB"
    async with Seen(url).app:
        pass  # from now on there is a group that needs what comes
    async with client(url) as http:
        statuses = list[int]()
        while 507 not in statuses:
            answer = await http.post("/topics/a?batch", json=["x" * 10_000] * 20)
            statuses.append(answer.status_code)
        problem(answer, 507)
        assert int(answer.headers["retry-after"]) >= 1
        assert set(statuses[:-1]) == {202}


@pytest.mark.slow
async def test_a_bus_that_is_away() -> None:
    with fresh("nats") as server:
        async with client(server.url, limits=Limits(accept=1.0)) as http:
            assert (await http.post("/topics/a", json=1)).status_code == 202
            server.kill()
            answer = await http.post("/topics/a", json=1)
            problem(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1
            server.restart()
            while (answer := await http.post("/topics/a", json=1)).status_code == 503:
                pass
            assert answer.status_code == 202


@pytest.mark.parametrize(
    ("whose", "key", "id"), [("till", "k", "till/k"), ("anyone", "k", "k"), ("anyone", "till/k", "anyone/till/k")]
)
def test_one_client_s_keys_hide_no_other_s_messages(whose: str, key: str, id: str) -> None:
    (message,) = with_options([Message("a", b"1")], {"idempotency-key": key}, {}, False, whose)
    assert message.id == id
