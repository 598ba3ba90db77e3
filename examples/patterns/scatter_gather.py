"""Scatter-gather: three suppliers are asked for a price, and the best that comes in time is the offer."""

import asyncio

from msgspec import Struct

from tidings import App, Message, Topic
from tidings.patterns import answer, scatter_gather


class Wanted(Struct):
    item: str


class Quote(Struct):
    supplier: str
    price: float


class Offer(Struct):
    best: Quote | None
    of: int


app = App("shop", "memory://")
wanted = Topic("wanted", Wanted)
quotes = Topic("quotes", Quote)
offers = Topic("offers", Offer)
north, south, west = (Topic(f"suppliers.{name}", Wanted) for name in ("north", "south", "west"))
made: asyncio.Queue[Message[Offer]] = asyncio.Queue()


@scatter_gather(app, wanted, recipients=[north, south, west], replies=quotes, to=offers, timeout="500ms")
def best(found: list[Quote]) -> Offer:
    return Offer(min(found, key=lambda quote: quote.price, default=None), len(found))


@app.on(north)
async def ask_north(message: Message[Wanted]) -> Message[Quote]:
    return answer(message, quotes(Quote("north", 12.0)))


@app.on(south)
async def ask_south(message: Message[Wanted]) -> Message[Quote]:
    return answer(message, quotes(Quote("south", 9.5)))


@app.on(west)
async def ask_west(message: Message[Wanted]) -> None:
    """Never answers."""


@app.on(offers)
async def decide(message: Message[Offer]) -> None:
    await made.put(message)


async def main() -> None:
    async with app:
        await app.publish(wanted, Wanted("nut"), id="question-1")
        offer = await made.get()
    print(offer.data, offer.header("aggregate"))
    assert offer.data == Offer(Quote("south", 9.5), of=2)
    assert offer.correlation_id == "question-1"


if __name__ == "__main__":
    asyncio.run(main())
