"""Envelope Wrapper: payments travel encrypted; handlers and whoever publishes notice nothing of it."""

from __future__ import annotations

import asyncio
import os

from msgspec import Struct

from tidings import App, Message, Topic
from tidings.kernel.transport import Inspectable
from tidings.middleware import instrument
from tidings.patterns import encrypted


class Payment(Struct):
    card: str
    cents: int


app = App("bank", "memory://")
payments = Topic("payments.made", Payment)
booked: asyncio.Queue[Message[Payment]] = asyncio.Queue()

keys = {"2026-11": os.urandom(32), "2026-10": os.urandom(32)}  # the first encrypts; yours come from a safe place
instrument(app, encrypted(keys, topics="payments.>"))


@app.on(payments)
async def book(message: Message[Payment]) -> None:
    booked.put_nowait(message)


async def main() -> None:
    async with app:
        await app.publish(payments, Payment("5500-0000-0000-0004", 1999))
        message = await booked.get()
        bus = app.bus()
        assert isinstance(bus, Inspectable)
        (stored,) = [found.message for found in await bus.peek("payments.>")]
    print(stored.header("envelope"), stored.body.hex()[:32], "->", message.data)
    assert message.data == Payment("5500-0000-0000-0004", 1999)
    assert stored.header("envelope") == "aes-gcm/2026-11"
    assert b"5500" not in stored.body


if __name__ == "__main__":
    asyncio.run(main())
