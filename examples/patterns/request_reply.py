"""Request-Reply: ask a service and wait for its answer, or for a stream of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from msgspec import Struct

from tidings import App, RequestError, Service


class Quote(Struct):
    sku: str


class Price(Struct):
    cents: int


app = App("shop", "memory://")
prices = Service("prices.quote", Quote, Price)
steps = Service("prices.scale", Quote, Price)


@app.answer(prices)
async def quote(asked: Quote) -> Price:
    if asked.sku == "gold":
        raise ValueError("not for sale")
    return Price(len(asked.sku) * 100)


@app.answer(steps)
async def scale(asked: Quote) -> AsyncIterator[Price]:
    for count in (1, 10, 100):
        yield Price(len(asked.sku) * 100 - count)


async def main() -> None:
    async with app:
        price = await app.request(prices, Quote("nut"), timeout="5s")
        scaled = [found.cents async for found in app.request_stream(steps, Quote("nut"))]
        try:
            await app.request(prices, Quote("gold"))
            raise AssertionError("it was answered")
        except RequestError as error:
            refused = error.what
    print(price.cents, scaled, refused)
    assert price == Price(300)
    assert scaled == [299, 290, 200]
    assert refused.endswith("ValueError: not for sale")


if __name__ == "__main__":
    asyncio.run(main())
