"""EIP: Smart Proxy. It answers in the place of a service, asks it in its own name, and watches what came of it."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Service
from tidings.kernel.errors import AnswerFailed
from tidings.patterns import Exchange, SmartProxy


class Quote(Struct):
    item: str
    count: int


app = App("shop", "memory://")
prices = Service("prices", Quote, float)  # what everybody asks
pricing = Service("pricing", Quote, float)  # who really answers
seen: list[Exchange[Quote, float]] = []

proxy = SmartProxy(app, prices, to=pricing, timeout="2s", report=seen.append)


@app.answer(pricing)
async def price(quote: Quote) -> float:
    if quote.count < 1:
        raise ValueError("nothing to sell")
    return quote.count * 1.5


async def main() -> None:
    async with app:
        answers = await asyncio.gather(*(app.request(prices, Quote("pen", count)) for count in (1, 2, 3)))
        try:
            await app.request(prices, Quote("pen", 0))
        except AnswerFailed as error:
            print("the asker is told:", error.what)
    watched = proxy.stats()
    print(f"{watched.answered} answered, {watched.failed} failed; p99 {watched.p99} s")
    assert answers == [1.5, 3.0, 4.5], "each asker gets its own answer"
    assert (watched.answered, watched.failed) == (3, 1)
    assert "nothing to sell" in seen[-1].error
    assert {exchange.asker for exchange in seen} == {"shop"}
    assert proxy.pending == {}


if __name__ == "__main__":
    asyncio.run(main())
