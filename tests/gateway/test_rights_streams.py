"""Each right over a WebSocket; and who may no longer come does not stay either: events, WebSocket, gRPC."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tidings import App
from tidings.gateway.access import Access
from tidings.gateway.rights import EVERYTHING
from tidings.kernel.transport import Manageable, Subscription
from tidings.transports.grpc import GRPC

from .serving import DEADLINE, known
from .streaming import staged
from .test_rights_http import CLIENTS, RIGHTS, shop
from .test_rpc import client, opened, serving

SAYS: dict[str, tuple[set[str], dict[str, Any]]] = {
    "publish": ({"publish"}, {"publish": {"id": "1", "topic": "orders.placed", "data": 1}}),
    "subscribe": ({"subscribe", "group"}, {"subscribe": {"id": "2", "pattern": "orders.*"}}),
    "group": ({"group"}, {"subscribe": {"id": "3", "pattern": "orders.*", "group": "billing"}}),
    "request": ({"request"}, {"request": {"id": "4", "service": "prices.quote", "data": "tea"}}),
}


def socket(url: str, token: str) -> connect:
    return connect(url.replace("http", "ws") + "/ws", additional_headers={"authorization": f"Bearer {token}"})


async def answer(connection: ClientConnection, says: dict[str, Any]) -> str:
    """The name of what the server says to it."""
    await connection.send(json.dumps(says))
    async with asyncio.timeout(DEADLINE):
        (said,) = json.loads(await connection.recv())
    return str(said)


async def test_each_right_over_a_websocket() -> None:
    app = shop()
    async with app, staged(app, Access(CLIENTS, None)) as stage:
        for name in RIGHTS:
            async with socket(stage.url, name) as connection:
                for action, (allowed, says) in SAYS.items():
                    said = await answer(connection, says)
                    assert (said != "error") == (name in allowed), (name, action, said)
        for wrong in ("", "unknown"):
            with pytest.raises(InvalidStatus, match="401"):
                await socket(stage.url, wrong)


async def test_who_is_revoked_loses_its_streams() -> None:
    few, more = known("till", subscribe=("a",)), known("till", subscribe=("a", "b"))
    stays = known("stays", subscribe=("a",))
    access = Access([few, stays], EVERYTHING)
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(staged(App("gateway", "memory://"), access))
        http = await stack.enter_async_context(stage.client("till"))
        gone = await stack.enter_async_context(socket(stage.url, "till"))
        kept = await stack.enter_async_context(socket(stage.url, "stays"))
        lines = (await stack.enter_async_context(http.stream("GET", "/topics/a"))).aiter_lines()
        await anext(lines)
        assert stage.gateway.streams == 3
        access.admit([more, stays], EVERYTHING)  # other rights: it has to come again
        async with asyncio.timeout(DEADLINE):
            async for _ in lines:
                pass
            with pytest.raises(ConnectionClosed):
                await gone.recv()
        assert await answer(kept, {"subscribe": {"id": "1", "pattern": "a"}}) != "error"
        assert (await _status(http)) == 200
        access.admit([stays], EVERYTHING)
        assert (await _status(http)) == 401


async def _status(http: httpx.AsyncClient) -> int:
    async with http.stream("GET", "/topics/a") as stream:
        return stream.status_code


async def test_who_is_revoked_loses_its_calls(tmp_path: Path) -> None:
    access = Access([known("till", subscribe=("a",))], None)
    async with serving("memory", tmp_path, access) as (server, gateway), client(server, "till") as stub:
        call = await opened(stub, pattern="a")
        assert gateway.streams == 1
        access.admit([], None)
        with pytest.raises(Exception, match="UNAUTHENTICATED"):
            await asyncio.wait_for(call.read(), DEADLINE)
        assert access.watched == {}


async def test_what_a_member_does_to_groups_is_written_down(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tidings.audit")
    access = Access([known("operator", member=True)], None)
    async with serving("sqlite", tmp_path, access) as (server, _):
        bus = GRPC.from_url(f"grpc://{server.address}?token=operator").transport()
        await bus.open(lambda event: None)
        consumer = await bus.subscribe(Subscription(app="x", pattern="a", group="x.a"))
        await consumer.close()
        assert isinstance(bus, Manageable)
        await bus.rename("x.a", "x.b")
        await bus.seek("x.b", 0.0)
        await bus.drop("x.b")
        await bus.close()
    assert [record.message for record in caplog.records if record.name == "tidings.audit"] == [
        "operator renamed the group x.a: x.b",
        "operator let the group x.b read again since 0.000000",
        "operator dropped the group x.b",
    ]
