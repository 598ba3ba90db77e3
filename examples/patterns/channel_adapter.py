"""Channel Adapter: a table, a program and a folder know nothing of messages; adapters connect them."""

import asyncio
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from msgspec import Struct

from tidings import App, Topic
from tidings.patterns import poll_sql, run_process, write_files


class Order(Struct):
    id: int
    article: str


orders = Topic("orders.placed", Order)
seconds = Topic("clock.ticked", int)
ticked: asyncio.Queue[int] = asyncio.Queue()

COUNT = [sys.executable, "-c", "for second in range(3): print(second, flush=True)"]


def connected(folder: Path) -> App:
    app = App("office", f"sqlite:///{folder}/office.db")
    query = "SELECT id, article FROM orders WHERE id > ? ORDER BY id"  # each row once, also after a crash
    poll_sql(app, orders, connect=lambda: sqlite3.connect(folder / "shop.db"), query=query, every="20ms")
    write_files(app, orders, folder / "out", name=lambda message: f"{message.id[:8]}.json")  # whole, or not at all
    run_process(app, COUNT, seconds, read=int)  # each line is a message

    @app.on(seconds, concurrency=1)
    async def tick(second: int) -> None:
        ticked.put_nowait(second)

    return app


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with closing(sqlite3.connect(folder / "shop.db")) as shop, shop:
            shop.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, article TEXT)")
            shop.executemany("INSERT INTO orders (article) VALUES (?)", [("tea",), ("cup",)])
        async with connected(folder) as app:
            while app.stats()["office.write-out"].handled < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            counted = [await ticked.get() for _ in range(3)]
        written = sorted(path.read_text() for path in (folder / "out").glob("*.json"))
    print(*written, *counted, sep="\n")
    assert counted == [0, 1, 2]
    assert written == ['{"id":1,"article":"tea"}', '{"id":2,"article":"cup"}']


if __name__ == "__main__":
    asyncio.run(main())
