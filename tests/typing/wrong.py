"""Uses that type checkers must refuse: each line that is marked so."""

from __future__ import annotations

from collections.abc import AsyncIterator

from right import Invoice, Order, Price, Quote, app, bill, either, invoiced, placed, prices

from tidings import Message, connect


@app.on(placed)  # wrong: wrong payload
async def b1(order: Invoice) -> None: ...


@app.on(placed)  # wrong: bare payload returned without to=
async def b2(order: Order) -> Invoice:
    return Invoice(1)


@app.on(placed, batch=10)  # wrong: batch needs list
async def b3(order: Order) -> None: ...


@app.on(placed)  # wrong: list without batch
async def b4(orders: list[Order]) -> None: ...


@app.on(placed, to=invoiced)  # wrong: wrong to type
async def b5(order: Order) -> Price:
    return Price(1)


@app.on(either)  # wrong: does not take every member
async def b6(order: Order) -> None: ...


@app.answer(prices)  # wrong: wrong reply
async def b7(q: Quote) -> Order:
    return Order("1")


@app.answer(prices)  # wrong: wrong request
async def b8(q: Order) -> Price:
    return Price(1)


@app.on(placed)  # wrong: Message of the wrong type
async def b9(m: Message[Invoice]) -> None: ...


@app.on(placed, live=True, group="g")  # wrong: live has no group
async def b10(order: Order) -> None: ...


@app.on(placed)  # wrong: takes nothing
async def b11() -> None: ...


@app.every("5s")  # wrong: returns junk
async def b12() -> int:
    return 1


@app.on("a.b")  # wrong: str pattern returns junk
async def b13(order: Order) -> dict[str, int]:
    return {}


@app.on(placed, to=invoiced)  # wrong: stream of wrong
async def b14(order: Order) -> AsyncIterator[Price]:
    yield Price(1)


@app.on(placed)  # wrong: str is iterable
def b15(order: Order) -> str:
    return ""


async def main2() -> None:
    placed(Invoice(1))  # wrong
    await app.publish(placed, Invoice(1))  # wrong
    await app.request(prices, Order("1"))  # wrong
    _: Order = await app.request(prices, Quote("x"))  # wrong
    await app.publish(placed, placed(Order("1")))  # wrong
    await bill(Invoice(1))  # wrong
    await app.publish_many([Order("1")])  # wrong
    placed(Order("1"), kee="x")  # wrong: misspelt option


@app.on(placed, concurency=3)  # wrong: misspelt option
async def b24(order: Order) -> None: ...


@app.answer(prices)  # wrong: None is not a Price
async def b25(q: Quote) -> Price | None:
    return None


@app.on("a.b", live=True, ordered=True)  # wrong
async def b26(order: Order) -> None: ...


@app.every("5s", evry=1)  # wrong: misspelt option
async def b27() -> None: ...


@app.on(placed, backoff=3)  # wrong: not a Backoff
async def b28(order: Order) -> None: ...


def script() -> None:
    bus = connect("sqlite:///x")
    bus.publish(placed, Invoice(1))  # wrong
    bus.publish(placed, Order("1"), kee="x")  # wrong: misspelt option
    bus.request(prices, Order("1"))  # wrong
    _: Order = bus.request(prices, Quote("x"))  # wrong
    connect(3)  # wrong: no bus
