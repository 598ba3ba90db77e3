"""Durable Subscriber: a group keeps its place while nobody of it runs; it misses nothing, and gets nothing twice."""

import asyncio
import tempfile

from tidings import App, Topic

news = Topic("news.published", str)
read: asyncio.Queue[str] = asyncio.Queue()


def reader(folder: str) -> App:
    app = App("reader", f"sqlite:///{folder}/news.db")

    @app.on(news)  # the group "reader.note", from its first start on
    async def note(title: str) -> None:
        read.put_nowait(title)

    return app


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with (app := reader(folder)):
            await app.publish(news, "first")
            before = await read.get()
        async with (press := App("press", f"sqlite:///{folder}/news.db")).connect():
            await press.publish(news, "while it was away")
        async with (app := reader(folder)):  # the same group goes on where it was
            await app.publish(news, "last")
            after = sorted([await read.get(), await read.get()])
    print(before, *after, sep="\n")
    assert (before, after) == ("first", ["last", "while it was away"])
    assert read.empty()


if __name__ == "__main__":
    asyncio.run(main())
