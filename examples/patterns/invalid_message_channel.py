"""Invalid Message Channel: what a handler cannot read, or refuses, is put aside at once; the others go on."""

import asyncio
from typing import Any

from msgspec import Struct

from tidings import App, Message, Reject, Topic


class Booking(Struct):
    room: str
    nights: int


app = App("hotel", "memory://")
bookings = Topic("bookings.made", Booking)
kept: asyncio.Queue[str] = asyncio.Queue()
invalid: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()


@app.on(bookings)
async def keep(booking: Booking) -> None:
    if booking.nights < 1:
        raise Reject("nobody stays for less than a night")  # never again: no retries
    kept.put_nowait(booking.room)


@app.on("_dead.hotel.keep")  # the invalid message channel of the group "hotel.keep"
async def inspect(letter: Message[Any]) -> None:
    invalid.put_nowait((letter.header("tdgreason"), letter.body))


async def main() -> None:
    async with app:
        await app.publish(Message("bookings.made", data="gibberish"))
        await app.publish(bookings, Booking("12", 0))
        await app.publish(bookings, Booking("14", 3))
        room = await kept.get()
        reasons = dict(sorted([await invalid.get(), await invalid.get()]))
    print(room, reasons)
    assert room == "14"
    assert reasons == {"rejected": b'{"room":"12","nights":0}', "undecodable": b"gibberish"}


if __name__ == "__main__":
    asyncio.run(main())
