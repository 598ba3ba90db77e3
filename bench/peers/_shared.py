"""What the peers share: orders, the handler that counts them, and a publisher with a clock in its own process."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from multiprocessing import get_context
from pathlib import Path
from threading import Event
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from ..pacer import RUNNING_INTERVAL, Stamped
from ..payload import Order, order

BATCH = 1000
PATIENCE = 120.0  # seconds until what has not arrived is lost
POLL = 0.001  # seconds between two looks at an empty queue, where a library can only poll

P = ParamSpec("P")
T = TypeVar("T")

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Order).decode
_stamp = msgspec.json.Decoder(Stamped).decode


def served(
    server: Callable[[Path], AbstractContextManager[str]],
) -> Callable[[Callable[Concatenate[str, P], Coroutine[Any, Any, T]]], Callable[Concatenate[Path, P], T]]:
    """What is decorated gets the URL of a server whose data is in the folder that it is called with."""

    def decorate(work: Callable[Concatenate[str, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Path, P], T]:
        @wraps(work)
        def run(folder: Path, /, *args: P.args, **options: P.kwargs) -> T:
            with server(folder) as url:
                return asyncio.run(work(url, *args, **options))

        return run

    return decorate


def orders(messages: int) -> list[Order]:
    return [order(n) for n in range(messages)]


def batches(of: Sequence[Order]) -> Iterator[Sequence[Order]]:
    return (of[at : at + BATCH] for at in range(0, len(of), BATCH))


class Tally:
    """The no-op handler, which decodes and only counts; it must have seen each of ``messages`` orders once."""

    def __init__(self, messages: int) -> None:
        self.messages = messages
        self.count = 0
        self.full = Event()
        self._seen = bytearray(messages)

    async def handle(self, body: bytes | str) -> None:
        self.take(body)

    def take(self, body: bytes | str) -> None:
        self.see(decode(body))

    def more(self) -> bool:
        """Whether some are still to come."""
        return self.count < self.messages

    def see(self, order: Order) -> None:
        """For those who decode themselves."""
        self._seen[order.n] += 1
        self.count += 1
        if self.count == self.messages:
            self.full.set()

    def check(self, left: int) -> None:
        """``left``: what the queue still holds, waiting or unsettled."""
        once = self._seen.count(1)
        if once != self.messages or self.count != self.messages or left:
            raise RuntimeError(f"{self.messages} published, {once} handled once, {self.count} in all, {left} left")


class Delays:
    """A handler that records how late each message of a ``paced`` publisher is."""

    def __init__(self, rate: float, seconds: float) -> None:
        self._total = int(rate * seconds)
        self._of = dict[int, float]()
        self._deadline = time.monotonic() + seconds + PATIENCE

    async def handle(self, body: bytes | str) -> None:
        self.take(body)

    def take(self, body: bytes | str) -> None:
        now, stamp = time.monotonic(), _stamp(body)
        if stamp.n in self._of:
            raise RuntimeError(f"message {stamp.n} came twice")
        self._of[stamp.n] = now - stamp.due

    def more(self) -> bool:
        """Whether some are still to come."""
        if len(self._of) < self._total and time.monotonic() > self._deadline:
            raise TimeoutError(f"{len(self._of)} of {self._total} messages arrived")
        return len(self._of) < self._total

    @property
    def values(self) -> list[float]:
        return list(self._of.values())


def paced(rate: float, seconds: float) -> Iterator[bytes]:
    """Bodies of ``Stamped``, each when it is due: at start + n / rate, whatever became of those before it."""
    start = time.monotonic() + 0.05
    for n in range(int(rate * seconds)):
        due = start + n / rate
        if (left := due - time.monotonic()) > 0:
            time.sleep(left)
        yield encode(Stamped(due, n))


async def publish_paced(publish: Callable[[bytes], Coroutine[Any, Any, Any]], rate: float, seconds: float) -> None:
    """A task for each: none waits for another. The clock is a thread, as precise as the system."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:

        def start(body: bytes) -> None:
            group.create_task(publish(body))

        def clock() -> None:
            for body in paced(rate, seconds):
                loop.call_soon_threadsafe(start, body)

        sys.setswitchinterval(RUNNING_INTERVAL)
        await asyncio.to_thread(clock)


@contextmanager
def beside(publisher: Callable[..., None], *given: Any) -> Iterator[None]:
    """``publisher(*given)``, a function of a module, runs in another process meanwhile; it must end well."""
    process = get_context("spawn").Process(target=publisher, args=given, daemon=True)
    process.start()
    try:
        yield
        process.join(PATIENCE)
        if process.exitcode != 0:
            raise RuntimeError(f"the publisher ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def accepted(stored: int, messages: int) -> None:
    """What was published must be there."""
    if stored != messages:
        raise RuntimeError(f"{messages} published, {stored} stored")


def in_threads(work: Callable[[Sequence[Order]], None], messages: int, threads: int) -> float:
    """Messages a second when each of ``threads`` does its part of the work."""
    each = messages // threads
    whole = orders(each * threads)
    parts = [whole[at : at + each] for at in range(0, len(whole), each)]
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        for _ in pool.map(work, parts):
            pass
        return len(whole) / (time.perf_counter() - began)


async def in_tasks(publish: Callable[[bytes], Coroutine[Any, Any, Any]], messages: int, tasks: int) -> float:
    """Messages a second when each of ``tasks`` publishes its part, one after the other."""
    each = messages // tasks
    whole = orders(each * tasks)

    async def publisher(part: Sequence[Order]) -> None:
        for item in part:
            await publish(encode(item))

    began = time.perf_counter()
    await asyncio.gather(*(publisher(whole[at : at + each]) for at in range(0, len(whole), each)))
    return len(whole) / (time.perf_counter() - began)
