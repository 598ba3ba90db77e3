"""Document Message: data that somebody else may do with as they please; whole, typed, and checked at both ends."""

from __future__ import annotations

import asyncio
from datetime import date
from decimal import Decimal
from typing import Any

from msgspec import Struct

from tidings import App, Topic
from tidings.kernel.errors import PayloadRefused


class Item(Struct):
    text: str
    price: Decimal


class Invoice(Struct):
    number: str
    issued: date
    items: list[Item]


app = App("office", "memory://")
invoices = Topic("documents.invoices", Invoice)
filed: asyncio.Queue[Invoice] = asyncio.Queue()


@app.on(invoices)
async def file(invoice: Invoice) -> None:
    filed.put_nowait(invoice)


async def main() -> None:
    invoice = Invoice("2026-17", date(2026, 11, 27), [Item("nuts", Decimal("3.20")), Item("bolts", Decimal("4.10"))])
    half: Any = {"number": "2026-18"}
    async with app:
        await app.publish(invoices, invoice)
        copy = await filed.get()
        try:
            await app.publish(invoices, half)
            raise AssertionError("it was taken")
        except PayloadRefused as error:
            print(error.what)
    print(copy.number, sum(item.price for item in copy.items))
    assert copy == invoice
    assert copy is not invoice


if __name__ == "__main__":
    asyncio.run(main())
