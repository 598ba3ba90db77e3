"""Dynamic Router: recipients announce by messages what they take while the router runs, which keeps it."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Topic
from tidings.patterns import Rule, dynamic_router


class Parcel(Struct):
    weight: int


class Offer(Struct):
    most: int


app = App("post", "memory://")
parcels = Topic("parcels.posted", Parcel)
offers = Topic("parcels.offers", Rule[Offer])
by_hand = Topic("parcels.by-hand", Parcel)
went: asyncio.Queue[tuple[str, int]] = asyncio.Queue()


@dynamic_router(app, parcels, rules=offers, otherwise=by_hand)
def takes(parcel: Parcel, offer: Offer) -> bool:
    return parcel.weight <= offer.most


@app.on(by_hand)
async def carry(parcel: Parcel) -> None:
    went.put_nowait(("by hand", parcel.weight))


@app.on("carriers.lorry")
async def drive(parcel: Parcel) -> None:
    went.put_nowait(("lorry", parcel.weight))


async def way_of(weight: int) -> str:
    await app.publish(parcels, Parcel(weight))
    way, came = await went.get()
    assert came == weight
    return way


async def main() -> None:
    async with app:
        assert await way_of(10) == "by hand"
        await app.publish(offers, Rule("lorry", "carriers.lorry", Offer(most=500)))
        ways = [await way_of(10)]
        while ways[-1] == "by hand":  # until the router knows
            ways.append(await way_of(10))
        heavy = await way_of(501)
        await app.publish(offers, Rule("lorry"))  # it leaves
        while await way_of(10) == "lorry":
            pass
    print(f"10 kg: {ways[-1]}, 501 kg: {heavy}")
    assert (ways[-1], heavy) == ("lorry", "by hand")


if __name__ == "__main__":
    asyncio.run(main())
