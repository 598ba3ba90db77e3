"""Recipient List: who gets a message is decided for each message, from a table that may change while it runs."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Topic
from tidings.patterns import recipient_list


class Order(Struct):
    id: int
    abroad: bool = False


app = App("shop", "memory://")
orders = Topic("orders.placed", Order)
warehouse, customs = Topic("warehouse.orders", Order), Topic("customs.orders", Order)
everywhere: dict[str, Topic[Order]] = {"warehouse": warehouse}
came: asyncio.Queue[tuple[str, int]] = asyncio.Queue()


@recipient_list(app, orders)
async def interested(order: Order) -> list[Topic[Order]]:
    return [*everywhere.values(), *([customs] if order.abroad else [])]


@app.on(warehouse)
async def pack(order: Order) -> None:
    came.put_nowait(("pack", order.id))


@app.on(customs)
async def declare(order: Order) -> None:
    came.put_nowait(("declare", order.id))


@app.on("audit.orders")
async def audit(order: Order) -> None:
    came.put_nowait(("audit", order.id))


async def main() -> None:
    async with app:
        await app.publish(orders, Order(1))
        first = {await came.get()}
        everywhere["audit"] = Topic("audit.orders", Order)
        await app.publish(orders, Order(2, abroad=True))
        second = {await came.get() for _ in range(3)}
    print(first, second)
    assert first == {("pack", 1)}
    assert second == {("pack", 2), ("audit", 2), ("declare", 2)}


if __name__ == "__main__":
    asyncio.run(main())
