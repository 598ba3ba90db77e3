"""``POST /requests/{service}``: one reply, a stream of them, or why there is none."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from tests.transports.consuming import until

from tidings import App, Message, Service
from tidings.gateway import Limits, Rights
from tidings.gateway.access import Access, Client, hashed
from tidings.gateway.asgi import asgi

from .over_http import DEADLINE, asking, client, listening, problem

LINES, EVENTS = {"accept": "application/x-ndjson"}, {"accept": "text/event-stream, */*"}


class Desk:
    """An app that answers, and what holds its answers back."""

    def __init__(self) -> None:
        self.app, self.asked = App("desk", "memory://"), list[str]()
        self.go, self.over = asyncio.Event(), asyncio.Event()
        for name in ("price", "picture", "same", "never", "broken", "halfway"):
            self.app.answer(name)(getattr(self, name))
        self.app.answer(Service("count", int, int))(self.count)

    async def price(self, sku: str) -> dict[str, float]:
        return {sku: 1.5}

    async def picture(self, _: Any) -> bytes:
        return b"\x89PNG\xff"

    async def same(self, message: Message[bytes]) -> str:
        return f"{message.content_type}: {message.data.decode()}{message.header('traceparent')}"

    async def never(self, _: Any) -> None:
        self.asked.append("never")
        await self.over.wait()

    async def broken(self, _: Any) -> None:
        raise LookupError("no such thing")

    async def count(self, to: int) -> AsyncIterator[int]:
        for n in range(to):
            if n == 1:
                await self.go.wait()
            yield n

    async def halfway(self, _: Any) -> AsyncIterator[str]:
        yield "one\ntwo"
        yield "three"
        raise LookupError("no more")


@asynccontextmanager
async def desk(**options: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Desk]]:
    made = Desk()
    async with made.app, client(made.app, **options) as http:
        try:
            yield http, made
        finally:
            made.over.set()


async def test_one_reply_is_the_answer_as_it_is() -> None:
    async with desk() as (http, _):
        answer = await http.post("/requests/price", json="b-7")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json() == {"b-7": 1.5}
        answer = await http.post("/requests/picture", json=None, headers={"accept": "image/*"})
        assert (answer.content, answer.headers["content-type"]) == (b"\x89PNG\xff", "application/octet-stream")
        answer = await http.post("/requests/same", content="Grüezi", headers={"content-type": "text/csv"})
        assert (answer.text, answer.headers["content-type"]) == ("text/csv: Grüezi", "text/plain")
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        answer = await http.post("/requests/same", content="", headers={"content-type": "a/b", "traceparent": trace})
        assert answer.text == f"a/b: {trace}"


async def test_a_streamed_reply_comes_in_lines() -> None:
    async with desk() as (http, made):
        async with http.stream("POST", "/requests/count", json=3, headers=LINES) as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            lines = answer.aiter_lines()
            assert await anext(lines) == "0"  # there before there is another
            made.go.set()
            assert [line async for line in lines] == ["1", "2"]
        for count, body in ((3, "0\n1\n2\n"), (0, "")):
            answer = await http.post("/requests/count", json=count)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
            assert answer.text == body
        assert (await http.post("/requests/count", json=1)).text == "0"
        assert (await http.post("/requests/count", json=1, headers=LINES)).text == "0\n"
        answer = await http.post("/requests/picture", json=None, headers=LINES)
        assert base64.b64decode(json.loads(answer.text)["data_base64"]) == b"\x89PNG\xff"


async def test_a_streamed_reply_comes_as_events() -> None:
    async with desk() as (http, made):
        made.go.set()
        answer = await http.post("/requests/count", json=2, headers=EVENTS)
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.text == "data: 0\n\ndata: 1\n\n"


async def test_a_stream_that_fails_does_not_look_whole() -> None:
    async with desk() as (http, _):
        answer = await http.post("/requests/halfway", json=1, headers=EVENTS)
        *items, error, rest = answer.text.split("\n\n")
        assert (items, rest) == (['data: "one\\ntwo"', 'data: "three"'], "")
        kind, _, data = error.partition("\ndata: ")
        assert kind == "event: error"
        assert "LookupError: no more" in json.loads(data)["detail"]
        lines = list[str]()
        async with http.stream("POST", "/requests/halfway", json=1) as answer:
            with pytest.raises(httpx.RemoteProtocolError):
                [lines.append(line) async for line in answer.aiter_lines()]  # type: ignore[func-returns-value]
        assert [json.loads(line) for line in lines] == ["one\ntwo", "three"]


async def test_why_there_is_no_reply() -> None:
    async with desk(limits=Limits(deadline=60, body=1000)) as (http, _):
        assert "no such thing" in problem(await http.post("/requests/broken", json=1), 502)["detail"]
        problem(await http.post("/requests/broken", json=1, headers=EVENTS), 502)  # before anything was streamed
        problem(await http.post("/requests/nobody", json=1), 404)
        problem(await http.post("/requests/never?timeout=50ms", json=1), 504)
        problem(await http.post("/requests/never?timeout=0", json=1), 504)
        problem(await http.post("/requests/never", json=1, headers={"prefer": "respond-async, wait=0"}), 504)
        for query in ("timeout=2m", "timeout=soon", "timeout=" + "9" * 5000, "wait=5"):
            problem(await http.post(f"/requests/price?{query}", json="a"), 422)
        problem(await http.post("/requests/price", json="a", headers={"prefer": "wait=61"}), 422)
        problem(await http.post("/requests/_x", json=1), 422)
        problem(await http.post("/requests/price", data={"a": "b"}), 415)
        problem(await http.post("/requests/price", content=b"x" * 1001), 413)
        assert (await http.get("/requests/price")).status_code == 405


async def test_rights() -> None:
    access = Access([Client(name="ada", token=hashed("tdg_a"), rights=Rights(request=("price",)))], anonymous=None)
    async with desk(access=access) as (http, _):
        problem(await http.post("/requests/price", json="a"), 401)
        ada = {"authorization": "Bearer tdg_a"}
        problem(await http.post("/requests/same", json="a", headers=ada), 403)
        assert (await http.post("/requests/price", json="a", headers=ada)).status_code == 200


async def test_who_goes_is_not_waited_for_and_who_stops_says_so() -> None:
    made = Desk()
    app = asgi(made.app, limits=Limits(connections=1))
    site = app.state.site
    async with (
        asyncio.timeout(DEADLINE),
        made.app,
        listening(app) as url,
        asking(url) as http,
    ):
        waiting = asyncio.create_task(http.post("/requests/never?timeout=60s", json=1, timeout=DEADLINE))
        await until(lambda: made.asked)
        problem(await http.post("/requests/price", json="a"), 429)  # one is open, and may be
        waiting.cancel()
        await asyncio.wait({waiting})
        await until(lambda: not site.gateway.streams)
        assert (await http.post("/requests/price", json="a")).status_code == 200
        waiting = asyncio.create_task(http.post("/requests/never?timeout=60s", json=1, timeout=DEADLINE))
        await until(lambda: len(made.asked) == 2)
        site.stopping.set()
        problem(await waiting, 503)
        made.over.set()
    assert site.gateway.streams == 0
