"""Message Sequence: a film too large for one message travels as numbered pieces, and whoever gets it knows when it is
whole."""

from __future__ import annotations

import asyncio

from tidings import App, Message, Topic
from tidings.patterns import position, sequenced

app = App("cinema", "memory://")
pieces = Topic("films.pieces", bytes)
whole: asyncio.Queue[bytes] = asyncio.Queue()
came: dict[str, dict[int, bytes]] = {}


@app.on(pieces)
async def put_together(message: Message[bytes]) -> None:
    place = position(message)
    assert place is not None
    got = came.setdefault(place.id, {})
    got[place.number] = message.data
    if len(got) == place.size:
        whole.put_nowait(b"".join(piece for _, piece in sorted(got.items())))


async def main() -> None:
    film = bytes(range(256)) * 10
    cut = [pieces(film[start : start + 1000], key="metropolis") for start in range(0, len(film), 1000)]
    async with app:
        await app.publish_many(sequenced(cut))
        shown = await whole.get()
    print(f"{len(cut)} pieces, {len(shown):,} bytes")
    assert shown == film


if __name__ == "__main__":
    asyncio.run(main())
