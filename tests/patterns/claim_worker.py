"""Publishes large bodies, and turns each round, until it is killed; says what was accepted.

python -m tests.patterns.claim_worker <bus> <app> <folder of the blobs> <round>
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tidings import App, Topic
from tidings.middleware import instrument
from tidings.patterns import ClaimCheck, FolderBlobs

SIZE = 400_000  # bytes


def topics(name: str) -> tuple[Topic[bytes], Topic[bytes]]:
    """Films, and films turned round; of this app alone."""
    return Topic(f"{name}.uploads", bytes), Topic(f"{name}.turned", bytes)


def body(id: str) -> bytes:
    """A body that only this id has."""
    return (id.encode() * SIZE)[:SIZE]


def made(url: str, name: str, folder: Path) -> tuple[App, ClaimCheck]:
    """The app, whose handler checks in what it returns, and its claims."""
    app, claims = App(name, url), ClaimCheck(FolderBlobs(folder))
    uploads, turned = topics(name)

    @app.on(uploads, to=turned, start="first")
    async def turn(film: bytes) -> bytes:
        return film[::-1]

    instrument(app, claims)
    return app, claims


async def main(url: str, name: str, folder: Path, round: str) -> None:
    app, _ = made(url, name, folder)
    async with app:
        for number in range(1000):
            id = f"{name}-{round}-{number}"
            await app.publish(topics(name)[0], body(id), id=id)
            print(id, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
