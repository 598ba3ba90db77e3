"""A scenario of ``killing``: orders are split into lines of two kinds, which are priced, and put together again."""

from __future__ import annotations

from msgspec import Struct

from tidings import App, Message, Topic
from tidings.patterns import answer, composed_message_processor


class Line(Struct):
    order: str
    n: int


class Order(Struct):
    id: str
    lines: list[Line]


class Priced(Struct):
    order: str
    n: int
    kind: str


class Bill(Struct):
    order: str
    lines: list[int]
    kinds: list[str]


orders, priced, bills = Topic("orders", Order), Topic("priced", Priced), Topic("bills", Bill)
even, odd = Topic("lines.even", Line), Topic("lines.odd", Line)


def order(id: str, size: int) -> Order:
    return Order(id, [Line(id, n) for n in range(size)])


def kind_of(line: Line) -> Topic[Line]:
    return odd if line.n % 2 else even


def billed(found: list[Priced]) -> Bill:
    return Bill(found[0].order if found else "", [line.n for line in found], [line.kind for line in found])


def price(app: App) -> None:
    """Handlers for both kinds of lines."""

    @app.on(even)
    async def price_even(message: Message[Line]) -> Message[Priced]:
        return answer(message, priced(Priced(message.data.order, message.data.n, "even")))

    @app.on(odd)
    async def price_odd(message: Message[Line]) -> Message[Priced]:
        return answer(message, priced(Priced(message.data.order, message.data.n, "odd")))


def app(url: str) -> App:
    made = App("shop", url)
    composed_message_processor(made, orders, split=lambda o: o.lines, parts=kind_of, results=priced, to=bills)(billed)
    price(made)
    return made
