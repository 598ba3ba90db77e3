"""Event Message: named by what has happened; whoever is interested listens, and who publishes it knows nobody."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Router, Topic


class Placed(Struct):
    order: str


placed = Topic("orders.placed", Placed)  # a past tense
happened: asyncio.Queue[str] = asyncio.Queue()
billing, statistics = Router(), Router()


@billing.on(placed)
async def bill(event: Placed) -> None:
    happened.put_nowait(f"bill {event.order}")


@statistics.on("orders.>")
async def count(event: Placed) -> None:
    happened.put_nowait(f"count {event.order}")


app = App("shop", "memory://")
app.include(billing)
app.include(statistics)


async def main() -> None:
    async with app:
        await app.publish(placed, Placed("o1"))
        found = sorted([await happened.get(), await happened.get()])
    print(*found, sep="\n")
    assert found == ["bill o1", "count o1"]


if __name__ == "__main__":
    asyncio.run(main())
