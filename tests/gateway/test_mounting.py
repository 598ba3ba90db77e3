"""``asgi(...)`` inside another app: its routes, its lifespan, its bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from tidings import App, Topic
from tidings.gateway.access import Access
from tidings.gateway.asgi import asgi

from .over_http import DEADLINE, asking, listening, problem

placed = Topic("orders.placed", int)


async def own(request: Request) -> Response:
    return PlainTextResponse("mine")


async def test_mounted_it_opens_its_bus_at_the_first_request(tmp_path: Path) -> None:
    bus = asgi(f"sqlite:///{tmp_path}/bus.db")
    outer = Starlette(routes=[Route("/", own), Mount("/bus", bus)])
    async with (
        asyncio.timeout(DEADLINE),
        listening(outer) as url,
        asking(url) as http,
    ):
        assert not bus.state.site.gateway.opened
        assert (await http.get("/")).text == "mine"
        answers = await asyncio.gather(*(http.post("/bus/topics/orders.placed", json=n) for n in range(5)))
        assert [answer.status_code for answer in answers] == [202] * 5
        assert (await http.post("/topics/orders.placed", json=1)).status_code == 404
        problem(await http.post("/bus/topics/orders.*", json=1), 422)
        assert (await http.get("/bus/openapi.json")).json()["servers"] == [{"url": "/bus"}]
        assert (await http.get("/bus/asyncapi.json")).json()["servers"]["default"]["pathname"] == "/bus"
        assert "docs.js" in (await http.get("/bus/docs")).text
        await bus.state.site.gateway.close()


async def test_the_outer_app_may_run_its_lifespan() -> None:
    bus = asgi("memory://")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with bus.router.lifespan_context(bus):
            yield

    outer = Starlette(routes=[Mount("/bus", bus)], lifespan=lifespan)
    async with asyncio.timeout(DEADLINE):
        async with listening(outer) as url, asking(url) as http:
            assert bus.state.site.gateway.opened
            assert (await http.post("/bus/topics/a", json=1)).status_code == 202
        assert not bus.state.site.gateway.opened


async def test_it_shares_the_bus_of_an_app_with_handlers() -> None:
    app, came = App("shop", "memory://"), asyncio.Queue[int]()

    @app.on(placed)
    async def take(number: int) -> None:
        await came.put(number)

    @app.answer("double")
    async def double(number: int) -> int:
        return 2 * number

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with app:
            yield

    async def seen(request: Request, call_next: object) -> Response:
        answer: Response = await call_next(request)  # type: ignore[operator]
        answer.headers["x-seen"] = "yes"
        return answer

    around = [Middleware(GZipMiddleware), Middleware(BaseHTTPMiddleware, dispatch=seen)]
    outer = Starlette(routes=[Mount("/bus", asgi(app))], middleware=around, lifespan=lifespan)
    async with (
        asyncio.timeout(DEADLINE),
        listening(outer) as url,
        asking(url) as http,
    ):
        answer = await http.post("/bus/topics/orders.placed", json=7)
        assert (answer.status_code, answer.headers["x-seen"], await came.get()) == (202, "yes", 7)
        assert (await http.post("/bus/requests/double", json=21)).json() == 42
        await app.publish(placed, 8)  # its own publishing goes on beside
        assert await came.get() == 8
        assert "orders.placed" in (await http.get("/bus/asyncapi.json")).json()["channels"]


async def test_beside_an_app_of_another_framework() -> None:
    """As in a Django project's ``asgi.py``: told apart by path, nobody runs a lifespan."""
    bus = asgi("memory://")

    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/bus/"):
            await bus({**scope, "root_path": "/bus"}, receive, send)
        else:
            await PlainTextResponse("mine")(scope, receive, send)

    async with asyncio.timeout(DEADLINE), listening(either, "off") as url, asking(url) as http:
        assert (await http.get("/")).text == "mine"
        assert (await http.post("/bus/topics/a", json=1)).status_code == 202
        assert (await http.get("/bus/openapi.json")).json()["servers"] == [{"url": "/bus"}]
        await bus.state.site.gateway.close()


@pytest.mark.parametrize(
    ("more", "status"), [({}, 403), ({"access": Access()}, 202), ({"origins": ("http://site.example:8080",)}, 202)]
)
async def test_without_access_it_answers_to_names_of_this_machine(more: dict[str, Any], status: int) -> None:
    """So that no page whose name was turned to this machine (DNS rebinding) does what everybody may."""
    bus = asgi("memory://", **more)
    for host, expected in (("site.example", status), ("localhost", 202)):
        url = f"http://{host}:8080"
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=bus), base_url=url) as http:
            assert (await http.post("/topics/a", json=1, headers={"origin": url})).status_code == expected
    await bus.state.site.gateway.close()
