"""Windows: readings become five-minute averages by the time at which they were taken, whenever they come."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from msgspec import Struct

from tidings import App, Message, Topic
from tidings.patterns import Tumbling, Window, windowed


class Reading(Struct):
    sensor: str
    at: datetime
    celsius: float


class Total(Struct):
    sum: float = 0.0
    count: int = 0


app = App("plant", "memory://")
readings, averages = Topic("readings", Reading), Topic("readings.averages", float)
made: asyncio.Queue[Message[float]] = asyncio.Queue()


def add(total: Total | None, reading: Reading) -> Total:
    total = total or Total()
    return Total(total.sum + reading.celsius, total.count + 1)


@windowed(
    app, readings, Tumbling("5m"), by=lambda r: r.sensor, time=lambda r: r.at, fold=add, lateness="1m", to=averages
)
def average(total: Total, window: Window) -> float:
    return total.sum / total.count


@app.on(averages)
async def tell(message: Message[float]) -> None:
    made.put_nowait(message)


def reading(minute: int, celsius: float) -> Message[Reading]:
    return readings(Reading("boiler", datetime(2026, 11, 27, 12, minute, tzinfo=UTC), celsius), key="boiler")


async def main() -> None:
    async with app:
        await app.publish_many([reading(0, 60.0), reading(3, 62.0), reading(5, 80.0), reading(4, 64.0)])  # 4 is late
        await app.publish_many([reading(9, 82.0), reading(11, 90.0)])  # 11, less a minute: 12:10 has come
        found = [await made.get(), await made.get()]
    for message in found:
        print(message.key, message.header("window-start"), message.data)
    assert [message.data for message in found] == [62.0, 81.0], "12:00 to 12:05, and 12:05 to 12:10"


if __name__ == "__main__":
    asyncio.run(main())
