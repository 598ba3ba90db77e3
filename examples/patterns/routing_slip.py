"""Routing Slip: a trip is booked step by step; when a step fails for good, what was booked is cancelled."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Message, Reject
from tidings.patterns import RoutingSlip, slip_of


class Trip(Struct):
    days: int
    booked: list[str] = []


app = App("travel", "memory://")
trips = RoutingSlip(app, "trips", Trip)
ended: asyncio.Queue[tuple[str, list[str]]] = asyncio.Queue()


@trips.step("hotel")
async def book_hotel(trip: Trip) -> Trip:
    return Trip(trip.days, [*trip.booked, "hotel"])


@trips.compensate("hotel")
async def cancel_hotel(trip: Trip) -> Trip:
    return Trip(trip.days, [each for each in trip.booked if each != "hotel"])


@trips.step("car")
async def book_car(trip: Trip) -> Trip:
    if trip.days > 30:
        raise Reject("nobody lends a car for so long")
    return Trip(trip.days, [*trip.booked, "car"])


@app.on(trips.completed)
async def enjoy(trip: Trip) -> None:
    ended.put_nowait(("enjoyed", trip.booked))


@app.on(trips.compensated)
async def apologize(message: Message[Trip]) -> None:
    slip = slip_of(message)
    ended.put_nowait((f"no {slip.failed}: {slip.error}", message.data.booked))


async def main() -> None:
    async with app:
        for days, steps in ((7, None), (7, ["car"]), (90, ["hotel", "car"])):
            await app.publish(trips.start(Trip(days), steps))
        found = [await ended.get() for _ in range(3)]
    for outcome in sorted(found):
        print(*outcome)
    assert sorted(found) == [
        ("enjoyed", ["car"]),
        ("enjoyed", ["hotel", "car"]),
        ("no car: Reject: nobody lends a car for so long", []),
    ]


if __name__ == "__main__":
    asyncio.run(main())
