"""Sampler: some messages are handled, the others are settled unread: one in n, a share of keys, one in a time."""

from __future__ import annotations

import asyncio

from tidings import App, Message, Topic
from tidings.patterns import sample_every, sample_interval, sample_keys

app = App("plant", "memory://")
readings = Topic("readings", int)
every_tenth: list[int] = []
some_sensors: set[str | None] = set()
drawn: list[int] = []
last: asyncio.Queue[int] = asyncio.Queue()


@app.on(readings, middleware=[sample_every(10)])
async def archive(n: int) -> None:
    every_tenth.append(n)


@app.on(readings, middleware=[sample_keys(0.25)])
async def study(message: Message[int]) -> None:
    some_sensors.add(message.key)


@app.on(readings, middleware=[sample_interval("1h")])
async def draw(n: int) -> None:
    drawn.append(n)


@app.on(readings)
async def count(n: int) -> None:
    last.put_nowait(n)


async def main() -> None:
    async with app:
        await app.publish_many([readings(n, key=f"sensor-{n % 20}") for n in range(200)])
        for _ in range(200):
            await last.get()
    print(f"{len(every_tenth)} archived, {len(some_sensors)} of 20 sensors studied, {len(drawn)} drawn")
    assert every_tenth == list(range(0, 200, 10))
    assert 0 < len(some_sensors) < 12
    assert drawn == list(range(20)), "the first of each sensor"


if __name__ == "__main__":
    asyncio.run(main())
