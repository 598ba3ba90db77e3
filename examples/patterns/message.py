"""Message: what travels is a payload, and what is said about it."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Message, Topic


class Order(Struct):
    id: str


app = App("shop", "memory://")
placed = Topic("orders.placed", Order)
came: asyncio.Queue[Message[Order]] = asyncio.Queue()


@app.on(placed)
async def look(message: Message[Order]) -> None:  # the payload alone would do: order: Order
    came.put_nowait(message)


async def main() -> None:
    draft = placed(Order("A1"), key="customer-7", headers={"channel": "phone"}, priority=5)
    async with app:
        await app.publish(draft)
        message = await came.get()
    print(message.id, message.topic, message.source, message.content_type, message.body)
    assert draft.id == "", "a draft has no id yet, and no time"
    assert (message.data, message.key, message.priority) == (Order("A1"), "customer-7", 5)
    assert message.header("channel") == "phone"
    assert message.body == b'{"id":"A1"}', "on the wire it is the plain payload"


if __name__ == "__main__":
    asyncio.run(main())
