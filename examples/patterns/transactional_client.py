"""EIP: Transactional Client. An order and its message are one transaction of the shop's own database, or neither is."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tidings import App, Topic
from tidings.outbox import Outbox


@dataclass
class Order:
    id: int
    customer: str


app = App("shop", "memory://")
placed = Topic("orders.placed", Order)
billed: asyncio.Queue[Order] = asyncio.Queue()


@app.on(placed)
async def bill(order: Order) -> None:
    await billed.put(order)


def place(connection: sqlite3.Connection, outbox: Outbox, order: Order) -> None:
    with connection:  # one transaction
        connection.execute("INSERT INTO orders VALUES (?, ?)", (order.id, order.customer))
        outbox.add(connection, placed(order, key=order.customer))
        if order.customer == "nobody":
            raise LookupError("there is no such customer")


async def main(folder: Path) -> None:
    outbox = Outbox(f"sqlite:///{folder / 'shop.db'}")
    await outbox.create()
    outbox.relay(app)
    connection = sqlite3.connect(folder / "shop.db")
    connection.execute("CREATE TABLE orders(id INTEGER PRIMARY KEY, customer TEXT)")
    for order in (Order(1, "ann"), Order(2, "nobody"), Order(3, "bob")):
        try:
            place(connection, outbox, order)
        except LookupError as error:
            print(f"order {order.id} was rolled back: {error}")
    async with app:
        told = [await billed.get(), await billed.get()]
        ids = connection.execute("SELECT id FROM orders ORDER BY id").fetchall()
    connection.close()
    print(*told)
    assert [(order.id,) for order in told] == ids == [(1,), (3,)]
    assert billed.empty()
    assert await outbox.pending() == 0


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
