"""A publisher with a clock: ``python -m bench.pacer <url> <rate> <seconds>``.

Message n is due at start + n / rate whatever became of those before it, and carries that moment: a publisher or bus
that stalls makes every message of the stall late (no coordinated omission). The clock is a thread, as precise as the
system, because an event loop's timers are rounded to a millisecond.
"""

from __future__ import annotations

import asyncio
import sys
import time
from threading import Thread

from msgspec import Struct

from tidings import App, Topic

RUNNING_INTERVAL = 0.0005  # the switch interval that ``tidings run`` sets


class Stamped(Struct):
    """About 200 bytes; ``due`` by the monotonic clock, which all processes of a machine share."""

    due: float
    n: int
    sku: str = "sku-9"
    amount: float = 12.5
    a: str = "x" * 20
    b: str = "y" * 20
    c: str = "z" * 30
    d: str = "w" * 30


stamped = Topic("orders.placed", Stamped)


async def pace(app: App, rate: float, seconds: float) -> None:
    loop, total = asyncio.get_running_loop(), int(rate * seconds)
    tasks: set[asyncio.Task[None]] = set()
    over = asyncio.Event()

    def one(n: int, due: float) -> None:
        tasks.add(task := loop.create_task(app.publish(stamped, Stamped(due, n))))
        task.add_done_callback(tasks.discard)
        if n + 1 == total:
            over.set()

    def clock() -> None:
        start = time.monotonic() + 0.05
        for n in range(total):
            due = start + n / rate
            if (left := due - time.monotonic()) > 0:
                time.sleep(left)
            loop.call_soon_threadsafe(one, n, due)

    thread = Thread(target=clock, daemon=True)
    thread.start()
    await over.wait()
    await asyncio.gather(*tasks)


async def main(url: str, rate: str, seconds: str) -> None:
    app = App("pacer", url)
    async with app.connect():
        await pace(app, float(rate), float(seconds))


if __name__ == "__main__":
    sys.setswitchinterval(RUNNING_INTERVAL)
    asyncio.run(main(*sys.argv[1:]))
