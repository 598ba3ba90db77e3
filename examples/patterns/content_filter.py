"""Content Filter: what the statistics need of an order, and nothing that says who ordered."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Topic


class Line(Struct):
    sku: str
    count: int


class Order(Struct):
    id: str
    name: str
    card: str
    postcode: str
    lines: list[Line]


class Sale(Struct):
    region: str
    pieces: int


app = App("shop", "memory://")
orders = Topic("orders.placed", Order)
sales = Topic("statistics.sales", Sale)
counted: asyncio.Queue[Sale] = asyncio.Queue()


@app.on(orders, to=sales)
async def anonymous(order: Order) -> Sale:
    return Sale(order.postcode[:2], sum(line.count for line in order.lines))


@app.on(sales)
async def count(sale: Sale) -> None:
    counted.put_nowait(sale)


async def main() -> None:
    order = Order("o1", "Ada Lovelace", "5500-0000-0000-0004", "39100", [Line("nut", 3), Line("bolt", 4)])
    async with app:
        await app.publish(orders, order)
        sale = await counted.get()
    print(sale)
    assert sale == Sale("39", 7)


if __name__ == "__main__":
    asyncio.run(main())
