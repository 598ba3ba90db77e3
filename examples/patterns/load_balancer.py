"""Load Balancer: a canary gets a tenth of the customers, and always the same ones."""

from __future__ import annotations

import asyncio
from collections import Counter

from tidings import App, Message, Topic
from tidings.patterns import load_balancer

app = App("shop", "memory://")
orders = Topic("orders.placed", int)
steady, canary = Topic("orders.steady", int), Topic("orders.canary", int)
handled: asyncio.Queue[tuple[str, str | None]] = asyncio.Queue()

load_balancer(app, orders, {steady: 9, canary: 1})


@app.on("orders.steady")
@app.on("orders.canary", group="shop.try_out")
async def bill(message: Message[int]) -> None:
    handled.put_nowait((message.topic, message.key))


async def main() -> None:
    async with app:
        await app.publish_many([orders(n, key=f"customer-{n % 100}") for n in range(300)])
        found = Counter([await handled.get() for _ in range(300)])
    canaries = {key for topic, key in found if topic == "orders.canary"}
    print(f"{len(canaries)} of 100 customers try it out")
    assert set(found.values()) == {3}, "each customer always on the same side"
    assert 2 <= len(canaries) <= 20


if __name__ == "__main__":
    asyncio.run(main())
