"""Delayer: a message is passed on later; the bus keeps it until then, over restarts, too."""

from __future__ import annotations

import asyncio
import time

from tidings import App, Message, Topic

app = App("shop", "memory://")
carts, reminders = Topic("carts.left", str), Topic("carts.reminders", str)
reminded: asyncio.Queue[float] = asyncio.Queue()


@app.on(carts)
async def wait_a_while(cart: str) -> Message[str]:
    return reminders(cart, delay="300ms")  # or at=datetime(...)


@app.on(reminders)
async def remind(cart: str) -> None:
    reminded.put_nowait(time.time())


async def main() -> None:
    async with app:
        left = time.time()
        await app.publish(carts, "A1")
        waited = await reminded.get() - left
    print(f"reminded after {waited:.2f} s")
    assert waited > 0.29


if __name__ == "__main__":
    asyncio.run(main())
