"""Message Channel: a topic is a name and a type. Who publishes to it does not know who reads it."""

import asyncio

from msgspec import Struct

from tidings import App, Topic


class Reading(Struct):
    device: str
    celsius: float


app = App("greenhouse", "memory://")
readings = Topic("sensors.temperature", Reading)
warm: asyncio.Queue[str] = asyncio.Queue()


@app.on(readings)
async def watch(reading: Reading) -> None:
    if reading.celsius > 30:
        warm.put_nowait(reading.device)


async def main() -> None:
    async with app:
        await app.publish(readings, Reading("bed-1", 21.5))
        await app.publish(readings, Reading("bed-2", 34.0))
        device = await warm.get()
    print(f"{device} is too warm")
    assert device == "bed-2"


if __name__ == "__main__":
    asyncio.run(main())
