"""Multicast: every order goes to billing, to the warehouse and to the partner's topic; to all of them, or to none."""

from __future__ import annotations

import asyncio

from tidings import App, Message, Topic
from tidings.patterns import multicast

app = App("shop", "memory://")
orders = Topic("orders.placed", str)
billing, warehouse, partner = Topic("billing.orders", str), Topic("warehouse.orders", str), Topic("partner.orders", str)
came: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

multicast(app, orders, billing, warehouse, partner)


@app.on("*.orders")
async def receive(message: Message[str]) -> None:
    came.put_nowait((message.topic, message.data))


async def main() -> None:
    async with app:
        await app.publish(orders, "o1", key="ada")
        found = sorted([await came.get() for _ in range(3)])
    print(*found, sep="\n")
    assert found == [("billing.orders", "o1"), ("partner.orders", "o1"), ("warehouse.orders", "o1")]


if __name__ == "__main__":
    asyncio.run(main())
