"""Event-Driven Consumer: the handler is called when a message comes; nobody writes a loop, or asks again and again."""

from __future__ import annotations

import asyncio

from tidings import App, Topic

app = App("shop", "memory://")
orders = Topic("orders.placed", str)
billed: asyncio.Queue[str] = asyncio.Queue()


@app.on(orders)
async def bill(order: str) -> None:
    billed.put_nowait(f"async: {order}")


@app.on(orders)
def archive(order: str) -> None:  # a plain function runs in a thread: it may block
    loop.call_soon_threadsafe(billed.put_nowait, f"thread: {order}")


async def main() -> None:
    global loop
    loop = asyncio.get_running_loop()
    async with app:
        assert billed.empty(), "it waits, and costs nothing"
        await app.publish(orders, "A1")
        called = {await billed.get(), await billed.get()}
    print(*sorted(called))
    assert called == {"async: A1", "thread: A1"}


loop: asyncio.AbstractEventLoop

if __name__ == "__main__":
    asyncio.run(main())
