"""A publisher with a clock: ``python -m bench.pacer <url> <rate> <seconds>``.

Message n is due at start + n / rate whatever became of those before it, and carries that moment: a publisher or bus
that stalls makes every message of the stall late (no coordinated omission). The clock is a thread, as precise as the
system, because an event loop's timers are rounded to a millisecond.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

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


def stamps(rate: float, seconds: float) -> Iterator[Stamped]:
    """Each when it is due: at start + n / rate, whatever became of those before it."""
    start = time.monotonic() + 0.05
    for n in range(int(rate * seconds)):
        due = start + n / rate
        if (left := due - time.monotonic()) > 0:
            time.sleep(left)
        yield Stamped(due, n)


async def pace(publish: Callable[[Stamped], Coroutine[Any, Any, Any]], rate: float, seconds: float) -> None:
    """A task for each: none waits for another."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:

        def start(stamp: Stamped) -> None:
            group.create_task(publish(stamp))

        def clock() -> None:
            for stamp in stamps(rate, seconds):
                loop.call_soon_threadsafe(start, stamp)

        sys.setswitchinterval(RUNNING_INTERVAL)
        await asyncio.to_thread(clock)


async def main(url: str, rate: str, seconds: str) -> None:
    app = App("pacer", url)
    async with app.connect():
        await pace(lambda stamp: app.publish(stamped, stamp), float(rate), float(seconds))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
