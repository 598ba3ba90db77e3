"""Message Translator: a handler from one application's type to another's."""

from __future__ import annotations

import asyncio
from typing import TypedDict

from msgspec import Struct

from tidings import App, Topic


class Kunde(TypedDict):
    name: str
    plz: str


class Customer(Struct):
    first: str
    last: str
    postcode: str


app = App("office", "memory://")
kunden = Topic("crm.kunde", Kunde)
customers = Topic("shop.customer", Customer)
known: asyncio.Queue[Customer] = asyncio.Queue()


@app.on(kunden, to=customers)
async def translate(kunde: Kunde) -> Customer:
    first, _, last = kunde["name"].rpartition(" ")
    return Customer(first, last, kunde["plz"])


@app.on(customers)
async def greet(customer: Customer) -> None:
    known.put_nowait(customer)


async def main() -> None:
    async with app:
        await app.publish(kunden, Kunde(name="Ada Maria Lovelace", plz="39100"))
        customer = await known.get()
    print(customer)
    assert customer == Customer("Ada Maria", "Lovelace", "39100")


if __name__ == "__main__":
    asyncio.run(main())
