"""Competing Consumers: several processes of one group share its messages; here two apps on one file play them."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter

from tidings import App, Topic

pictures = Topic("pictures.uploaded", int)
done: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
both_busy = asyncio.Barrier(2)


def worker(name: str, url: str) -> App:
    app, first = App("album", url), [True]

    @app.on(pictures, concurrency=1)
    async def shrink(number: int) -> None:
        if first:
            first.clear()
            await both_busy.wait()  # each has one: they work side by side
        done.put_nowait((name, number))

    return app


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/album.db"
        async with worker("left", url) as left, worker("right", url):
            await left.publish_many([pictures(number) for number in range(40)])
            shared = [await done.get() for _ in range(40)]
    share = Counter(name for name, _ in shared)
    print(*share.items())
    assert sorted(number for _, number in shared) == list(range(40)), "each once"
    assert share.keys() == {"left", "right"}


if __name__ == "__main__":
    asyncio.run(main())
