"""EIP: Control Bus. An app is slowed down, and its detour is switched, by messages, while it runs."""

from __future__ import annotations

import asyncio

from tidings import App, Topic
from tidings.patterns import ControlBus, Rate, Switch, audit, command

app = App("shop", "memory://")
placed = Topic("orders.placed", int)

control = ControlBus(app)
handled: asyncio.Queue[str] = asyncio.Queue()
inspecting = False


def inspect(on: bool) -> None:
    global inspecting
    inspecting = on


control.switch("inspect", inspect)


@app.on(placed)
async def bill(order: int) -> None:
    await handled.put(f"{order}{' inspected' if inspecting else ''}")


async def main() -> None:
    async with app:  # an operator would open an app of their own, on the same bus
        await command(app, "shop", Rate(group="shop.bill", per_second=50, by="ann"), Switch(name="inspect", on=True))
        began = asyncio.get_running_loop().time()
        await app.publish_many([placed(order) for order in range(6)])
        told = [await handled.get() for _ in range(6)]
        took = asyncio.get_running_loop().time() - began
        record = await audit(app, "shop")
    print(f"{told[0]}, {told[-1]}: {took:.2f} s")
    assert sorted(told) == [f"{order} inspected" for order in range(6)]
    assert took >= 0.09, "five waits of 1/50 s"
    assert len([entry for entry in record if entry.answers]) == 2
    assert record[0].said.by == "ann"  # type: ignore[union-attr]


if __name__ == "__main__":
    asyncio.run(main())
