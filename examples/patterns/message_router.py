"""Message Router: a handler that returns one topic's message or another's."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Message, Topic


class Parcel(Struct):
    id: str
    country: str


app = App("post", "memory://")
posted = Topic("parcels.posted", Parcel)
inland = Topic("parcels.inland", Parcel)
abroad = Topic("parcels.abroad", Parcel)
lorries: asyncio.Queue[str] = asyncio.Queue()
planes: asyncio.Queue[str] = asyncio.Queue()


@app.on(posted)
async def route(parcel: Parcel) -> Message[Parcel]:
    return inland(parcel) if parcel.country == "IT" else abroad(parcel)


@app.on(inland)
async def drive(parcel: Parcel) -> None:
    lorries.put_nowait(parcel.id)


@app.on(abroad)
async def fly(parcel: Parcel) -> None:
    planes.put_nowait(parcel.id)


async def main() -> None:
    assert await route(Parcel("p0", "IT")) == inland(Parcel("p0", "IT"))
    async with app:
        await app.publish_many([posted(Parcel("p1", "IT")), posted(Parcel("p2", "NO"))])
        driven, flown = await lorries.get(), await planes.get()
    print(f"{driven} by road, {flown} by air")
    assert (driven, flown) == ("p1", "p2")
    assert lorries.empty()
    assert planes.empty()


if __name__ == "__main__":
    asyncio.run(main())
