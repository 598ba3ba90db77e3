"""Format Indicator: a message says what it is, in headers that any program can read, not in the body."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Struct

from tidings import App, Message, Topic
from tidings.patterns import Schema


class Order(Struct):
    id: str
    currency: str


app = App("shop", "memory://")
orders = Topic("orders.placed", Order)
told: asyncio.Queue[str] = asyncio.Queue()
order_schema = Schema("order", 2)


@app.on("orders.>")
async def look(message: Message[Any]) -> None:
    match message.header("schema-version"), message.content_type:
        case "order/2", _:
            told.put_nowait("an order that says its currency")
        case "order/1", _:
            told.put_nowait("an order in euro")
        case _, content_type:
            told.put_nowait(f"somebody's {content_type}, called {message.type}")


async def main() -> None:
    raw: Topic[Any] = Topic("orders.placed")
    async with app:
        await app.publish(order_schema.stamped(orders(Order("o1", "CHF"))))
        await app.publish(raw, {"id": "o2"}, headers={"schema-version": "order/1"})
        await app.publish(Message("orders.scanned", b"%PDF-1.7", content_type="application/pdf", type="scan"))
        found = sorted([await told.get() for _ in range(3)])
    print(*found, sep="\n")
    assert found == [
        "an order in euro",
        "an order that says its currency",
        "somebody's application/pdf, called scan",
    ]


if __name__ == "__main__":
    asyncio.run(main())
