"""A scenario of ``killing``: three suppliers are asked, one of which answers only some, and the best price wins."""

from __future__ import annotations

from msgspec import Struct

from tidings import App, Message, Topic
from tidings.patterns import answer, scatter_gather


class Wanted(Struct):
    item: int


class Quote(Struct):
    supplier: str
    item: int
    price: int


class Offer(Struct):
    item: int
    prices: dict[str, int]


wanted, quotes, offers = Topic("wanted", Wanted), Topic("quotes", Quote), Topic("offers", Offer)
SUPPLIERS = ("north", "south", "west")
suppliers = [Topic(f"suppliers.{name}", Wanted) for name in SUPPLIERS]


def app(url: str) -> App:
    made = App("shop", url)

    @scatter_gather(made, wanted, recipients=suppliers, replies=quotes, to=offers, timeout="3s")
    def best(found: list[Quote]) -> Offer:
        return Offer(found[0].item if found else -1, {quote.supplier: quote.price for quote in found})

    def supplier(topic: Topic[Wanted], name: str) -> None:
        @made.on(topic, group=f"shop.{name}")
        async def quote(message: Message[Wanted]) -> Message[Quote] | None:
            item = message.data.item
            if name == "west" and item % 2:
                return None
            return answer(message, quotes(Quote(name, item, 10 * item + len(name))))

    for topic, name in zip(suppliers, SUPPLIERS, strict=True):
        supplier(topic, name)
    return made
