"""Message stores: every copy once, found by time, topic, id and correlation, and removed in time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.engines import engine_bus
from tests.kernel.rig import virtual

from tidings import App, Message, Topic
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import InvalidName, InvalidOption
from tidings.patterns import MessageStore
from tidings.testing import running
from tidings.topology import topology

placed, paid, other = Topic("orders.placed", dict[str, int]), Topic("orders.paid", int), Topic("other", int)
raw = Topic("orders.raw", bytes)


def bodies(messages: list[Message[Any]]) -> list[bytes]:
    return [message.body for message in messages]


@virtual
async def test_each_message_is_found_in_every_way() -> None:
    app = App("shop", "memory://")
    store = MessageStore(app, "history", "orders.>", other)

    @app.on(placed)
    async def bill(order: dict[str, int]) -> Message[int]:
        return paid(order["n"])

    async with running(app) as captured:
        began = current_clock().now()
        for n in range(3):
            await app.publish(placed({"n": n}, key="k", headers={"h": "v"}, id=f"id/{n}"))
            await captured.idle()
            await asyncio.sleep(100)
        await app.publish(raw(b"\xff\x00", id="raw"))
        await app.publish(other(7))
        await captured.idle()
        kept = await store.get("id/1")
        assert kept is not None
        assert (kept.topic, kept.body, kept.key, kept.header("h")) == ("orders.placed", b'{"n":1}', "k", "v")
        assert kept.source == "shop"
        assert kept.time == pytest.approx(began + 100, abs=1)
        assert await store.get("id/9") is None
        published = [stored.message for stored in await app.bus().peek(">")]  # type: ignore[attr-defined]
        assert sorted(await store.find(), key=repr) == sorted(published, key=repr)
        assert bodies(await store.find(topic="orders.paid")) == [b"0", b"1", b"2"]
        assert bodies(await store.find(topic="orders.*", since=began + 50, until=began + 150)) == [b'{"n":1}', b"1"]
        assert bodies(await store.find(topic="orders.paid", since=began + 50, limit=1)) == [b"1"]
        assert bodies(await store.find(correlation="id/2")) == [b"2"]
        assert bodies(await store.find(correlation="id/2", topic="other")) == []
        assert bodies(await store.find(topic="orders.raw")) == [b"\xff\x00"]
        assert await captured.dead() == []


@virtual
async def test_what_is_old_is_removed() -> None:
    app = App("shop", "memory://")
    store, short = MessageStore(app, "history", "orders.>"), MessageStore(app, "short", "orders.>", keep="1h")
    async with running(app) as captured:
        bus: Any = app.bus()
        for n in range(3):
            await app.publish(paid(n))
            await captured.idle()
            await asyncio.sleep(3000)
        await app.publish(paid(3))
        await captured.idle()
        assert bodies(await store.find()) == [b"0", b"1", b"2", b"3"]
        await asyncio.sleep(30)
        await app.publish(paid(4))  # with what is settled next, what has expired is removed
        await captured.idle()
        await asyncio.sleep(30)
        assert bodies(await short.find()) == [b"2", b"3", b"4"]
        assert bodies(await short.find(topic="orders.paid")) == [b"2", b"3", b"4"]
        third = (await store.find())[2].time
        assert await store.purge(third) == 2
        assert await short.purge(third + 1) == 1
        assert bodies(await store.find()) == [b"2", b"3", b"4"]
        assert bodies(await short.find()) == [b"3", b"4"]
        assert {info.name: info.records for info in await bus.tables()} == {
            "history": 3,
            "history.ids": 3,
            "history.topics": 3,
            "short": 2,
            "short.ids": 2,
            "short.topics": 2,
        }


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in ("postgres", "nats")] + ["sqlite"]
)
async def test_many_and_page_by_page(kind: str, tmp_path: Path) -> None:
    file: Any = f"sqlite:///{tmp_path}/shop.db"
    if kind == "nats":  # which keeps no records
        app = App("shop", engine_bus(kind).options(3.0), state=file)
    else:
        app = App("shop", file if kind == "sqlite" else engine_bus(kind).options(3.0))
    store = MessageStore(app, "history", paid)
    async with app:
        await app.publish_many([paid(n) for n in range(2_500)])
        async with asyncio.timeout(60):
            while len(await store.find(limit=10_000)) < 2_500:  # noqa: ASYNC110  # a bus tells nobody
                await asyncio.sleep(0.05)
        found = await store.find(limit=10_000)
        assert sorted(int(body) for body in bodies(found)) == list(range(2_500))
        assert await store.find(topic="orders.paid", limit=10_000) == found
        assert [message.time for message in found] == sorted(message.time for message in found)
        assert await store.purge(found[-1].time + 1) == 2_500
        assert await store.find() == []


def test_what_cannot_be_is_refused() -> None:
    app = App("shop", "memory://")
    with pytest.raises(InvalidOption, match="stores nothing"):
        MessageStore(app, "history")
    with pytest.raises(InvalidName, match="reserved"):
        MessageStore(app, "history", "_dead.>")
    with pytest.raises(InvalidOption, match="keep cannot be"):
        MessageStore(app, "history", "orders.>", keep="soon")


def test_it_is_shown_as_what_it_is() -> None:
    app = App("shop", "memory://")
    MessageStore(app, "history", "orders.>", paid)
    nodes = [node for node in topology(app).nodes.values() if node.kind == "handler"]
    assert [node.role for node in nodes] == ["message store"] * 2
    assert [node.note for node in nodes] == ["shop.history-orders_%3E", "shop.history-orders_paid"]
