"""Correlation Identifier: whatever follows from a message says what it follows from, so a story can be told."""

from __future__ import annotations

import asyncio

from tidings import App, Message, Topic

app = App("shop", "memory://")
placed = Topic("orders.placed", str)
billed = Topic("orders.billed", str)
paid = Topic("orders.paid", str)
ended: asyncio.Queue[Message[str]] = asyncio.Queue()


@app.on(placed, to=billed)
async def bill(order: str) -> str:
    return order


@app.on(billed, to=paid)
async def collect(order: str) -> str:
    return order


@app.on(paid)
async def thank(message: Message[str]) -> None:
    ended.put_nowait(message)


async def main() -> None:
    async with app:
        await app.publish_many([placed("nuts", id="order-1"), placed("bolts", id="order-2")])
        stories = {message.data: message for message in [await ended.get(), await ended.get()]}
    for order, message in stories.items():
        print(f"{order}: {message.id} because of {message.causation_id}, all because of {message.correlation_id}")
    assert stories["nuts"].correlation_id == "order-1"
    assert stories["bolts"].correlation_id == "order-2"
    assert stories["nuts"].causation_id not in (None, "order-1"), "its cause is the bill; the order began it all"


if __name__ == "__main__":
    asyncio.run(main())
