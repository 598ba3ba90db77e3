"""EIP Channel Adapter for HTTP: what a URL has is published when it has changed, and asked for with its marks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from tests.transports.consuming import until

from tidings import App, Message, Topic
from tidings.kernel.errors import InvalidOption
from tidings.patterns import poll_http


class Rate(Struct):
    cents: int


rates = Topic("rates.seen", Rate)
pages = Topic("pages.seen", str)
files = Topic("files.seen", bytes)


class Site(ThreadingHTTPServer):
    """A web server whose one page is what ``body`` says; ``marked``: it knows what the client has already."""

    daemon_threads = True

    def __init__(self) -> None:
        self.body, self.type, self.status, self.marked, self.retry = b"", "application/json", 200, True, ""
        self.asked: list[dict[str, str]] = []
        self.answered: list[int] = []
        super().__init__(("127.0.0.1", 0), Page)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/rate"

    def has(self, body: bytes, type: str = "application/json") -> None:
        self.body, self.type = body, type


class Page(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        site = self.server
        site.asked.append(dict(self.headers))
        mark = f'"{hash(site.body)}"'
        same = site.marked and self.headers.get("If-None-Match") == mark
        status = 304 if same and site.status == 200 else site.status
        self.send_response(status)
        if site.retry:
            self.send_header("Retry-After", site.retry)
        if site.marked:
            self.send_header("ETag", mark)
        body = site.body if status == 200 else b""
        self.send_header("Content-Type", site.type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        site.answered.append(status)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def polling(to: Topic[Any], url: str, bus: str = "memory://", **options: Any) -> tuple[App, list[Message[Any]]]:
    app, came = App("office", bus), list[Message[Any]]()
    poll_http(app, to, url, **{"every": "10ms", **options})

    @app.on("*.>", concurrency=1)
    async def see(message: Message[Any]) -> None:
        came.append(message)

    return app, came


async def asked(site: Site, more: int = 2) -> None:
    """So often again, answered."""
    wanted = len(site.answered) + more
    await until(lambda: len(site.answered) >= wanted, "asked again")


@pytest.mark.parametrize("marked", [True, False])
async def test_each_change_once(site: Site, marked: bool) -> None:
    site.marked = marked
    site.has(b'{"cents": 1}')
    app, came = polling(rates, site.url)
    async with app:
        await until(lambda: len(came) == 1, "the first came")
        await asked(site)
        for n, cents in enumerate((2, 1), 2):
            site.has(b'{"cents": %d}' % cents)
            await until(lambda: len(came) == n, "the change came")  # noqa: B023
            await asked(site)
    assert [message.data for message in came] == [{"cents": 1}, {"cents": 2}, {"cents": 1}]
    assert len({message.id for message in came}) == 3
    assert (304 in site.answered) == marked


async def test_a_restart_asks_with_what_was_seen(site: Site, tmp_path: Path) -> None:
    site.has(b'{"cents": 1}')
    bus = f"sqlite:///{tmp_path}/bus.db"
    app, came = polling(rates, site.url, bus)
    async with app:
        await until(lambda: came, "it came")
    asked_before = len(site.asked)
    app, again = polling(rates, site.url, bus)
    async with app:
        await asked(site)
    assert again == []
    assert all("If-None-Match" in headers for headers in site.asked[asked_before:])


@pytest.mark.parametrize(
    ("to", "body", "type", "data"),
    [
        (pages, "Grüße".encode(), "text/html; charset=utf-8", "Grüße"),
        (files, b"\xff\x00", "image/png", b"\xff\x00"),
        (Topic("any.seen"), b"[1, null]", "application/json", [1, None]),
    ],
)
async def test_the_payload_is_the_body(site: Site, to: Topic[Any], body: bytes, type: str, data: Any) -> None:
    site.has(body, type)
    app, _ = polling(to, site.url, headers={"X-Token": "t"})
    came: list[Any] = []

    @app.on(to)
    async def take(payload: Any) -> None:
        came.append(payload)

    async with app:
        await until(lambda: came, "it came")
    assert came == [data]
    assert site.asked[0]["X-Token"] == "t"


async def test_made_makes_the_message(site: Site) -> None:
    site.has(b'{"cents": 7}')
    bound = Topic("rates.{bank}.seen", Rate)
    app, came = polling(bound, site.url, made=lambda rate: bound.bind(bank="b")(rate, key=str(rate.cents)))
    async with app:
        await until(lambda: came, "it came")
    assert (came[0].topic, came[0].key) == ("rates.b.seen", "7")


@pytest.mark.parametrize("trouble", ["status", "body"])
async def test_a_server_that_fails_is_left_alone_for_a_while(
    site: Site, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    site.has(b'{"cents": "many"}' if trouble == "body" else b'{"cents": 1}')
    site.status = 503 if trouble == "status" else 200
    app, came = polling(rates, site.url)
    async with app:
        await until(lambda: "got no answer, trying again in 1 s" in caplog.text, "it has noticed")
        site.status = 200
        site.has(b'{"cents": 1}')
        await until(lambda: came, "it came")
    assert len(came) == 1


async def test_it_waits_as_long_as_the_server_asks(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.status, site.retry = 429, "120"
    app, _ = polling(rates, site.url)
    async with app:
        await until(lambda: "trying again in 120 s: HTTPError" in caplog.text, "it says so")


async def test_nobody_there(caplog: pytest.LogCaptureFixture) -> None:
    app, _ = polling(rates, "http://127.0.0.1:9/")
    async with app:
        await until(lambda: "URLError" in caplog.text, "it says so")


@pytest.mark.parametrize(
    ("to", "url", "options", "said"),
    [
        (rates, "file:///etc/passwd", {}, "no URL to poll"),
        (Topic("rates.{bank}.seen", Rate), "http://x/", {}, "cannot be published to"),
        (rates, "http://x/", {"timeout": "soon"}, "timeout cannot be 'soon'"),
    ],
)
def test_refused_at_the_line(to: Topic[Any], url: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        poll_http(App("office", "memory://"), to, url, **options)
