"""Service Activator: one function, called by a web view, by messages and by requests; it knows of none of them."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Message, Service, Topic


class Order(Struct):
    article: str
    count: int


app = App("shop", "memory://")
orders, invoices = Topic("orders.placed", Order), Topic("invoices", int)
prices = Service("prices.quote", Order, int)
sent: asyncio.Queue[int] = asyncio.Queue()


@app.answer(prices)  # by requests
async def price(order: Order) -> int:
    return {"tea": 450, "cup": 900}[order.article] * order.count


@app.on(orders)  # by messages
async def invoice(order: Order) -> Message[int]:
    return invoices(await price(order))  # by a call: the decorator left it what it was


@app.on(invoices)
async def send(cents: int) -> None:
    sent.put_nowait(cents)


async def main() -> None:
    order = Order("tea", 2)
    called = await price(order)
    assert await invoice(order) == invoices(900), "a handler is called as it is in a test, too"
    async with app:
        asked = await app.request(prices, order)
        await app.publish(orders, order)
        told = await sent.get()
    print(f"called: {called}, asked: {asked}, told: {told}")
    assert called == asked == told == 900


if __name__ == "__main__":
    asyncio.run(main())
