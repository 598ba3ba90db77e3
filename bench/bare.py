"""APSW with the least around it that does the same work: what the embedded bus is compared with.

One table with the log's columns and its index, ids from a counter. No groups, retries, leases, retention. Its commits
are as durable: what is stored is synced at once, claims and settlements at most every ``SYNC`` seconds. Twice: in one
thread, the least work there is; and as an event loop with a thread that writes, which a bus needs whose callers must
not wait for the disk (the ``apart`` functions): the fair floor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import apsw
import msgspec

from tidings.transports.sqlite.writer import SYNC

from .payload import Order, order

BATCH = 1000
CHUNK = 100  # rows an INSERT
CHECKPOINT = 4000  # pages

_insert = "INSERT INTO log VALUES " + ",".join(["(?,?,?,?,?,?)"] * CHUNK)
_encode = msgspec.json.Encoder().encode
_head = msgspec.msgpack.Encoder().encode
_decode = msgspec.json.Decoder(Order).decode

Rows = list[tuple[Any, ...]]  # (seq, body)


class Bare:
    """One file, one connection."""

    def __init__(self, folder: Path) -> None:
        self.con = con = apsw.Connection(str(folder / "bare.db"))
        con.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -16000")
        con.execute(
            "CREATE TABLE IF NOT EXISTS"
            " log(seq INTEGER PRIMARY KEY, channel INTEGER, slot INTEGER, at REAL, head BLOB, body BLOB);"
            "CREATE INDEX IF NOT EXISTS log_channel ON log(channel, seq);"
            "CREATE TABLE IF NOT EXISTS claim(id INTEGER PRIMARY KEY, todo BLOB)"
        )
        self.full, self.synced = True, 0.0
        self.pages = self.seq = 0
        con.set_wal_hook(self._wal)

    def _wal(self, con: apsw.Connection, name: str, pages: int) -> int:
        self.pages = pages
        return apsw.SQLITE_OK

    def close(self) -> None:
        self.con.close()

    def insert(self, orders: Sequence[Order], channels: int = 1) -> None:
        """One transaction."""
        self.begin(soft=False)
        self.store(list(map(_encode, orders)), channels)
        self.commit()

    def store(self, bodies: Sequence[bytes], channels: int = 1) -> None:
        """Within a transaction."""
        now, seq, values = time.time(), self.seq, list[Any]()
        for body in bodies:
            seq += 1
            head = _head((f"id-{seq:x}", None, now, "", "bench", "application/json"))
            values += (seq, seq % channels, None, now, head, body)
        self.seq = seq
        width = CHUNK * 6
        for at in range(0, len(values) - width + 1, width):
            self.con.execute(_insert, values[at : at + width])
        for at in range(len(values) - len(values) % width, len(values), 6):
            self.con.execute("INSERT INTO log VALUES (?,?,?,?,?,?)", values[at : at + 6])

    def begin(self, *, soft: bool) -> None:
        """``soft``: a power failure may undo it, so it is synced only if nothing was for ``SYNC`` seconds."""
        full = not soft or time.monotonic() - self.synced > SYNC
        if full != self.full:
            self.con.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self.full = full
        self.con.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self.con.execute("COMMIT")
        if self.full:
            self.synced = time.monotonic()
        if self.pages > CHECKPOINT:
            self.pages = 0
            self.con.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def claim(self, after: int, limit: int = BATCH) -> Rows:
        """Within a transaction, which may be soft, like that of ``settle``."""
        query = "SELECT seq, body FROM log WHERE seq > ? ORDER BY seq LIMIT ?"
        rows: Rows = self.con.execute(query, (after, limit)).fetchall()
        if rows:
            self.con.execute("INSERT INTO claim VALUES (?, ?)", (after, b"x" * len(rows)))
        return rows

    def settle(self, after: int) -> None:
        """What was claimed beyond ``after``."""
        self.con.execute("DELETE FROM claim WHERE id = ?", (after,))

    def ranges(self, after: int = 0, limit: int = BATCH) -> Iterator[Rows]:
        """All there is. A range is settled, and the next one claimed, when the next one is asked for."""
        self.begin(soft=True)
        rows = self.claim(after, limit)
        self.commit()
        while rows:
            yield rows
            self.begin(soft=True)
            self.settle(after)
            after = rows[-1][0]
            rows = self.claim(after, limit)
            self.commit()

    async def consume(self, after: int = 0) -> None:
        """Claim a range, decode, await a no-op, settle the range."""
        for rows in self.ranges(after):
            await handle(rows)


async def handle(rows: Rows) -> None:
    async def noop(order: Order) -> None:
        return None

    for _, body in rows:
        await noop(_decode(body))


def publish(folder: Path, messages: int, channels: int = 1) -> float:
    """Messages a second, in transactions of 1,000."""
    bare, orders = Bare(folder), [order(n) for n in range(BATCH)]
    began = time.perf_counter()
    for _ in range(messages // BATCH):
        bare.insert(orders, channels)
    took = time.perf_counter() - began
    bare.close()
    return messages / took


def backlog(folder: Path, messages: int) -> float:
    """From when the file is opened to consume."""
    publish(folder, messages)
    began = time.perf_counter()
    asyncio.run(Bare(folder).consume())
    return messages / (time.perf_counter() - began)


def end_to_end(folder: Path, messages: int) -> float:
    bare, orders = Bare(folder), [order(n) for n in range(BATCH)]

    async def both() -> None:
        for start in range(0, messages, BATCH):
            bare.insert(orders)
            await bare.consume(start)

    began = time.perf_counter()
    asyncio.run(both())
    return messages / (time.perf_counter() - began)


# -- an event loop and a thread that writes


class Writer:
    """The thread that owns the connection. Jobs come by a queue; those that have gathered are one transaction."""

    def __init__(self, bare: Bare) -> None:
        self.bare = bare
        self.stored = asyncio.Event()  # set by each commit that stores something
        self._loop = asyncio.get_running_loop()
        self._queue = SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any], bool] | None]()
        self._bodies = list[bytes]()
        self._thread = Thread(target=self._run)
        self._thread.start()

    def do(self, job: Callable[[], Any], *, soft: bool = True) -> asyncio.Future[Any]:
        """What ``job`` returned, once it is committed."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put((job, future, soft))
        return future

    def insert(self, bodies: Sequence[bytes]) -> asyncio.Future[Any]:
        """Done when they are durable."""
        return self.do(partial(self._bodies.extend, bodies), soft=False)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        self.bare.close()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            jobs = [job]
            with suppress(Empty):
                while (job := self._queue.get_nowait()) is not None:
                    jobs.append(job)
            self.bare.begin(soft=all(soft for _, _, soft in jobs))
            done = [(future, work()) for work, future, _ in jobs]
            stored = len(self._bodies)
            self.bare.store(self._bodies)
            self._bodies.clear()
            self.bare.commit()
            self._loop.call_soon_threadsafe(self._told, done, stored)
            if job is None:
                return

    def _told(self, done: list[tuple[asyncio.Future[Any], Any]], stored: int) -> None:
        if stored:
            self.stored.set()
        for future, result in done:
            future.set_result(result)


@asynccontextmanager
async def writing(folder: Path) -> AsyncIterator[Writer]:
    writer = Writer(Bare(folder))
    try:
        yield writer
    finally:
        writer.close()


async def _publish(writer: Writer, messages: int) -> None:
    orders = [order(n) for n in range(BATCH)]
    for _ in range(messages // BATCH):
        await writer.insert(list(map(_encode, orders)))


async def _consume(writer: Writer, messages: int) -> None:
    """While one range is handled the next is claimed, and the one before settled."""

    def claim(after: int) -> asyncio.Future[Any]:
        writer.stored.clear()
        return writer.do(lambda: writer.bare.claim(after))

    after, coming = 0, claim(0)
    while after < messages:
        rows = await coming
        if not rows:
            await writer.stored.wait()
            coming = claim(after)
            continue
        before, after = after, rows[-1][0]
        coming = claim(after)
        await handle(rows)
        settled = writer.do(partial(writer.bare.settle, before))
    await asyncio.gather(settled, coming)


def publish_apart(folder: Path, messages: int) -> float:
    """Messages a second, 1,000 at a time, each durable before the next."""

    async def measured() -> float:
        async with writing(folder) as writer:
            return await _timed(_publish(writer, messages), messages)

    return asyncio.run(measured())


def backlog_apart(folder: Path, messages: int) -> float:
    async def measured() -> float:
        began = time.perf_counter()
        async with writing(folder) as writer:
            await _consume(writer, messages)
            return messages / (time.perf_counter() - began)

    publish_apart(folder, messages)
    return asyncio.run(measured())


def end_to_end_apart(folder: Path, messages: int) -> float:
    async def both(writer: Writer) -> None:
        await asyncio.gather(_publish(writer, messages), _consume(writer, messages))

    async def measured() -> float:
        async with writing(folder) as writer:
            return await _timed(both(writer), messages)

    return asyncio.run(measured())


def concurrent(folder: Path, messages: int, publishers: int) -> float:
    """The thread commits what has gathered; each publisher waits until its own message is durable."""

    async def measured() -> float:
        async with writing(folder) as writer:

            async def publisher() -> None:
                for n in range(messages // publishers):
                    await writer.insert((_encode(order(n)),))

            async def all_of_them() -> None:
                await asyncio.gather(*(publisher() for _ in range(publishers)))

            return await _timed(all_of_them(), messages)

    return asyncio.run(measured())


async def _timed(work: Coroutine[Any, Any, None], messages: int) -> float:
    began = time.perf_counter()
    await work
    return messages / (time.perf_counter() - began)
