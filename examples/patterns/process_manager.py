"""EIP: Process Manager. Each order is charged, and shipped once it is paid; one that nobody pays is cancelled."""

from __future__ import annotations

import asyncio
import tempfile

from msgspec import Struct

from tidings import App, Message, Topic
from tidings.patterns import Process, ProcessManager


class Order(Struct):
    id: str
    total: float


class Purchase(Struct):
    """What is known of one order so far."""

    total: float = 0.0
    paid: float = 0.0


app = App("shop", "sqlite:///shop.db")

placed, paid = Topic("orders.placed", Order), Topic("orders.paid", Order)
charges, ended = Topic("charges", Order), Topic("orders.ended", str)
purchases = ProcessManager(app, "purchases", Purchase)


@purchases.on(placed, by=lambda order: order.id, begins=True)
async def begin(order: Order, purchase: Process[Purchase]) -> Message[Order]:
    purchase.state.total = order.total
    purchase.timeout("1s")  # days, in a real shop
    return charges(order, key=order.id)


@purchases.on(paid, by=lambda payment: payment.id)
async def pay(payment: Order, purchase: Process[Purchase]) -> Message[str] | None:
    purchase.state.paid += payment.total
    if purchase.state.paid < purchase.state.total:
        return None
    purchase.end()
    return ended(f"{purchase.id} shipped")


@purchases.timeout
async def give_up(purchase: Process[Purchase]) -> Message[str]:
    purchase.end()
    return ended(f"{purchase.id} cancelled, {purchase.state.paid:g} paid")


outcomes: asyncio.Queue[str] = asyncio.Queue()


@app.on(ended)
async def tell(outcome: str) -> None:
    await outcomes.put(outcome)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        app.use(f"sqlite:///{folder}/shop.db")
        async with app:
            await app.publish_many([placed(Order("A", 10)), placed(Order("B", 20)), placed(Order("C", 5))])
            await app.publish_many([paid(Order("A", 4)), paid(Order("A", 6)), paid(Order("B", 7))])
            told = [await outcomes.get() for _ in range(3)]
    print(*told, sep="; ")
    assert told[0] == "A shipped"
    assert sorted(told[1:]) == ["B cancelled, 7 paid", "C cancelled, 0 paid"]


if __name__ == "__main__":
    asyncio.run(main())
