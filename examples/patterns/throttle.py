"""Throttle: a slow partner gets ten messages a second and no more, whatever comes; or, shared, from all processes."""

from __future__ import annotations

import asyncio
import time

from tidings import App, Topic
from tidings.patterns import SharedThrottle, Throttle

app = App("shop", "memory://")
orders, parcels = Topic("orders.placed", int), Topic("parcels.packed", int)
started: asyncio.Queue[float] = asyncio.Queue()
shipped: asyncio.Queue[float] = asyncio.Queue()


@app.on(orders, middleware=[Throttle(50, "1s", burst=5)])
async def call_the_bank(order: int) -> None:
    started.put_nowait(time.monotonic())


@app.on(parcels, middleware=[SharedThrottle(app, "carrier", 50, "1s")])
async def call_the_carrier(parcel: int) -> None:
    shipped.put_nowait(time.monotonic())


async def main() -> None:
    async with app:
        began = time.monotonic()
        await app.publish_many([*map(orders, range(25)), *map(parcels, range(25))])
        bank = [await started.get() for _ in range(25)][-1] - began
        carrier = [await shipped.get() for _ in range(25)][-1] - began
    print(f"25 calls each: the bank took {bank:.2f} s, the carrier {carrier:.2f} s")
    assert bank > 0.39, "5 at once, then 20 turns of 1/50 s"
    assert carrier > 0.4, "24 turns, less what two clocks differ by"


if __name__ == "__main__":
    asyncio.run(main())
