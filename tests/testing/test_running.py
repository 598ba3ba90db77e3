"""``tidings.testing.running``, as a user's test would use it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Struct

from tidings import App, Message, Topic
from tidings.testing import run_virtual, running


class Order(Struct):
    id: int


class Invoice(Struct):
    order: int


placed, invoiced = Topic("orders.placed", Order), Topic("billing.invoiced", Invoice)


def shop() -> App:
    app = App("shop", "sqlite:///never-opened.db")
    failed: set[int] = set()

    @app.on(placed)
    async def bill(order: Order) -> Message[Invoice]:
        if order.id == 13:
            raise ValueError("unlucky")
        if order.id not in failed:
            failed.add(order.id)
            raise ValueError("the first time")
        return invoiced(Invoice(order.id))

    return app


def test_everything_is_settled_and_captured() -> None:
    async def main() -> None:
        app = shop()
        async with running(app) as captured:
            await app.publish(placed, Order(1), delay="2h")
            await app.publish_many([placed(Order(2)), placed(Order(13))])
            await captured.idle(timeout=86_400)
            assert await captured.payloads(invoiced) == [Invoice(2), Invoice(1)]
            (letter,) = await captured.dead("shop.bill")
            assert letter.header("tdgerror") == "ValueError"
            assert [m.topic for m in await captured.messages("orders.*")] == ["orders.placed"] * 3
        assert app.urls == {"": "sqlite:///never-opened.db"}

    run_virtual(main())


def test_idle_says_what_is_left() -> None:
    async def main() -> None:
        app = shop()
        async with running(app) as captured:
            await app.publish(placed, Order(1), delay="2h")
            with pytest.raises(TimeoutError, match="delayed"):
                await captured.idle(timeout=5)

    run_virtual(main())


def test_without_handlers() -> None:
    async def main() -> None:
        app = shop()
        async with running(app, consume=False) as captured:
            await app.publish(placed, Order(1))
            assert await captured.payloads(placed) == [Order(1)]
            assert not await captured.payloads(invoiced)

    run_virtual(main())


def test_further_buses_are_memory_too() -> None:
    seen: list[Any] = []

    async def main() -> None:
        app = App("edge", "sqlite:///x.db", devices="sqlite:///y.db")

        @app.on(Topic("sensors.up", int, bus="devices"))
        async def up(value: int) -> None:
            seen.append(value)

        async with running(app) as captured:
            await app.publish(Topic("sensors.up", int, bus="devices"), 7)
            await captured.idle()
        assert seen == [7]

    run_virtual(main())
