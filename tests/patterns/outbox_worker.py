"""A process of the kill tests: it writes transactions with messages, or it relays them.

``write URL SEED``: orders of eight keys, numbered without a gap in each; every seventh transaction is rolled back.
``relay URL BUS``: publishes them to the bus.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import time
from typing import Any

import psycopg

from tidings import App, Topic
from tidings.outbox import Outbox

MOST = 400  # rows that wait: then the writers do, too
KEYS = [f"k{n}" for n in range(8)]
TABLES = "CREATE TABLE orders(key TEXT, n INTEGER, PRIMARY KEY(key, n))", "CREATE TABLE latch(key TEXT PRIMARY KEY)"

placed = Topic("orders.placed", dict[str, Any])


class Never(Exception):
    """Rolls a transaction back."""


def order(con: Any, outbox: Outbox, key: str, count: int, sign: str) -> None:
    """The next orders of a key, in the transaction that is open."""
    last = con.execute(f"SELECT coalesce(max(n), 0) FROM orders WHERE key = {sign}", (key,)).fetchone()[0]
    for n in range(last + 1, last + 1 + count):
        con.execute(f"INSERT INTO orders VALUES ({sign}, {sign})", (key, n))
        outbox.add(con, placed({"n": n, "never": count > 4}, key=key))
    if count > 4:
        raise Never


def write(url: str, seed: str) -> None:
    chance, outbox, told = random.Random(seed), Outbox(url), False
    lite = url.startswith("sqlite")
    con: Any = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=60) if lite else psycopg.connect(url)
    while True:
        key, count = chance.choice(KEYS), chance.choice([1, 1, 2, 2, 3, 4, 5])
        try:
            if lite:
                con.execute("BEGIN IMMEDIATE")
            else:
                con.execute("SELECT FROM latch WHERE key = %s FOR UPDATE", (key,))
            order(con, outbox, key, count, "?" if lite else "%s")
            con.commit()
        except Never:
            con.rollback()
        if not told:
            told = True
            print("ready", flush=True)
        while con.execute("SELECT count(*) FROM tidings_outbox").fetchone()[0] > MOST:
            con.rollback()
            time.sleep(0.005)
        con.rollback()


def relay(url: str, bus: str) -> None:
    import asyncio

    app, outbox = App("shop", bus), Outbox(url)
    outbox.relay(app, batch=20)
    asyncio.run(app.serve(lambda: print("ready", flush=True)))


if __name__ == "__main__":
    {"write": write, "relay": relay}[sys.argv[1]](*sys.argv[2:])
