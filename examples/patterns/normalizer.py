"""Normalizer: three partners send orders, each in a form of its own; the shop knows one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TypedDict

from msgspec import Struct

from tidings import App, Message, Topic
from tidings.patterns import normalizer


class Order(Struct):
    id: str
    count: int


class Acme(TypedDict):
    number: str
    pieces: int


app = App("shop", "memory://")
orders = Topic("orders.placed", Order)
unreadable = Topic("partners.unreadable", bytes)
placed: asyncio.Queue[Order] = asyncio.Queue()
complaints: asyncio.Queue[str] = asyncio.Queue()

normal = normalizer(app, "partners.orders.*", to=orders, invalid=unreadable)


@normal.translator(content_type="text/csv")
def from_csv(text: str) -> Iterator[Order]:
    for line in text.splitlines():
        id, count = line.split(";")
        yield Order(id, int(count))


@normal.translator(topic="partners.orders.acme")
def from_acme(order: Acme) -> Order:
    return Order(order["number"], order["pieces"])


@app.on(orders)
async def take(order: Order) -> None:
    placed.put_nowait(order)


@app.on(unreadable)
async def complain(message: Message[bytes]) -> None:
    complaints.put_nowait(f"{message.header('invalid-topic')}: {message.header('invalid-reason')}")


async def main() -> None:
    acme = Topic("partners.orders.acme", Acme)
    async with app:
        await app.publish(acme, Acme(number="a1", pieces=3))
        await app.publish(Message("partners.orders.smith", b"s1;1\ns2;2", content_type="text/csv"))
        await app.publish(Message("partners.orders.jones", b"s3;some", content_type="text/csv"))
        found = [await placed.get() for _ in range(3)]
        complaint = await complaints.get()
    print(*found, complaint, sep="\n")
    assert sorted(found, key=lambda order: order.id) == [Order("a1", 3), Order("s1", 1), Order("s2", 2)]
    assert complaint.startswith("partners.orders.jones: ValueError: invalid literal")


if __name__ == "__main__":
    asyncio.run(main())
