"""Selective Consumer: the bus selects by topic, a condition in the handler by what is in the message."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Topic


class Quote(Struct):
    price: float


app = App("desk", "memory://")
quotes = Topic("quotes.{market}.{symbol}", Quote)
from_milan: asyncio.Queue[str] = asyncio.Queue()
cheap: asyncio.Queue[tuple[str, str]] = asyncio.Queue()


@app.on("quotes.milan.*")
async def watch_milan(quote: Quote) -> None:
    from_milan.put_nowait(f"milan at {quote.price:g}")


@app.on(quotes)
async def bargain(quote: Quote, market: str, symbol: str) -> None:
    if quote.price < 10:
        cheap.put_nowait((market, symbol))


async def main() -> None:
    async with app:
        for market, symbol, price in (("milan", "eni", 14.0), ("paris", "tte", 55.0), ("paris", "ora", 9.5)):
            await app.publish(quotes.bind(market=market, symbol=symbol), Quote(price))
        milan, low = await from_milan.get(), await cheap.get()
    print(milan, low)
    assert milan == "milan at 14"
    assert low == ("paris", "ora")
    assert from_milan.empty()
    assert cheap.empty()


if __name__ == "__main__":
    asyncio.run(main())
