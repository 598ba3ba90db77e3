"""Channel Purger: after a test run, a group skips what is left over, and its dead letters are given up."""

import asyncio
import tempfile
from typing import Any

from tidings import App, Message, Reject, Topic
from tidings.patterns import purge, purge_dead

readings = Topic("sensors.read", int)
stored: asyncio.Queue[int] = asyncio.Queue()
refused: asyncio.Queue[Message[Any]] = asyncio.Queue()


def plant(folder: str) -> App:
    app = App("plant", f"sqlite:///{folder}/plant.db")

    @app.on(readings)
    async def store(value: int) -> None:
        if value < 0:
            raise Reject("below zero")
        stored.put_nowait(value)

    @app.on("_dead.plant.store")
    async def look(letter: Message[Any]) -> None:
        refused.put_nowait(letter)

    return app


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with (app := plant(folder)):
            await app.publish(readings, -1)
            await refused.get()
        async with (app := plant(folder)).connect():  # nobody of the group runs
            await app.publish_many([readings(value) for value in range(1000)])
            skipped, given_up = await purge(app, "plant.store"), await purge_dead(app, "plant.store")
        async with (app := plant(folder)):
            await app.publish(readings, 4711)
            value = await stored.get()
    print(f"{skipped} skipped, {given_up} dead letter given up; then came {value}")
    assert (skipped, given_up, value) == (1000, 1, 4711)


if __name__ == "__main__":
    asyncio.run(main())
