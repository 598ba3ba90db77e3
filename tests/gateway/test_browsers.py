"""Pages of other sites: turned away, whatever they send, unless their site is allowed."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tidings.gateway.browsers import Browsers

HERE = "127.0.0.1:8080"


async def _done(request: Request) -> Response:
    return PlainTextResponse("done")


async def _socket(socket: WebSocket) -> None:
    await socket.accept()


INNER = Starlette(routes=[Route("/", _done, methods=["GET", "POST"]), WebSocketRoute("/ws", _socket)])


def client(*origins: str, only_here: bool = False, host: str = HERE) -> httpx.AsyncClient:
    app = Browsers(INNER, origins, lambda: only_here)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=f"http://{host}")


async def post(to: httpx.AsyncClient, origin: str | None = None) -> httpx.Response:
    return await to.post("/", headers={"origin": origin} if origin is not None else {})


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "https://127.0.0.1:8081", "http://localhost:8080", "x", "http://[", "http://[::"],
)
async def test_pages_of_other_sites_are_turned_away(origin: str) -> None:
    answer = await post(client(), origin)
    assert (answer.status_code, answer.json()["title"]) == (403, "Forbidden")
    assert origin in answer.json()["mend"]


async def test_our_own_page_may_come_and_who_is_no_browser() -> None:
    assert (await post(client(), f"http://{HERE}")).text == "done"
    assert (await post(client())).text == "done"


@pytest.mark.parametrize(("origin", "answer"), [("http://evil.example", "close"), (f"http://{HERE}", "accept")])
async def test_a_page_of_another_site_opens_no_websocket(origin: str, answer: str) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", HERE.encode()), (b"origin", origin.encode())]
    scope = {"type": "websocket", "path": "/ws", "headers": headers, "server": ("127.0.0.1", 8080)}
    await Browsers(INNER, (), lambda: False)(scope, receive, send)
    assert sent[0]["type"] == f"websocket.{answer}"


async def test_allowed_sites_may_come_and_read() -> None:
    allowing = client("https://Shop.example/")
    answer = await post(allowing, "https://shop.example")
    assert (answer.text, answer.headers["access-control-allow-origin"]) == ("done", "https://shop.example")
    asked = {"origin": "https://shop.example", "access-control-request-method": "POST"}
    answer = await allowing.options("/", headers=asked | {"access-control-request-headers": "authorization"})
    assert (answer.status_code, answer.headers["access-control-allow-headers"]) == (200, "authorization")
    assert (await post(allowing, "https://other.example")).status_code == 403
    assert (await post(client("*"), "https://any.example")).text == "done"


async def test_without_that_no_page_is_told_that_it_may_read() -> None:
    assert "access-control-allow-origin" not in (await post(client(), f"http://{HERE}")).headers


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "10.0.0.1", "[", "127.0.0.1.nip.io"]
)
async def test_a_name_that_was_turned_to_this_machine_is_no_name_of_it(host: str) -> None:
    for only_here, status in ((True, 403), (False, 200)):
        answer = await client(only_here=only_here).get("/", headers={"host": host})
        assert answer.status_code == status


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.1.2.3:1", "[::1]:8080", "a.localhost"]
)
async def test_names_of_this_machine(host: str) -> None:
    assert (await client(only_here=True).get("/", headers={"host": host})).text == "done"


async def test_behind_a_proxy_the_site_is_named() -> None:
    assert (await client("https://bus.example", only_here=True, host="bus.example").get("/")).text == "done"
