"""Resequencer: readings that overtook each other on their way go on in the order in which they were taken."""

import asyncio

from msgspec import Struct

from tidings import App, Message, Topic
from tidings.patterns import resequencer


class Reading(Struct):
    sensor: str
    n: int


app = App("plant", "memory://")
readings = Topic("readings.raw", Reading)
ordered = Topic("readings.ordered", Reading)
came: asyncio.Queue[Message[Reading]] = asyncio.Queue()

resequencer(app, readings, to=ordered, by=lambda r: r.sensor, number=lambda r: r.n, gap="300ms")


@app.on(ordered)
async def store(message: Message[Reading]) -> None:
    await came.put(message)


async def main() -> None:
    async with app:
        await app.publish_many([readings(Reading("a", n)) for n in (2, 0, 1, 1, 4)])  # 1 comes twice, 3 never
        found = [await came.get() for _ in range(4)]
    told = [(message.data.n, message.header("sequence-gap")) for message in found]
    print(*told)
    assert told == [(0, ""), (1, ""), (2, ""), (4, "1")]


if __name__ == "__main__":
    asyncio.run(main())
