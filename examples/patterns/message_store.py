"""EIP: Message Store. Copies of what went through the system, found later by topic, id, correlation and time."""

from __future__ import annotations

import asyncio
import tempfile
import time

from tidings import App, Message, Topic
from tidings.patterns import MessageStore

app = App("shop", "sqlite:///shop.db")

placed, paid = Topic("orders.placed", str), Topic("orders.paid", str)
history = MessageStore(app, "history", "orders.>", keep="90d")
done = asyncio.Queue[str]()


@app.on(placed)
async def charge(order: str) -> Message[str]:
    return paid(order)


@app.on(paid)
async def thank(order: str) -> None:
    await done.put(order)


async def stored(count: int) -> list[Message[str]]:
    """What is in the store, once so much is: it is a subscriber like any other, and may be behind."""
    while len(found := await history.find()) < count:  # noqa: ASYNC110  # it tells nobody
        await asyncio.sleep(0.01)
    return found


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        app.use(f"sqlite:///{folder}/shop.db")
        async with app:
            await app.publish_many([placed(order, id=f"order-{order}") for order in "ABC"])
            for _ in range(3):
                await done.get()
            everything = await stored(6)
            caused = await history.find(correlation="order-B")
            first = await history.get("order-A")
            recent = await history.find(topic="orders.paid", since=time.time() - 60)
            removed = await history.purge(time.time())
    print(f"{len(everything)} copies; order-B led to {caused[0].topic}; {removed} removed")
    assert first is not None
    assert first.body == b"A"
    assert [message.body for message in caused] == [b"B"]
    assert sorted(message.body for message in recent) == [b"A", b"B", b"C"]
    assert removed == 6


if __name__ == "__main__":
    asyncio.run(main())
