"""Retry Budget: when everything fails, retries are a fifth of the load, not seven times the load."""

from __future__ import annotations

import asyncio

from tidings import App, Backoff, Message, Topic
from tidings.patterns import RetryBudget

app = App("shop", "memory://", backoff=Backoff(attempts=8, first="10ms", factor=1), breaker=None)
orders = Topic("orders.placed", int)
budget = RetryBudget(0.2, reserve=10)
calls = 0
dead: asyncio.Queue[str] = asyncio.Queue()


@app.on(orders, middleware=[budget])
async def bill(order: int) -> None:
    global calls
    calls += 1
    raise ConnectionError("the partner does not answer")


@app.on("_dead.shop.bill")
async def given_up(message: Message[bytes]) -> None:
    dead.put_nowait(message.header("tdgdetail"))


async def main() -> None:
    async with app:
        await app.publish_many([orders(n) for n in range(100)])
        reasons = {await dead.get() for _ in range(100)}
    print(f"100 messages, {calls} calls: {budget.spent} retries, {budget.refused} refused")
    assert calls == 100 + budget.spent <= 100 + 10 + 20
    assert reasons == {"the retry budget is used up: ConnectionError: the partner does not answer"}


if __name__ == "__main__":
    asyncio.run(main())
