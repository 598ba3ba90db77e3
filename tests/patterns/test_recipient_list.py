"""Recipient lists: who gets what, all or none, and what they get is what came."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from msgspec import Struct
from tests.kernel.rig import virtual

from tidings import App, Backoff, Depends, Message, State, Table, Topic, transact
from tidings.kernel.errors import DuplicateGroup, InvalidOption
from tidings.patterns import multicast, recipient_list
from tidings.testing import running


class Order(Struct):
    id: int


orders = Topic("orders.placed", Order)
east, west = Topic("depots.east", Order), Topic("depots.west", Order)
any_depot = Topic("depots.{place}", Order)


def new_app() -> App:
    return App("shop", "memory://", backoff=Backoff(attempts=2, first=0.1))


@virtual
async def test_each_recipient_gets_what_came_and_nobody_else() -> None:
    app = new_app()

    @recipient_list(app, orders)
    async def depots(order: Order) -> list[Topic[Order]]:
        return [east, west, east][: order.id]

    async with running(app) as captured:
        body = b'{"id": 2, "not known here": true}'
        sent: Message[Any] = Message(
            "orders.placed", body, id="mine", key="k", type="orders.placed", headers=(("a", "b"),), priority=3
        )
        await app.publish(sent)
        await app.publish(orders(Order(0)))
        await app.publish(orders(Order(3), expires="1h"))
        await captured.idle()
        both = [await captured.messages(topic.name) for topic in (east, west)]
        assert await captured.dead() == []
        assert "shop.depots" in app.stats()
    assert [len(each) for each in both] == [2, 2]
    for first, second in both:
        assert (first.body, first.key, first.headers, first.priority) == (body, "k", (("a", "b"),), 3)
        assert (first.causation_id, first.correlation_id, first.source) == ("mine", "mine", "shop")
        assert second.expires_at == pytest.approx(second.time + 3600, abs=60)
    assert both[0][0].type == "depots.east"
    assert both[0][0].id != both[1][0].id


@virtual
async def test_all_or_none() -> None:
    """One bad recipient, and the good ones get nothing; when it is mended, each gets it once."""
    app = new_app()
    table: dict[str, Topic[Order]] = {"east": east, "west": any_depot}

    @recipient_list(app, orders, run="loop")
    def depots(order: Order) -> Iterator[Topic[Order]]:
        yield from table.values()

    async with running(app) as captured:
        await app.publish(orders(Order(1)))
        await captured.idle()
        [letter] = await captured.dead("shop.depots")
        assert letter.header("tdgreason") == "wrong return type"
        assert "no topic to publish to" in letter.header("tdgdetail")
        assert await captured.messages("depots.>") == []
        table["west"] = any_depot.bind(place="west")
        await app.publish(orders(Order(2)))
        await captured.idle()
        assert await captured.payloads(east) == await captured.payloads(west) == [Order(2)]


@virtual
async def test_a_function_takes_what_handlers_take_and_stays_callable() -> None:
    app = App("shop", "memory://", backoff=Backoff(attempts=1))

    def place() -> str:
        return "north"

    @recipient_list(app, "orders.{kind}", group="shop.by-kind")
    async def depots(
        message: Message[Order], kind: str, where: Annotated[str, Depends(place)]
    ) -> AsyncIterator[Topic[Any]]:
        for name in (kind, where):
            yield any_depot.bind(place=name)

    async with running(app) as captured:
        await app.publish(Topic("orders.gift", Order)(Order(1)))
        await captured.idle()
        assert [m.topic for m in await captured.messages("depots.>")] == ["depots.gift", "depots.north"]
        assert "shop.by-kind" in app.stats()
    assert [topic.name async for topic in depots(orders(Order(1)), "a", "b")] == ["depots.a", "depots.b"]


@virtual
async def test_recipients_may_be_records() -> None:
    app, table = new_app(), Table("depots", str)

    @recipient_list(app, orders)
    async def depots(order: Order, state: State) -> list[Topic[Order]]:
        return [any_depot.bind(place=name) for name in (await state.scan(table)).values()]

    async def add(state: State) -> None:
        state.put(table, str(len(await state.scan(table))), f"d{len(await state.scan(table))}")

    async with running(app) as captured:
        for number in range(3):
            await app.publish(orders(Order(number)))
            await captured.idle()
            await transact(app, add)
        assert [m.topic for m in await captured.messages("depots.>")] == ["depots.d0", "depots.d0", "depots.d1"]


@virtual
async def test_one_topic_or_none_is_no_list() -> None:
    app = new_app()

    @recipient_list(app, orders, run="loop")  # type: ignore[arg-type]
    def wrong(order: Order) -> Topic[Order] | None:
        return east if order.id else None

    async with running(app) as captured:
        await app.publish(orders(Order(1)))
        await app.publish(orders(Order(0)))
        await captured.idle()
        assert len(await captured.payloads(east)) == 1
        [letter] = await captured.dead()
    assert "returned None" in letter.header("tdgdetail")
    assert f"{__file__}:" in letter.header("tdgdetail")


@virtual
async def test_multicast() -> None:
    app = new_app()
    multicast(app, orders, east, west)
    async with running(app) as captured:
        await app.publish(orders(Order(1)))
        await captured.idle()
        assert await captured.payloads(east) == await captured.payloads(west) == [Order(1)]
        assert list(app.stats()) == ["shop.multicast_orders_placed"]


def test_what_cannot_be_is_refused() -> None:
    app = new_app()
    with pytest.raises(InvalidOption, match="no recipients"):
        multicast(app, orders)
    with pytest.raises(InvalidOption, match="a recipient cannot be"):
        multicast(app, orders, any_depot)
    multicast(app, orders, east)
    with pytest.raises(DuplicateGroup):
        multicast(app, orders, west)
    multicast(app, orders, west, group="shop.other")
    with pytest.raises(InvalidOption, match="one message at a time"):
        recipient_list(app, orders, run="process")
