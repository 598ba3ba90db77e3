"""Polling Consumer: the packer takes the next order when there is room on the table, and not before."""

import asyncio

from tidings import App, Topic
from tidings.patterns import polling_consumer

app = App("shop", "memory://")
placed = Topic("orders.placed", str)
orders = polling_consumer(app, placed, group="shop.pack")


async def pack() -> list[str]:
    packed: list[str] = []
    while True:
        async with orders.receive(timeout="100ms") as message:  # settled when the block ends
            if message is None:
                return packed
            packed.append(message.data)


async def main() -> None:
    async with app:
        await app.publish_many([placed(f"o{number}") for number in range(3)])
        packed = await pack()
        await app.publish(placed, "o3")
        try:
            async with orders.receive() as message:
                raise OSError("the box is torn")  # tried again, as if a handler had raised it
        except OSError:
            async with orders.receive() as message:
                packed.append(message.data if message else "")
    print(*packed)
    assert packed == ["o0", "o1", "o2", "o3"]


if __name__ == "__main__":
    asyncio.run(main())
