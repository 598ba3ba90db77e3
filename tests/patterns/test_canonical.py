"""Canonical Data Model: whatever version or foreign format comes, handlers see the newest."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from tests.transports.consuming import until

from tidings import App, Backoff, Message, Topic
from tidings.kernel.errors import InvalidHandler, InvalidName, InvalidOption
from tidings.kernel.transport import Inspectable
from tidings.middleware import instrument
from tidings.patterns import Schema

HEADER = "schema-version"


class Line(Struct):
    sku: str
    count: int = 1


class OrderV2(Struct):
    id: str
    sku: str
    currency: str


class Order(Struct):
    id: str
    lines: list[Line]
    currency: str


orders = Topic("orders.placed", Order)
raw: Topic[Any] = Topic("orders.placed")
checked = Topic("audit.orders", Order)


def model(**options: Any) -> Schema:
    """Versions 1 to 3, and what the ERP calls an order."""
    order = Schema("order", 3, **options)

    @order.upcast(1, 2)
    def with_currency(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "currency": "EUR"}

    @order.upcast(2, 3)
    def with_lines(old: OrderV2) -> Order:
        return Order(old.id, [Line(old.sku)], old.currency)

    @order.translate("erp-order/7", 2)
    def from_erp(row: str) -> OrderV2:
        return OrderV2(*row.split(";"))

    return order


def said(version: str, data: Any, **more: Any) -> Message[Any]:
    return raw(data, headers={HEADER: version}, **more)


OLD: list[Message[Any]] = [
    said("order/1", {"id": "a", "sku": "nut"}),
    said("order/2", {"id": "a", "sku": "nut", "currency": "EUR"}),
    said("order/3", {"id": "a", "lines": [{"sku": "nut"}], "currency": "EUR"}),
    said("erp-order/7", "a;nut;EUR"),
]
NEWEST = Order("a", [Line("nut")], "EUR")

each_bus = pytest.mark.parametrize("scheme", ["memory", "sqlite"])


def url(scheme: str, folder: Path) -> str:
    return "memory://" if scheme == "memory" else f"sqlite:///{folder / 'bus.db'}"


async def dead(app: App, group: str) -> Message[Any]:
    """The first dead letter of a group, once it is there."""
    bus = app.bus()
    assert isinstance(bus, Inspectable)
    async with asyncio.timeout(20):
        while not (letters := await bus.peek(f"_dead.{group}")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return letters[0].message


@each_bus
@pytest.mark.parametrize("batch", [False, True])
async def test_every_known_version_comes_as_the_newest(scheme: str, batch: bool, tmp_path: Path) -> None:
    app = App("shop", url(scheme, tmp_path), middleware=[model()])
    came: list[Message[Order]] = []
    if batch:

        @app.on(orders, batch=10)
        async def bill_many(messages: list[Message[Order]]) -> None:
            came.extend(messages)

    else:

        @app.on(orders)
        async def bill(message: Message[Order]) -> None:
            came.append(message)

    async with app:
        await app.publish_many([*OLD, orders(NEWEST)])
        await until(lambda: len(came) == 5)
    assert [message.data for message in came] == [NEWEST] * 5
    assert sorted(message.header(HEADER) for message in came) == ["", *["order/3"] * 4]


async def test_other_headers_stay() -> None:
    message: Message[Any] = Message(
        "orders.placed", b'{"id":"a","sku":"nut"}', headers=(("x", "1"), (HEADER, "order/1"), ("y", "2"))
    )
    assert (await model().incoming(message)).headers == (("x", "1"), ("y", "2"), (HEADER, "order/3"))


async def test_what_is_sent_on_its_topics_is_stamped() -> None:
    """What is published and what handlers return; a stamp of one's own stays, and other topics are left alone."""
    app = App("shop", "memory://")
    came: list[Message[Any]] = []

    @app.on(orders)
    async def check(order: Order) -> list[Message[Order]]:
        return [checked(order), Topic("orders.checked", Order)(order)]

    @app.on("*.*", group="shop.see")
    async def see(message: Message[Any]) -> None:
        came.append(message)

    instrument(app, model(topics="orders.>", unversioned=1))
    async with app:
        await app.publish(orders, NEWEST)
        await app.publish_many([said("order/1", {"id": "a", "sku": "nut"})])
        bus = app.bus()
        assert isinstance(bus, Inspectable)
        await until(lambda: len(came) == 6)
        sent = [found.message for found in await bus.peek(">")]
    assert sorted((message.topic, message.header(HEADER)) for message in sent) == [
        *[("audit.orders", "")] * 2,
        *[("orders.checked", "order/3")] * 2,
        ("orders.placed", "order/1"),
        ("orders.placed", "order/3"),
    ]


async def test_what_has_no_stamp_is_of_the_version_it_is_said_to_be() -> None:
    order = model(topics="orders.>", unversioned=1)
    bare: Message[Any] = Message("orders.placed", b'{"id":"a","sku":"nut"}')
    assert (await order.incoming(bare)).header(HEADER) == "order/3"
    elsewhere: Message[Any] = Message("audit.orders", bare.body)
    assert await order.incoming(elsewhere) is elsewhere
    newest = model(topics="orders.>")
    assert await newest.incoming(bare) is bare


async def test_two_schemas_on_one_topic_leave_each_other_alone() -> None:
    order, customer = model(), Schema("customer", 2)
    customer.upcast(1, 2)(lambda old: {**old, "country": "IT"})
    told: Message[Any] = Message("crm.changed", b'{"id":"c"}', headers=((HEADER, "customer/1"),))
    assert await order.incoming(told) is told
    assert (await customer.incoming(told)).body == b'{"id":"c","country":"IT"}'


async def test_old_versions_come_from_old_publishers() -> None:
    assert Schema("order", 2).stamped(raw({})).header(HEADER) == "order/2"
    assert Schema("order", 3).stamped(Schema("order", 2).stamped(raw({}))).headers == ((HEADER, "order/3"),)


@pytest.mark.parametrize("version", ["order/4", "order/0", "order/x", "order/"])
async def test_a_version_that_is_not_known_is_a_dead_letter_that_can_be_replayed(version: str) -> None:
    app = App("shop", "memory://", middleware=[model()])

    @app.on(orders)
    async def bill(order: Order) -> None: ...

    async with app:
        await app.publish(said(version, {"id": "a"}))
        letter = await dead(app, "shop.bill")
    assert letter.header("tdgreason") == "undecodable"
    assert letter.header(HEADER) == version
    assert f"nothing here makes '{version}' to 'order/3'" in letter.header("tdgdetail")


async def test_an_old_body_is_checked_by_its_own_type() -> None:
    app = App("shop", "memory://", middleware=[model()], backoff=Backoff(attempts=1))

    @app.on(orders)
    async def bill(order: Order) -> None: ...

    async with app:
        await app.publish(said("order/2", {"id": "a", "sku": 7, "currency": "EUR"}))
        letter = await dead(app, "shop.bill")
    assert letter.header("tdgreason") == "undecodable"
    assert "no OrderV2" in letter.header("tdgdetail")


async def test_a_gap_is_noticed_when_the_app_opens() -> None:
    order = Schema("order", 3)
    order.upcast(1, 2)(lambda old: old)
    app = App("shop", "memory://", middleware=[order])

    @app.on(orders)
    async def bill(order: Order) -> None: ...

    with pytest.raises(InvalidOption, match="nothing makes 'order/2' to 'order/3'"):
        async with app:
            pass
    app = App("shop", "memory://", middleware=[Schema("order", 2, topics="orders.>", unversioned=1)])
    app.on(orders, batch=3)(lambda orders: None)
    with pytest.raises(InvalidOption, match="nothing makes 'order/1' to 'order/2'"):
        async with app:
            pass


def test_what_means_nothing_is_refused() -> None:
    for name, version in [("", 1), ("a/b", 1), ("café", 1), ("order", 0), ("order", "3")]:
        with pytest.raises(InvalidOption):
            Schema(name, version)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="has no version 4"):
        Schema("order", 3, topics="orders.>", unversioned=4)
    with pytest.raises(InvalidOption, match="goes with topics="):
        Schema("order", 3, unversioned=1)
    with pytest.raises(InvalidName):
        Schema("order", 3, topics="orders..x")
    order = model()
    for old, new in [(1, 1), (2, 1), (0, 1), ("1", 2)]:
        with pytest.raises(InvalidOption, match="is no step up"):
            order.upcast(old, new)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="has no version 4"):
        order.upcast(3, 4)
    with pytest.raises(InvalidOption, match="'order/1' is translated already") as caught:
        order.upcast(1, 3)
    assert __file__ in caught.value.why


def test_what_cannot_translate_is_refused() -> None:
    async def slow(old: Any) -> Any: ...
    def two(old: Any, more: int) -> Any: ...
    def whole(old: Message[Any]) -> Any: ...
    def nothing() -> Any: ...
    def odd(old: asyncio.Event) -> Any: ...

    for fn in (slow, two, whole, nothing, odd):
        with pytest.raises(InvalidHandler) as caught:
            Schema("order", 2).upcast(1, 2)(fn)  # type: ignore[type-var]
        assert caught.value.where.startswith(__file__)
