"""litequeue 0.9, the last for Python 3.11: a table in SQLite, one row a message."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from sqlite3 import sqlite_version
from threading import Thread

from litequeue import LiteQueue

from ..payload import Order
from ._shared import (
    BATCH,
    PATIENCE,
    POLL,
    Delays,
    Tally,
    accepted,
    batches,
    beside,
    encode,
    in_threads,
    orders,
    paced,
)

NAME = "litequeue"
DURABLE = (
    "SQLite WAL, synchronous=FULL set by us (litequeue itself sets NORMAL, under which a power loss takes the last "
    "messages); a pop is one commit, done() of a batch one transaction"
)


def VERSION() -> str:
    return f"litequeue {version('litequeue')}, sqlite {sqlite_version}"


def _queue(folder: Path) -> LiteQueue:
    queue = LiteQueue(folder / "queue.db", timeout=PATIENCE)
    queue.conn.execute("PRAGMA synchronous = FULL")
    return queue


def _put(queue: LiteQueue, batch: Sequence[Order]) -> None:
    """One transaction."""
    with queue.transaction(mode="IMMEDIATE"):
        for order in batch:
            queue.put(encode(order).decode())


def _consume(queue: LiteQueue, tally: Tally) -> None:
    """Pops are a transaction each; what was handled is settled together."""
    while tally.more():
        taken = list(islice(iter(queue.pop, None), BATCH))
        for message in taken:
            tally.take(message.data)
        with queue.transaction(mode="IMMEDIATE"):
            for message in taken:
                queue.done(message.message_id)
        if not taken:
            time.sleep(POLL)


def concurrent(folder: Path, messages: int, publishers: int) -> float:
    """Threads over one connection: SQLite's own lock lets one in at a time. There is no asyncio interface."""
    queue = _queue(folder)

    def publisher(part: Sequence[Order]) -> None:
        for order in part:
            queue.put(encode(order).decode())

    rate = in_threads(publisher, messages, publishers)
    accepted(queue.qsize(), messages // publishers * publishers)
    return rate


def publish(folder: Path, messages: int) -> float:
    queue, whole = _queue(folder), orders(messages)
    began = time.perf_counter()
    for batch in batches(whole):
        _put(queue, batch)
    took = time.perf_counter() - began
    accepted(queue.qsize(), messages)
    return messages / took


def backlog(folder: Path, messages: int) -> float:
    """Each pop sorts all that wait: the rate falls as the backlog grows."""
    queue, tally = _queue(folder), Tally(messages)
    for batch in batches(orders(messages)):
        _put(queue, batch)
    queue.close()
    began = time.perf_counter()
    queue = _queue(folder)
    _consume(queue, tally)
    took = time.perf_counter() - began
    tally.check(left=queue.qsize())
    return messages / took


def end_to_end(folder: Path, messages: int) -> float:
    """A thread publishes, this one consumes, each over its own connection."""
    queue, tally, whole = _queue(folder), Tally(messages), orders(messages)

    def publisher() -> None:
        own = _queue(folder)
        for batch in batches(whole):
            _put(own, batch)
        own.close()

    thread = Thread(target=publisher)
    began = time.perf_counter()
    thread.start()
    _consume(queue, tally)
    took = time.perf_counter() - began
    thread.join()
    tally.check(left=queue.qsize())
    return messages / took


def _publisher(folder: Path, rate: float, seconds: float) -> None:
    queue = _queue(folder)
    for body in paced(rate, seconds):
        queue.put(body.decode())


def latency(folder: Path, rate: float, seconds: float) -> list[float]:
    """Two processes. An empty queue can only be polled."""
    queue, delays = _queue(folder), Delays(rate, seconds)
    with beside(_publisher, folder, rate, seconds):
        while delays.more():
            if (message := queue.pop()) is None:
                time.sleep(POLL)
            else:
                delays.take(message.data)
                queue.done(message.message_id)
    return delays.values
