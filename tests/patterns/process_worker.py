"""A scenario of ``killing``: an order is placed, charged, paid, shipped; one that nobody pays is cancelled in time.

``TIDINGS_URL_STATE``: where the records are, if the bus keeps none.
"""

from __future__ import annotations

import os
from typing import Any

from msgspec import Struct

from tidings import App, Backoff, Message, Topic
from tidings.patterns import Process, ProcessManager

PATIENCE = "400ms"


class Shipping(Struct):
    paid: int = 0
    seen: list[str] = []


placed, charged, paid = Topic("orders.placed", str), Topic("orders.charged", str), Topic("orders.paid", str)
shipped, completed, cancelled = Topic("shipped", str), Topic("completed", Shipping), Topic("cancelled", Shipping)


def app(url: str) -> App:
    beside: Any = {"state": os.environ["TIDINGS_URL_STATE"]} if "TIDINGS_URL_STATE" in os.environ else {}
    shop = App("shop", url, breaker=None, backoff=Backoff(attempts=100, first=0.01), **beside)
    orders = ProcessManager(shop, "orders", Shipping)

    @orders.on(placed, by=str, begins=True)
    async def begin(id: str, process: Process[Shipping]) -> Message[str]:
        process.state.seen.append("placed")
        process.timeout(PATIENCE if id.endswith("-never") else "1h")
        return charged(id)

    @shop.on(charged)
    async def charge(id: str) -> list[Message[str]]:
        return [] if id.endswith("-never") else [paid(id), paid(id)]

    @orders.on(paid, by=str)
    async def pay(id: str, process: Process[Shipping]) -> Message[str] | None:
        process.state.paid += 1
        process.state.seen.append("paid")
        return shipped(id) if process.state.paid == 2 else None

    @orders.on(shipped, by=str)
    async def ship(id: str, process: Process[Shipping]) -> Message[Shipping]:
        process.end()
        return completed(process.state, key=id)

    @orders.timeout
    async def give_up(process: Process[Shipping]) -> Message[Shipping]:
        process.end()
        return cancelled(process.state, key=process.id)

    return shop
