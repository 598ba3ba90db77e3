"""The descriptions are valid, and true: of whatever they allow, and of what they do not."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import reduce
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from msgspec import Struct
from schemathesis import Case, GenerationMode
from tests.transports.consuming import until

from tidings import App, Message, Topic
from tidings.asyncapi.document import document
from tidings.gateway.access import Access, Client, hashed
from tidings.gateway.asgi import asgi
from tidings.gateway.openapi import described
from tidings.gateway.publishing import OPTIONS

from .browser import browsing
from .over_http import DEADLINE, client, listening, problem

OFFICIAL = Path(__file__).parents[1] / "cli" / "data" / "asyncapi-3.1.0.json.gz"
ENDLESS = "follow"  # an answer without end
EVENT = ("ce-specversion: 1.0", "ce-id: %41", "ce-type: t", "ce-source: s")
ADA = Client(name="ada", token=hashed("tdg_a"))
NO_REPLY_IN_TIME = 504  # within the 0 seconds that it may have asked for


class Order(Struct):
    total: int


def shop() -> App:
    app = App("shop", "memory://")

    @app.on(Topic("orders.{region}.placed", Order))
    async def take(order: Order) -> None: ...

    @app.answer("echo")
    async def echo(message: Message[bytes]) -> bytes:
        return message.data

    return app


@contextmanager
def served(app: App) -> Iterator[str]:
    """The URL of a gateway that runs in a thread of its own: schemathesis waits for its answers."""
    told, stop = threading.Event(), threading.Event()
    urls = list[str]()

    async def main() -> None:
        async with app, listening(asgi(app)) as url:
            urls.append(url)
            told.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert told.wait(DEADLINE)
        yield urls[0]
    finally:
        stop.set()
        thread.join()


def checked(case: Case, url: str, statuses: set[int]) -> None:
    """Send it. No answer is a crash, and each is as it is described."""
    answer = case.call(base_url=url, timeout=DEADLINE)
    statuses.add(answer.status_code)
    assert answer.status_code < 500 or answer.status_code == NO_REPLY_IN_TIME, answer.text
    case.validate_response(
        answer,
        checks=[
            schemathesis.specs.openapi.checks.status_code_conformance,
            schemathesis.specs.openapi.checks.content_type_conformance,
            schemathesis.specs.openapi.checks.response_schema_conformance,
        ],
    )


def attacked(url: str, examples: int) -> dict[str, set[int]]:
    """What each operation answered to so many requests of each kind, right ones and wrong ones."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json").exclude(operation_id=ENDLESS)
    operations = [result.ok() for result in schema.get_all_operations()]
    return {operation.label: answers(operation, url, examples) for operation in operations}


def answers(operation: Any, url: str, examples: int) -> set[int]:
    statuses, known = set[int](), {"service": "echo"} if "service" in operation.label else None
    for mode, path in ((GenerationMode.POSITIVE, known), (GenerationMode.NEGATIVE, None)):

        @settings(
            max_examples=examples,
            database=None,
            derandomize=True,
            deadline=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(mode, path_parameters=path))
        def send(case: Case) -> None:
            checked(case, url, statuses)

        with suppress(Unsatisfiable):  # of some nothing can be wrong
            send()
    return statuses


def test_a_few_requests_of_each_kind() -> None:
    with served(shop()) as url:
        found = attacked(url, 5)
    assert found["GET /healthz"] == {200}
    assert found["POST /topics/{topic}"] >= {422}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_many_requests_of_each_kind() -> None:
    with served(shop()) as url:
        found = attacked(url, 50)
    assert found["POST /topics/{topic}"] >= {202, 415, 422}
    assert found["POST /requests/{service}"] >= {200, 404, 422}


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    head = [f"{line} HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


WELL_FORMED = [
    request("POST /topics/a.b?key=k&delay=5s", "content-type: application/json", body=b'{"a": 1}'),
    request("POST /topics/a?batch", "content-type: application/json", 'idempotency-key: "7"', body=b"[1, 2]"),
    request("POST /topics/a", "content-type: application/x-ndjson", body=b"1\n2"),
    request("POST /topics/a", *EVENT, "ce-time: 2026-01-31T12:00:00Z", "content-type: text/plain", body=b"a"),
    request(
        "POST /topics/a",
        "content-type: application/cloudevents+json",
        body=b'{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"AAEC","a":1}',
    ),
    request("POST /requests/echo?timeout=1s", "prefer: wait=1", "accept: text/event-stream", body=b"7"),
    request("GET /topics/a.>", "last-event-id: 7"),
    request("GET /asyncapi.json", "authorization: Bearer tdg_a"),
    request("POST /topics/a", "content-type: application/json").replace(
        b"content-length: 0", b"transfer-encoding: chunked"
    )
    + b"3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n",
]


def mutated(request: bytes, chance: random.Random) -> bytes:
    """A request with a few bytes, or pieces, that are others, gone, or twice there."""
    made = bytearray(request)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(made)), chance.choice((1, 1, 1, 8, 40))
        piece = made[at : at + length]
        made[at : at + length] = chance.choice(
            (b"", piece * 2, chance.randbytes(length), b"\xff", b"%", b"{", b"9" * 20)
        )
        made = made or bytearray(b"\n")
    return bytes(made)


@pytest.mark.slow
async def test_ten_thousand_malformed_requests() -> None:
    app, statuses, requests = asgi(shop()), Counter[bytes](), iter(range(10_000))
    chance = random.Random(7)

    async def send(port: int) -> None:
        for number in requests:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with suppress(ConnectionError):
                writer.write(mutated(WELL_FORMED[number % len(WELL_FORMED)], chance))
                writer.write_eof()
                statuses[(await reader.readline())[9:12]] += 1
            writer.close()

    async with asyncio.timeout(100), app.state.site.gateway.app, listening(app) as url:
        port = int(url.rpartition(":")[2])
        await asyncio.gather(*(send(port) for _ in range(20)))
        site = app.state.site
        await until(lambda: not site.intake.held and not site.gateway.streams)
        async with httpx.AsyncClient(base_url=url, timeout=DEADLINE) as http:
            assert (await http.post("/topics/a", json=1)).status_code == 202
    assert {status for status in statuses if status.startswith(b"5")} <= {b"504"}, statuses
    assert {b"202", b"400", b"404", b"415", b"422"} <= set(statuses), statuses


def test_the_document_is_valid_and_complete() -> None:
    schemathesis.openapi.from_dict(described()).validate()
    publish = described()["paths"]["/topics/{topic}"]["post"]
    assert {p["name"] for p in publish["parameters"] if p["in"] == "query"} == set(OPTIONS)
    routes = {
        (route.path.replace("{pattern}", "{topic}"), method.lower())
        for route in asgi("memory://").routes
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD" and route.path.rpartition(".")[2] not in ("css", "js") and route.path not in ("/", "/docs")
    }
    assert routes == {(path, method) for path, methods in described()["paths"].items() for method in methods}


def test_what_it_refers_to_is_there() -> None:
    whole = described()
    for reference in re.findall(r'"#/([^"]+)"', json.dumps(whole)):
        assert reduce(lambda part, name: part[name], reference.split("/"), whole)


async def test_the_topics_are_told_as_asyncapi() -> None:
    app = shop()
    async with client(app) as http:
        told = (await http.get("/asyncapi.json")).json()
        jsonschema.Draft7Validator(json.loads(gzip.decompress(OFFICIAL.read_bytes()))).validate(told)
        host = http.base_url.netloc.decode()
        assert told["servers"] == {"default": {"host": host, "protocol": "http"}}
        assert told == document(app, {"": [{"host": host, "protocol": "http"}]})
        assert told["channels"]["orders.region.placed"]["address"] == "orders.{region}.placed"
        assert "memory" not in json.dumps(told)


async def test_topics_are_told_to_who_may_come() -> None:
    async with client(shop(), access=Access(anonymous=None)) as http:
        problem(await http.get("/asyncapi.json"), 401)
        assert (await http.get("/openapi.json")).status_code == 200
        assert (await http.get("/docs")).status_code == 200


async def test_the_page_shows_both_and_fetches_nothing_from_elsewhere() -> None:
    async with client(shop()) as http:
        page: Any = await http.get("/docs")
        script = await http.get("/docs.js")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "https://" not in page.text + script.text
        assert {"openapi.json", "asyncapi.json"} <= set(script.text.split('"'))


@pytest.mark.slow
async def test_the_page_in_a_browser() -> None:
    app, codes = shop(), "[...document.querySelectorAll('#{} summary > code')].map(found => found.textContent)"
    async with asyncio.timeout(100), app, listening(asgi(app)) as url, browsing(f"{url}/docs") as tab:
        assert await tab.until(codes.format("channels")) == ["orders.{region}.placed", "/requests/echo"]
        operations = [path for path, methods in described()["paths"].items() for _ in methods]
        assert await tab.until(codes.format("operations")) == operations
        await tab.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        text = await tab.run("document.body.innerText")
        assert '"total"' in text
        assert "Idempotency-Key" in text
        assert "undefined" not in text
        for scheme in ("light", "dark"):
            await tab.shape(400, 900, scheme)
            assert await tab.run("document.documentElement.scrollWidth") <= 400
        assert {requested.removeprefix(url).partition("?")[0] for requested in tab.requested} <= {
            "/docs", "/docs.js", "/docs.css", "/page.css", "/openapi.json", "/asyncapi.json", "/favicon.ico"
        }  # fmt: skip
        assert [said for said in tab.complaints if "favicon" not in said] == []
    bus = asgi(shop(), access=Access([ADA], anonymous=None))
    async with asyncio.timeout(100), listening(bus) as url, browsing(f"{url}/docs") as tab:
        await tab.until("!document.getElementById('token-form').hidden")
        await tab.type("token", "tdg_a")
        await tab.click("#token-form button")
        assert await tab.until("document.querySelectorAll('#channels details').length") == 2
