"""Datatype Channel: a topic carries one type. Another is refused where it is published, and never handled as this."""

import asyncio
from typing import Any

from msgspec import Struct

from tidings import App, Message, Topic, UsageError


class Payment(Struct):
    account: str
    cents: int


app = App("bank", "memory://")
payments = Topic("payments.made", Payment)
booked: asyncio.Queue[int] = asyncio.Queue()
refused: asyncio.Queue[str] = asyncio.Queue()


@app.on(payments)
async def book(payment: Payment) -> None:
    booked.put_nowait(payment.cents)


@app.on("_dead.bank.book")
async def look(letter: Message[Any]) -> None:
    refused.put_nowait(letter.header("tdgreason"))


async def main() -> None:
    async with app:
        await app.publish(payments, Payment("a1", 250))
        try:
            await app.publish(payments, {"account": "a1"})  # type: ignore[misc]  # not even type checkers let it pass
        except UsageError as error:
            refused.put_nowait(error.what)
        await app.publish(Message("payments.made", data={"account": "a1", "cents": "250"}))  # as a stranger sends it
        cents, here, there = await booked.get(), await refused.get(), await refused.get()
    print(f"{here}; from elsewhere: {there}")
    assert (cents, there) == (250, "undecodable")
    assert here == "'payments.made' carries Payment, not dict"


if __name__ == "__main__":
    asyncio.run(main())
