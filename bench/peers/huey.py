"""huey with its SQLite storage: a task queue, so a message is the call of a function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from sqlite3 import sqlite_version
from threading import Event

from huey import SqliteHuey

from ..payload import Order
from ._shared import PATIENCE, POLL, Delays, Tally, accepted, beside, encode, in_threads, orders, paced

NAME = "huey (SQLite)"
DURABLE = (
    "SQLite WAL, fsync=True (synchronous=FULL): each enqueue and each dequeue is a commit. A task is deleted before it "
    "runs, so a crash loses it: at most once"
)
WORKERS = 1  # more only wait for one another: the storage is one connection under one lock


def VERSION() -> str:
    return f"huey {version('huey')}, sqlite {sqlite_version}"


def _queue(folder: Path, take: Callable[[bytes], None]) -> tuple[SqliteHuey, Callable[[bytes], object]]:
    """The queue, and what puts a body into it for ``take``. Results are off, as its documentation advises."""
    huey = SqliteHuey("bench", filename=str(folder / "huey.db"), fsync=True, results=False, timeout=PATIENCE)

    @huey.task()
    def run(body: bytes) -> None:  # found by its module and name: the same in a process that only publishes
        take(body)

    return huey, run


def _ignore(body: bytes) -> None:
    """In a process that only publishes."""


@contextmanager
def _consuming(huey: SqliteHuey) -> Iterator[None]:
    """Its consumer, in threads of this process. It polls an empty queue."""
    consumer = huey.create_consumer(
        workers=WORKERS, periodic=False, initial_delay=POLL, max_delay=POLL, check_worker_health=False
    )
    consumer.start()
    try:
        yield
    finally:
        consumer.stop(graceful=True)


def _wait(full: Event) -> None:
    if not full.wait(PATIENCE):
        raise TimeoutError("not every task was run")


def concurrent(folder: Path, messages: int, publishers: int) -> float:
    """Threads. There is no asyncio interface to enqueue."""
    huey, enqueue = _queue(folder, _ignore)

    def publisher(part: Sequence[Order]) -> None:
        for order in part:
            enqueue(encode(order))

    rate = in_threads(publisher, messages, publishers)
    accepted(huey.pending_count(), messages // publishers * publishers)
    return rate


def publish(folder: Path, messages: int) -> float:
    """One at a time: its ``map`` makes a transaction of each too."""
    huey, enqueue = _queue(folder, _ignore)
    whole = orders(messages)
    began = time.perf_counter()
    for order in whole:
        enqueue(encode(order))
    took = time.perf_counter() - began
    accepted(huey.pending_count(), messages)
    return messages / took


def backlog(folder: Path, messages: int) -> float:
    tally = Tally(messages)
    _, enqueue = _queue(folder, _ignore)
    for order in orders(messages):
        enqueue(encode(order))
    began = time.perf_counter()
    huey, _ = _queue(folder, tally.take)
    with _consuming(huey):
        _wait(tally.full)
        took = time.perf_counter() - began
    tally.check(left=huey.pending_count())
    return messages / took


def end_to_end(folder: Path, messages: int) -> float:
    """One process: this thread enqueues, the consumer's runs the tasks."""
    tally, whole = Tally(messages), orders(messages)
    huey, enqueue = _queue(folder, tally.take)
    with _consuming(huey):
        began = time.perf_counter()
        for order in whole:
            enqueue(encode(order))
        _wait(tally.full)
        took = time.perf_counter() - began
    tally.check(left=huey.pending_count())
    return messages / took


def _publisher(folder: Path, rate: float, seconds: float) -> None:
    _, enqueue = _queue(folder, _ignore)
    for body in paced(rate, seconds):
        enqueue(body)


def latency(folder: Path, rate: float, seconds: float) -> list[float]:
    """Two processes."""
    delays = Delays(rate, seconds)
    huey, _ = _queue(folder, delays.take)
    with _consuming(huey), beside(_publisher, folder, rate, seconds):
        while delays.more():
            time.sleep(0.01)
    return delays.values
