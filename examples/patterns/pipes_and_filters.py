"""Pipes and Filters: each step is a handler, and the pipe between two of them is a topic."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Message, Topic


class Order(Struct):
    id: str
    pieces: int


class Priced(Struct):
    id: str
    total: float


app = App("orders", "memory://")
received = Topic("orders.received", str)
read = Topic("orders.read", Order)
priced = Topic("orders.priced", Priced)
done: asyncio.Queue[Priced] = asyncio.Queue()


@app.on(received, to=read)
async def parse(line: str) -> Order:
    name, pieces = line.split(":")
    return Order(name, int(pieces))


@app.on(read)
async def price(order: Order) -> Message[Priced]:
    return priced(Priced(order.id, order.pieces * 2.5), key=order.id)


@app.on(priced)
async def ship(order: Priced) -> None:
    done.put_nowait(order)


async def main() -> None:
    assert await parse("A1:4") == Order("A1", 4), "a step is tested by calling it"
    async with app:
        await app.publish_many([received("A1:4"), received("A2:1")])
        shipped = sorted([(await done.get()).id, (await done.get()).id])
    print("shipped:", *shipped)
    assert shipped == ["A1", "A2"]


if __name__ == "__main__":
    asyncio.run(main())
