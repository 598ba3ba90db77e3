"""Claim Check: films are too large for a bus: they lie in a folder, messages carry claims, and handlers see films."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from tidings import App, Topic
from tidings.kernel.transport import Inspectable
from tidings.middleware import instrument
from tidings.patterns import ClaimCheck, FolderBlobs

folder = Path(tempfile.mkdtemp())
app = App("cinema", f"sqlite:///{folder / 'cinema.db'}")
films = Topic("films.uploaded", bytes)
turned = Topic("films.turned", bytes)
shown: asyncio.Queue[bytes] = asyncio.Queue()

claims = ClaimCheck(FolderBlobs(folder / "blobs"), above="64KiB", keep="30d")
instrument(app, claims)


@app.on(films, to=turned)
async def turn(film: bytes) -> bytes:
    return film[::-1]


@app.on(turned)
async def show(film: bytes) -> None:
    shown.put_nowait(film)


@app.every("1d")
async def clean_up() -> None:
    await claims.collect()


async def main() -> None:
    film = bytes(range(256)) * 40_000
    async with app:
        await app.publish(films, film)
        seen = await shown.get()
        bus = app.bus()
        assert isinstance(bus, Inspectable)
        stored = [found.message for found in await bus.peek("films.>")]
    whole = [(folder / "blobs" / message.header("claim-check")).exists() for message in stored]
    shutil.rmtree(folder)
    print(f"{len(seen):,} bytes shown; on the bus: {[len(message.body) for message in stored]}")
    assert seen == film[::-1]
    assert all(len(message.body) < 300 for message in stored)
    assert whole == [True, True]


if __name__ == "__main__":
    asyncio.run(main())
