"""persist-queue: its acknowledged queue in SQLite, one row a message."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

from persistqueue import Empty, SQLiteAckQueue

from ..payload import Order
from ._shared import PATIENCE, Delays, Tally, accepted, encode, in_threads, orders, paced

NAME = "persist-queue"
DURABLE = (
    "SQLite WAL, the synchronous of the SQLite that Python has (checked: FULL); put, get and ack are a commit each, "
    "as it has no batches"
)


def VERSION() -> str:
    return f"persist-queue {version('persist-queue')}, sqlite {sqlite3.sqlite_version}"


def _queue(folder: Path) -> SQLiteAckQueue:
    with closing(sqlite3.connect(":memory:")) as con:
        if con.execute("PRAGMA synchronous").fetchone() != (2,):
            raise RuntimeError("this SQLite does not sync every commit by default, and persist-queue cannot ask for it")
    return SQLiteAckQueue(str(folder), multithreading=True, timeout=PATIENCE)


def _next(queue: SQLiteAckQueue, last: int | None) -> dict[str, Any] | None:
    """The one after ``last``: a search from the start would pass every acknowledged row each time."""
    try:
        return queue.get(timeout=0.1, id=last, next_in_order=last is not None, raw=True)  # type: ignore[no-any-return]
    except Empty:
        return None


def _consume(queue: SQLiteAckQueue, tally: Tally) -> None:
    last: int | None = None
    while tally.more():
        if (item := _next(queue, last)) is not None:
            last = item["pqid"]
            tally.take(item["data"])
            queue.ack(id=last)


def _left(queue: SQLiteAckQueue, messages: int) -> int:
    return messages - int(queue.acked_count())


def concurrent(folder: Path, messages: int, publishers: int) -> float:
    """Threads: ``multithreading=True`` is one connection to put, under a lock. (``AsyncSQLiteQueue`` has no ack.)"""
    queue = _queue(folder)

    def publisher(part: Sequence[Order]) -> None:
        for order in part:
            queue.put(encode(order))

    rate = in_threads(publisher, messages, publishers)
    accepted(_queue(folder).size, messages // publishers * publishers)
    return rate


def publish(folder: Path, messages: int) -> float:
    queue, whole = _queue(folder), orders(messages)
    began = time.perf_counter()
    for order in whole:
        queue.put(encode(order))
    took = time.perf_counter() - began
    accepted(_queue(folder).size, messages)
    return messages / took


def backlog(folder: Path, messages: int) -> float:
    queue, tally = _queue(folder), Tally(messages)
    for order in orders(messages):
        queue.put(encode(order))
    queue.close()
    began = time.perf_counter()
    queue = _queue(folder)
    _consume(queue, tally)
    took = time.perf_counter() - began
    tally.check(_left(queue, messages))
    return messages / took


def end_to_end(folder: Path, messages: int) -> float:
    queue, tally, whole = _queue(folder), Tally(messages), orders(messages)

    def publisher() -> None:
        for order in whole:
            queue.put(encode(order))

    thread = Thread(target=publisher)
    began = time.perf_counter()
    thread.start()
    _consume(queue, tally)
    took = time.perf_counter() - began
    thread.join()
    tally.check(_left(queue, messages))
    return messages / took


def latency(folder: Path, rate: float, seconds: float) -> list[float]:
    """In one process: a put wakes only the getters of its own queue object."""
    queue, delays = _queue(folder), Delays(rate, seconds)

    def publisher() -> None:
        for body in paced(rate, seconds):
            queue.put(body)

    thread, last = Thread(target=publisher), None
    thread.start()
    while delays.more():
        if (item := _next(queue, last)) is not None:
            last = item["pqid"]
            delays.take(item["data"])
            queue.ack(id=last)
    thread.join()
    return delays.values
