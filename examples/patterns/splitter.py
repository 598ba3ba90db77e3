"""Splitter: an order becomes its lines, each a message of its own that says which part of how many it is."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Message, Topic
from tidings.patterns import position, splitter


class Line(Struct):
    sku: str
    count: int


class Order(Struct):
    id: str
    lines: list[Line]


app = App("shop", "memory://")
orders = Topic("orders.placed", Order)
lines = Topic("orders.lines", Line)
picked: asyncio.Queue[str] = asyncio.Queue()


@splitter(app, orders, to=lines, key=lambda line: line.sku)
def lines_of(order: Order) -> list[Line]:
    return order.lines


@app.on(lines)
async def pick(message: Message[Line]) -> None:
    place = position(message)
    assert place is not None
    picked.put_nowait(f"{message.data.sku} is part {place.number + 1} of {place.size} of {place.id}")


async def main() -> None:
    async with app:
        await app.publish(orders, Order("o1", [Line("nut", 3), Line("bolt", 1)]), id="order-1")
        found = sorted([await picked.get(), await picked.get()])
    print(*found, sep="\n")
    assert found == ["bolt is part 2 of 2 of order-1", "nut is part 1 of 2 of order-1"]


if __name__ == "__main__":
    asyncio.run(main())
