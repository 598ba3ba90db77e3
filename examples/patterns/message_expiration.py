"""Message Expiration: an offer is worthless after a while; nobody is bothered with it then."""

from __future__ import annotations

import asyncio

from tidings import App, Topic

app = App("shop", "memory://")
offers = Topic("offers.made", str)
seen: asyncio.Queue[str] = asyncio.Queue()


@app.on(offers, concurrency=1)
async def read(offer: str) -> None:
    seen.put_nowait(offer)


async def main() -> None:
    async with app:
        app.pause("shop.read")  # its reader is away
        await app.publish(offers, "nuts, today only", expires="1ms")
        await app.publish(offers, "bolts, all week", expires="7d")
        await asyncio.sleep(0.05)  # the day passes
        app.pause("shop.read", False)
        offer = await seen.get()
        expired = app.stats()["shop.read"].expired
    print(f"{offer!r}; {expired} had expired")
    assert offer == "bolts, all week"
    assert (expired, seen.empty()) == (1, True)


if __name__ == "__main__":
    asyncio.run(main())
