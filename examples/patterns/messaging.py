"""Messaging: the shop hands over what happened and goes on; the warehouse, which is down, finds it when it is back."""

import asyncio
import tempfile

from msgspec import Struct

from tidings import App, Message, Topic


class Order(Struct):
    id: str
    article: str


class Shipment(Struct):
    order: str
    shelf: int


placed = Topic("orders.placed", Order)
shipped = Topic("orders.shipped", Shipment)
mailed: asyncio.Queue[str] = asyncio.Queue()


def apps(folder: str) -> tuple[App, App]:
    url = f"sqlite:///{folder}/bus.db"
    shop, warehouse = App("shop", url), App("warehouse", url)

    @shop.on(shipped)
    async def mail(shipment: Shipment) -> None:
        mailed.put_nowait(f"{shipment.order} left shelf {shipment.shelf}")

    @warehouse.on(placed, start="first")
    async def ship(order: Order) -> Message[Shipment]:
        return shipped(Shipment(order.id, len(order.article)), key=order.id)

    return shop, warehouse


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        shop, warehouse = apps(folder)
        async with shop:
            await shop.publish(placed, Order("o1", "lamp"), key="o1")  # kept: nobody is there to take it
            async with warehouse:
                told = await mailed.get()
    print(told)
    assert told == "o1 left shelf 4"


if __name__ == "__main__":
    asyncio.run(main())
