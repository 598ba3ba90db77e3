"""Messaging Bridge: what a device keeps in its file is on the plant's bus too; orders come the other way.

``plant`` is a file here; ``App("device", "sqlite:///device.db", plant="nats://plant.example")`` is the same.
"""

import asyncio
import tempfile

from tidings import App, Message, Topic
from tidings.patterns import bridge

counted = Topic("line.counted", int)
stopping = Topic("orders.stop", str)
done: asyncio.Queue[str] = asyncio.Queue()


def device(folder: str) -> App:
    app = App("device", f"sqlite:///{folder}/device.db", plant=f"sqlite:///{folder}/plant.db")
    bridge(app, "line.>", to="plant", both=True, ordered=True)  # both: what others count is seen here, too
    bridge(app, "orders.>", source="plant", to="")

    @app.on(stopping)
    async def stop(why: str) -> None:
        done.put_nowait(f"device stops: {why}")

    return app


def plant(folder: str) -> App:
    app = App("plant", f"sqlite:///{folder}/plant.db")

    @app.on(counted, start="first")
    async def check(message: Message[int]) -> Message[str] | None:
        done.put_nowait(f"plant sees {message.data} of {message.source}")
        return stopping("enough") if message.data >= 3 else None

    return app


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with (app := device(folder)), plant(folder):
            await app.publish_many([counted(number, key="line-1") for number in (1, 2, 3)])
            found = [await done.get() for _ in range(4)]
    print(*found, sep="\n")
    assert found == [*(f"plant sees {number} of device" for number in (1, 2, 3)), "device stops: enough"]


if __name__ == "__main__":
    asyncio.run(main())
