"""Wire Tap: copies of what a handler gets and makes, to look at; it neither waits for them nor fails with them."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Message, Topic
from tidings.patterns import WireTap


class Order(Struct):
    id: int


class Invoice(Struct):
    order: int
    total: int


app = App("shop", "memory://")
orders, invoices = Topic("orders.placed", Order), Topic("invoices", Invoice)
taps = Topic("taps.billing", bytes)
seen: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()


@app.on(orders, middleware=[WireTap(app, taps, published=True)])
async def bill(order: Order) -> Message[Invoice]:
    return invoices(Invoice(order.id, 100))


@app.on(taps)
async def look(message: Message[bytes]) -> None:
    seen.put_nowait((message.type, message.data))


async def main() -> None:
    async with app:
        await app.publish(orders, Order(1))
        found = [await seen.get() for _ in range(2)]
    print(*found, sep="\n")
    assert found == [("orders.placed", b'{"id":1}'), ("invoices", b'{"order":1,"total":100}')]


if __name__ == "__main__":
    asyncio.run(main())
