"""Circuit Breaker: when most of what a handler does fails, it pauses, and tries with one message; nothing is lost."""

from __future__ import annotations

import asyncio

from tidings import App, Backoff, Breaker, Topic

app = App("shop", "memory://", backoff=Backoff(first="10ms", factor=1))
orders = Topic("orders.placed", int)
partner_is_down = True
calls = 0
billed: asyncio.Queue[int] = asyncio.Queue()


@app.on(orders, breaker=Breaker(ratio=0.5, least=10, pause=0.05, limit=0.1))
async def bill(order: int) -> None:
    global calls, partner_is_down
    calls += 1
    if partner_is_down:
        partner_is_down = calls < 15
        raise ConnectionError("the partner does not answer")
    billed.put_nowait(order)


async def main() -> None:
    async with app:
        await app.publish_many([orders(n) for n in range(100)])
        done = sorted([await billed.get() for _ in range(100)])
        stats = app.stats()["shop.bill"]
    print(f"{calls} calls, {stats.failed} failed, {stats.dead} dead letters")
    assert done == list(range(100))
    assert stats.dead == 0


if __name__ == "__main__":
    asyncio.run(main())
