"""APSW with the least around it that does the same work: what the embedded bus is compared with.

One table with the log's columns and its index, FULL sync, ids from a counter. No groups, retries, leases, retention.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import apsw
import msgspec

from .payload import Order, order

BATCH = 1000
CHUNK = 100  # rows an INSERT
CHECKPOINT = 4000  # pages

_insert = "INSERT INTO log VALUES " + ",".join(["(?,?,?,?,?,?)"] * CHUNK)
_encode = msgspec.json.Encoder().encode
_head = msgspec.msgpack.Encoder().encode
_decode = msgspec.json.Decoder(Order).decode


class Bare:
    """One file, one connection."""

    def __init__(self, folder: Path) -> None:
        self.con = con = apsw.Connection(str(folder / "bare.db"))
        con.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -16000")
        con.execute(
            "CREATE TABLE log(seq INTEGER PRIMARY KEY, channel INTEGER, slot INTEGER, at REAL, head BLOB, body BLOB);"
            "CREATE INDEX log_channel ON log(channel, seq); CREATE TABLE claim(id INTEGER PRIMARY KEY, todo BLOB)"
        )
        self.pages = self.seq = 0
        con.set_wal_hook(self._wal)

    def _wal(self, con: apsw.Connection, name: str, pages: int) -> int:
        self.pages = pages
        return apsw.SQLITE_OK

    def insert(self, orders: Sequence[Order], channels: int = 1) -> None:
        """One transaction."""
        now, seq, values = time.time(), self.seq, list[Any]()
        for item in orders:
            seq += 1
            head = _head((f"id-{seq:x}", None, now, "", "bench", "application/json"))
            values += (seq, seq % channels, None, now, head, _encode(item))
        self.seq = seq
        self.con.execute("BEGIN IMMEDIATE")
        width = CHUNK * 6
        for at in range(0, len(values) - width + 1, width):
            self.con.execute(_insert, values[at : at + width])
        for at in range(len(values) - len(values) % width, len(values), 6):
            self.con.execute("INSERT INTO log VALUES (?,?,?,?,?,?)", values[at : at + 6])
        self.con.execute("COMMIT")
        if self.pages > CHECKPOINT:
            self.pages = 0
            self.con.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    async def consume(self, after: int, until: int) -> None:
        """Claim a range, decode, await a no-op, settle the range."""

        async def noop(order: Order) -> None:
            return None

        while after < until:
            query = "SELECT seq, body FROM log WHERE seq > ? ORDER BY seq LIMIT ?"
            self.con.execute("BEGIN IMMEDIATE")
            rows: list[tuple[Any, ...]] = self.con.execute(query, (after, BATCH)).fetchall()
            self.con.execute("INSERT OR REPLACE INTO claim VALUES (1, ?)", (b"x" * len(rows),))
            self.con.execute("COMMIT")
            for _, body in rows:
                await noop(_decode(body))
            after = rows[-1][0]
            self.con.execute("DELETE FROM claim")


def publish(folder: Path, messages: int, channels: int = 1) -> float:
    """Messages a second, in transactions of 1,000."""
    bare, orders = Bare(folder), [order(n) for n in range(BATCH)]
    began = time.perf_counter()
    for _ in range(messages // BATCH):
        bare.insert(orders, channels)
    return messages / (time.perf_counter() - began)


def backlog(folder: Path, messages: int) -> float:
    bare, orders = Bare(folder), [order(n) for n in range(BATCH)]
    for _ in range(messages // BATCH):
        bare.insert(orders)
    began = time.perf_counter()
    asyncio.run(bare.consume(0, messages))
    return messages / (time.perf_counter() - began)


def end_to_end(folder: Path, messages: int) -> float:
    bare, orders = Bare(folder), [order(n) for n in range(BATCH)]

    async def both() -> None:
        for start in range(0, messages, BATCH):
            bare.insert(orders)
            await bare.consume(start, start + BATCH)

    began = time.perf_counter()
    asyncio.run(both())
    return messages / (time.perf_counter() - began)


def concurrent(folder: Path, messages: int, publishers: int) -> float:
    """A thread commits what has gathered; each publisher waits until its own message is durable."""
    return asyncio.run(_concurrent(Bare(folder), messages, publishers))


async def _concurrent(bare: Bare, messages: int, publishers: int) -> float:
    loop, queue = asyncio.get_running_loop(), SimpleQueue[tuple[Order, asyncio.Future[None]] | None]()

    def told(futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            future.set_result(None)

    def write() -> None:
        while (job := queue.get()) is not None:
            jobs = [job]
            with suppress(Empty):
                while (job := queue.get_nowait()) is not None:
                    jobs.append(job)
            bare.insert([item for item, _ in jobs])
            loop.call_soon_threadsafe(told, [future for _, future in jobs])

    async def publisher() -> None:
        for n in range(messages // publishers):
            future: asyncio.Future[None] = loop.create_future()
            queue.put((order(n), future))
            await future

    writer = Thread(target=write)
    writer.start()
    began = time.perf_counter()
    await asyncio.gather(*(publisher() for _ in range(publishers)))
    took = time.perf_counter() - began
    queue.put(None)
    writer.join()
    return messages / took
