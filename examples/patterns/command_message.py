"""Command Message: named by what shall be done, and done by one: the processes of its group compete for it."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Topic


class Ship(Struct):
    order: str
    express: bool = False


app = App("warehouse", "memory://")
ship = Topic("warehouse.ship", Ship)  # an imperative
done: asyncio.Queue[str] = asyncio.Queue()
tries: list[str] = []


@app.on(ship)
async def pack_and_ship(command: Ship) -> None:
    tries.append(command.order)
    if tries.count(command.order) == 1:
        raise ConnectionError("the carrier does not answer")  # a command is carried out, if not now then soon
    done.put_nowait(f"{command.order} {'by night' if command.express else 'as usual'}")


async def main() -> None:
    async with app:
        await app.publish(ship, Ship("o1", express=True), id="ship-o1")
        shipped = await done.get()
    print(shipped, f"after {len(tries)} tries")
    assert shipped == "o1 by night"
    assert tries == ["o1", "o1"]


if __name__ == "__main__":
    asyncio.run(main())
