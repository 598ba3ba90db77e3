"""Canonical Data Model: orders of three versions are in flight at once; the handler knows the newest and no other."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Struct

from tidings import App, Topic
from tidings.middleware import instrument
from tidings.patterns import Schema


class Line(Struct):
    sku: str
    count: int


class Order(Struct):
    id: str
    lines: list[Line]
    currency: str


app = App("shop", "memory://")
orders = Topic("orders.placed", Order)
billed: asyncio.Queue[Order] = asyncio.Queue()

order_schema = Schema("order", 3, topics="orders.placed", unversioned=1)  # version 1 did not say so
instrument(app, order_schema)


@order_schema.upcast(1, 2)
def with_currency(old: dict[str, Any]) -> dict[str, Any]:
    return {**old, "currency": "EUR"}


@order_schema.upcast(2, 3)
def with_lines(old: dict[str, Any]) -> Order:
    return Order(old["id"], [Line(old["sku"], 1)], old["currency"])


@app.on(orders)
async def bill(order: Order) -> None:
    billed.put_nowait(order)


async def main() -> None:
    old_orders: Topic[Any] = Topic("orders.placed")
    async with app:
        await app.publish(orders, Order("o3", [Line("nut", 2)], "CHF"))
        await app.publish(
            old_orders, {"id": "o2", "sku": "nut", "currency": "USD"}, headers={"schema-version": "order/2"}
        )
        await app.publish(old_orders, {"id": "o1", "sku": "nut"}, headers={"schema-version": "order/1"})
        found = {order.id: order for order in [await billed.get() for _ in range(3)]}
    print(*found.values(), sep="\n")
    assert found == {
        "o1": Order("o1", [Line("nut", 1)], "EUR"),
        "o2": Order("o2", [Line("nut", 1)], "USD"),
        "o3": Order("o3", [Line("nut", 2)], "CHF"),
    }


if __name__ == "__main__":
    asyncio.run(main())
