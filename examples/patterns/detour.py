"""Detour: orders go straight to billing, or by way of inspection, as the control bus says while the app runs."""

from __future__ import annotations

import asyncio

from msgspec import Struct
from msgspec.structs import replace

from tidings import App, Message, Topic
from tidings.patterns import ControlBus, Detour, Switch, command


class Order(Struct):
    id: int
    inspected: bool = False


app = App("shop", "memory://")
orders = Topic("orders.placed", Order)
inspection, billing = Topic("orders.inspection", Order), Topic("orders.billing", Order)

detour = Detour(app, orders, to=billing, via=inspection)
ControlBus(app).switch("inspect", detour.turn)
billed: asyncio.Queue[Order] = asyncio.Queue()


@app.on(inspection)
async def inspect(order: Order) -> Message[Order]:
    return billing(replace(order, inspected=True))


@app.on(billing)
async def bill(order: Order) -> None:
    billed.put_nowait(order)


async def main() -> None:
    found: list[Order] = []
    async with app:
        for number, on in enumerate((False, True, False)):
            await command(app, "shop", Switch(name="inspect", on=on))
            await app.publish(orders, Order(number))
            found.append(await billed.get())
    print(*found, sep="\n")
    assert found == [Order(0), Order(1, inspected=True), Order(2)]


if __name__ == "__main__":
    asyncio.run(main())
