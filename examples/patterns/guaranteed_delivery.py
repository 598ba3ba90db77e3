"""Guaranteed Delivery: what `publish` accepted is on disk. Kill whoever published it, at once: it comes."""

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

from tidings import App, Topic

placed = Topic("orders.placed", int)
billed: asyncio.Queue[int] = asyncio.Queue()


def shop(folder: str) -> App:
    app = App("shop", f"sqlite:///{folder}/shop.db")

    @app.on(placed, start="first")
    async def bill(order: int) -> None:
        billed.put_nowait(order)

    return app


async def publish_and_die(folder: str) -> None:
    async with (app := shop(folder)).connect():
        for order in range(10):
            await app.publish(placed, order)
        os.kill(os.getpid(), signal.SIGKILL)  # no chance to flush anything


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        child = await asyncio.create_subprocess_exec(sys.executable, Path(__file__), folder)
        status = await child.wait()
        async with shop(folder):
            found = sorted([await billed.get() for _ in range(10)])
    print(f"its publisher was killed by signal {-status}; billed: {found}")
    assert status == -signal.SIGKILL
    assert found == list(range(10))


if __name__ == "__main__":
    asyncio.run(publish_and_die(sys.argv[1]) if len(sys.argv) > 1 else main())
