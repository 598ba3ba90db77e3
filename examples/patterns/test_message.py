"""EIP: Test Message. Probes go the whole way from time to time; how long they take is measured."""

from __future__ import annotations

import asyncio

from tidings import App, Message, Topic
from tidings.patterns import Probe, is_probe

app = App("shop", "memory://")
placed, billed = Topic("orders.placed", float), Topic("orders.billed", float)
revenue: list[float] = []
measured: asyncio.Queue[float | None] = asyncio.Queue()


@app.on(placed)
async def bill(total: float, message: Message[float]) -> Message[float]:
    if not is_probe(message):  # what a probe must not touch
        revenue.append(total)
    return billed(total)


@app.on(billed)
async def ship(total: float) -> None:
    assert total > 0, "a probe ends before this handler"


probe = Probe(
    app,
    "billing",
    at=placed,
    make=lambda: -1.0,
    to=billed,
    every="100ms",  # minutes, for a system that is watched for days
    report=lambda result: measured.put_nowait(result.took),
)


async def main() -> None:
    async with app:
        await app.publish(placed, 9.5)
        took = [await measured.get() for _ in range(3)]
        times = probe.stats()
    print(f"{times.arrived} probes arrived, {times.missing} are missing; p99 {times.p99} s")
    assert all(seconds is not None and seconds < 5 for seconds in took)
    assert times.missing == 0
    assert revenue == [9.5]


if __name__ == "__main__":
    asyncio.run(main())
