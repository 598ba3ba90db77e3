"""Message History: a message says which groups it and what it came from have passed, and circles end."""

from __future__ import annotations

import asyncio

from tidings import App, Message, Topic
from tidings.middleware import instrument
from tidings.patterns import MessageHistory, history

app = App("shop", "memory://")
placed = Topic("orders.placed", str)
billed = Topic("orders.billed", str)
shipped = Topic("orders.shipped", str)
arrived: asyncio.Queue[list[str]] = asyncio.Queue()

instrument(app, MessageHistory(loops=5))


@app.on(placed, to=billed)
async def bill(order: str) -> str:
    return order


@app.on(billed, to=shipped)
async def ship(order: str) -> str:
    return order


@app.on(shipped)
async def arrive(message: Message[str]) -> None:
    arrived.put_nowait(history(message))


async def main() -> None:
    async with app:
        await app.publish(placed, "o1")
        passed = await arrived.get()
    print(" > ".join(passed))
    assert passed == ["shop.bill", "shop.ship"]


if __name__ == "__main__":
    asyncio.run(main())
