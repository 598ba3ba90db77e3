"""Publish-Subscribe Channel: each handler of a topic gets every message, at its own speed."""

import asyncio

from tidings import App, Topic

app = App("shop", "memory://")
placed = Topic("orders.placed", str)
done: asyncio.Queue[str] = asyncio.Queue()


@app.on(placed)  # the group "shop.bill"
async def bill(order: str) -> None:
    done.put_nowait(f"bill {order}")


@app.on(placed)  # the group "shop.ship"
async def ship(order: str) -> None:
    done.put_nowait(f"ship {order}")


@app.on("orders.>", live=True)  # no group: a copy for each running process, for what need not be kept
async def show(order: str) -> None:
    done.put_nowait(f"show {order}")


async def main() -> None:
    async with app:
        await app.publish(placed, "o1")
        found = sorted([await done.get() for _ in range(3)])
    print(*found, sep="\n")
    assert found == ["bill o1", "ship o1", "show o1"]


if __name__ == "__main__":
    asyncio.run(main())
