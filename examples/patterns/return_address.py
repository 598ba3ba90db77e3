"""Return Address: each order says where its confirmation shall go; the handler needs to know nobody."""

from __future__ import annotations

import asyncio

from msgspec import Struct
from msgspec.structs import replace

from tidings import App, Message, Topic


class Order(Struct):
    sku: str


app = App("shop", "memory://")
orders = Topic("orders.placed", Order)
replies = Topic("replies.{branch}", str)
came: asyncio.Queue[tuple[str, str | None, str]] = asyncio.Queue()


@app.on(orders)
async def confirm(message: Message[Order]) -> Message[str] | None:
    if message.reply_to is None:
        return None
    return Message(message.reply_to, data=f"{message.data.sku} will come", correlation_id=message.id)


@app.on(replies)
async def tell(message: Message[str], branch: str) -> None:
    came.put_nowait((branch, message.correlation_id, message.data))


async def main() -> None:
    async with app:
        for id, branch, sku in [("o1", "rome", "nuts"), ("o2", "oslo", "bolts")]:
            await app.publish(replace(orders(Order(sku), id=id), reply_to=replies.bind(branch=branch).name))
        await app.publish(orders, Order("washers"))  # nobody waits for an answer
        found = sorted([await came.get(), await came.get()])
    print(*found, sep="\n")
    assert found == [("oslo", "o2", "bolts will come"), ("rome", "o1", "nuts will come")]


if __name__ == "__main__":
    asyncio.run(main())
