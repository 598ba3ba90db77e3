"""A process that polls a table until it is killed: ``python -m tests.patterns.sql_worker <bus> <database>``."""

from __future__ import annotations

import asyncio
import sqlite3
import sys

from msgspec import Struct

from tidings import App, Topic
from tidings.patterns.sql_poller import poll_sql

QUERY = "SELECT id, article FROM orders WHERE id > ? ORDER BY id"


class Order(Struct):
    id: int
    article: str


placed = Topic("orders.placed", Order)


def main(url: str, path: str) -> None:
    app = App("poller", url)
    poll_sql(app, placed, connect=lambda: sqlite3.connect(path), query=QUERY, every="10ms")
    asyncio.run(app.serve(lambda: print("ready", flush=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
