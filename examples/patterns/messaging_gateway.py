"""Messaging Gateway: code of the domain calls a `Protocol`; that its methods send and wait for messages is nowhere."""

import asyncio
from typing import Protocol

from msgspec import Struct

from tidings import App, Service, Topic
from tidings.patterns import gateway


class Quote(Struct):
    article: str
    count: int


class Price(Struct):
    cents: int


class Order(Struct):
    article: str
    cents: int


class Shop(Protocol):
    async def price(self, quote: Quote, /) -> Price: ...

    async def place(self, order: Order, /, *, key: str | None = None) -> None: ...


async def buy(shop: Shop, article: str, budget: int) -> bool:
    """Of the domain; a test hands it any object with these two methods."""
    price = await shop.price(Quote(article, 2))
    if price.cents > budget:
        return False
    await shop.place(Order(article, price.cents), key=article)
    return True


app = App("shop", "memory://")
prices = Service("prices.quote", Quote, Price)
placed = Topic("orders.placed", Order)
shop = gateway(app, Shop, price=prices, place=placed)
ordered: asyncio.Queue[Order] = asyncio.Queue()


@app.answer(prices)
async def quote(asked: Quote) -> Price:
    return Price(450 * asked.count)


@app.on(placed)
async def take(order: Order) -> None:
    ordered.put_nowait(order)


async def main() -> None:
    async with app:
        bought = await buy(shop, "tea", 1000), await buy(shop, "cup", 100)
        order = await ordered.get()
    print(bought, order)
    assert bought == (True, False)
    assert order == Order("tea", 900)


if __name__ == "__main__":
    asyncio.run(main())
