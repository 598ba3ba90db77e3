"""Content Enricher: an order names a customer; the carrier needs the address, which another system knows."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Reject, Topic
from tidings.patterns import Lookup


class Order(Struct):
    id: str
    customer: str


class Parcel(Struct):
    order: str
    address: str


app = App("shop", "memory://")
orders = Topic("orders.placed", Order)
parcels = Topic("parcels.ready", Parcel)
ready: asyncio.Queue[Parcel] = asyncio.Queue()
asked: list[str] = []


async def fetch_address(customer: str) -> str | None:
    """Stands for a request to the customers' database."""
    asked.append(customer)
    return {"ada": "12 St James's Square"}.get(customer)


addresses = Lookup(fetch_address, ttl="5m", size=10_000)


@app.on(orders, to=parcels)
async def address(order: Order) -> Parcel:
    found = await addresses(order.customer)
    if found is None:
        raise Reject(f"nobody knows {order.customer}")
    return Parcel(order.id, found)


@app.on(parcels)
async def ship(parcel: Parcel) -> None:
    ready.put_nowait(parcel)


async def main() -> None:
    async with app:
        await app.publish_many([orders(Order(f"o{number}", "ada")) for number in range(3)])
        shipped = [await ready.get() for _ in range(3)]
    print(f"{len(shipped)} parcels to {shipped[0].address}, asked for {len(asked)} time")
    assert {parcel.address for parcel in shipped} == {"12 St James's Square"}
    assert asked == ["ada"], "one question, however many orders"


if __name__ == "__main__":
    asyncio.run(main())
