"""Idempotent Receiver: a payment that is sent twice is booked once; that it was is noted with the booking, as one."""

from __future__ import annotations

import asyncio
import tempfile

from msgspec import Struct

from tidings import App, Message, State, Table, Topic
from tidings.middleware.dedup import Dedup


class Payment(Struct):
    reference: str
    cents: int


folder = tempfile.TemporaryDirectory()
app = App("bank", f"sqlite:///{folder.name}/bank.db")
paid = Topic("payments.made", Payment)
booked = Topic("payments.booked", int)
balances = Table("balances", int)
totals: asyncio.Queue[int] = asyncio.Queue()


@app.on(paid, middleware=[Dedup(window="7d")])
async def book(payment: Payment, state: State) -> Message[int]:
    total = (await state.get(balances, "house") or 0) + payment.cents
    state.put(balances, "house", total)
    return booked(total)


@app.on(booked)
async def tell(total: int) -> None:
    totals.put_nowait(total)


async def main() -> None:
    async with app:
        for _ in range(3):  # whoever pays heard no answer, and sends it again
            await app.publish(paid, Payment("rent", 90_000), id="rent-2026-11")
        await app.publish(paid, Payment("food", 2_500), id="food-1")
        seen = sorted([await totals.get(), await totals.get()])
        while (stats := app.stats()["bank.book"]).handled + stats.skipped < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    print(f"booked: {seen}, skipped: {stats.skipped}")
    assert seen[-1] == 92_500
    assert stats.skipped == 2
    assert totals.empty()


if __name__ == "__main__":
    with folder:
        asyncio.run(main())
