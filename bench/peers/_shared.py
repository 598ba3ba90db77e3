"""What the peers share: orders, the handler that counts them, and a publisher with a clock in its own process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from threading import Event
from typing import Any, ClassVar

import msgspec

from ..pacer import Stamped, stamps
from ..payload import Order, order

BATCH = 1000
PATIENCE = 120.0  # seconds until what has not arrived is lost
POLL = 0.001  # seconds between two looks at an empty queue, where a library can only poll

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Order).decode
_stamp = msgspec.json.Decoder(Stamped).decode


def orders(messages: int) -> list[Order]:
    return [order(n) for n in range(messages)]


def batches(of: Sequence[Order]) -> Iterator[Sequence[Order]]:
    return (of[at : at + BATCH] for at in range(0, len(of), BATCH))


class Tally:
    """The no-op handler, which decodes and only counts; it must have seen each of ``messages`` orders once.

    ``first``: when the first was seen.
    """

    payload: ClassVar[type[Any]] = Order

    def __init__(self, messages: int) -> None:
        self.messages = messages
        self.count = 0
        self.first = 0.0
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
        if not self.count:
            self.first = time.perf_counter()
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
    """A handler that records how late each message of a ``paced`` publisher is; those of the first ``warm`` seconds are
    awaited, and forgotten.
    """

    payload: ClassVar[type[Any]] = Stamped

    def __init__(self, rate: float, seconds: float, warm: float = 0.0, patience: float = PATIENCE) -> None:
        self._total, self._warm = int(rate * seconds), int(rate * warm)
        self._of = dict[int, float]()
        self._deadline = time.monotonic() + seconds + patience

    async def handle(self, body: bytes | str) -> None:
        self.take(body)

    def take(self, body: bytes | str) -> None:
        self.see(_stamp(body))

    def see(self, stamp: Stamped) -> None:
        """For those who decode themselves."""
        now = time.monotonic()
        if stamp.n in self._of:
            raise RuntimeError(f"message {stamp.n} came twice")
        self._of[stamp.n] = now - stamp.due

    def more(self) -> bool:
        """Whether some are still to come."""
        if len(self._of) < self._total and time.monotonic() > self._deadline:
            raise TimeoutError(f"{len(self._of)} of {self._total} messages arrived")
        return len(self._of) < self._total

    @property
    def count(self) -> int:
        return len(self._of)

    @property
    def values(self) -> list[float]:
        return [delay for n, delay in self._of.items() if n >= self._warm]


def paced(rate: float, seconds: float) -> Iterator[bytes]:
    """Bodies of ``Stamped``, each when it is due."""
    return map(encode, stamps(rate, seconds))


@contextmanager
def beside(publisher: Callable[..., None], *given: Any) -> Iterator[Callable[[], None]]:
    """``publisher(*given)``, a function of a module, runs in another process meanwhile; it must end well.

    Gives a check that raises when it has ended badly already.
    """
    process = get_context("spawn").Process(target=publisher, args=given, daemon=True)
    process.start()

    def check() -> None:
        if process.exitcode:
            raise RuntimeError(f"the publisher ended with {process.exitcode}")

    try:
        yield check
        process.join(PATIENCE)
        if process.exitcode is None:
            raise TimeoutError("the publisher does not end")
        check()
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
