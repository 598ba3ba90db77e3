"""Message Filter: a handler that returns nothing for what is of no interest; `Skip` is counted and logged as well."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Skip, Topic


class Reading(Struct):
    sensor: str
    celsius: float


app = App("plant", "memory://")
readings, alarms = Topic("readings", Reading), Topic("alarms", Reading)
seen: asyncio.Queue[str] = asyncio.Queue()


@app.on(readings, to=alarms)
async def hot(reading: Reading) -> Reading | None:
    if reading.sensor.startswith("test-"):
        raise Skip("a test sensor")
    return reading if reading.celsius > 90 else None


@app.on(alarms)
async def alarm(reading: Reading) -> None:
    seen.put_nowait(reading.sensor)


async def main() -> None:
    async with app:
        told = [("a", 20.0), ("b", 95.0), ("test-c", 99.0), ("d", 91.0), ("e", 90.0)]
        await app.publish_many([readings(Reading(sensor, celsius)) for sensor, celsius in told])
        alarmed = {await seen.get(), await seen.get()}
        skipped = app.stats()["plant.hot"].skipped
    print(f"alarms of {sorted(alarmed)}; {skipped} skipped")
    assert alarmed == {"b", "d"}
    assert seen.empty()
    assert skipped == 1


if __name__ == "__main__":
    asyncio.run(main())
