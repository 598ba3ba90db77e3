"""Handle some messages and settle the others unread (beyond the book: Sampler): three middlewares for any handler.

    @app.on(readings, middleware=[sample_interval("1s")])
    async def draw(reading: Reading) -> None: ...

They know nothing of other processes: each takes its share of what it gets. An attempt after a failure is always taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any
from zlib import crc32

from tidings.kernel.clock import current_clock
from tidings.kernel.errors import Duration, InvalidOption
from tidings.kernel.handler import Many, One, Outcome, Outgoing
from tidings.kernel.message import Message, seconds
from tidings.kernel.transport import Delivery

from ._pattern import describe

KEYS = 10_000  # whose last time is remembered


class Sampler:
    """A middleware that handles what ``chosen`` says, and settles the rest. ``left_out``: how many those were."""

    def __init__(self, chosen: Callable[[Message[Any]], bool]) -> None:
        self.chosen = chosen
        self.left_out = 0
        describe(self, "sampler")

    def __call__(self, one: One) -> One:
        async def sampled(delivery: Delivery) -> Outgoing:
            return await one(delivery) if self._takes(delivery) else ()

        return sampled

    def many(self, many: Many) -> Many:
        """The same around a handler of batches: it gets those chosen."""

        async def sampled(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            outcomes: list[Outcome] = [()] * len(deliveries)
            taken = [index for index, delivery in enumerate(deliveries) if self._takes(delivery)]
            results = await many([deliveries[index] for index in taken]) if taken else ()
            for index, outcome in zip(taken, results, strict=True):
                outcomes[index] = outcome
            return outcomes

        return sampled

    def _takes(self, delivery: Delivery) -> bool:
        if delivery.attempt > 1 or self.chosen(delivery.message):
            return True
        self.left_out += 1
        return False


def sample_every(n: int) -> Sampler:
    """One in ``n`` messages, the first included. Raises ``InvalidOption``."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidOption(f"n cannot be {n!r}", mend="one in n: a number, at least 1")
    turn = count().__next__
    return Sampler(lambda message: turn() % n == 0)


def sample_keys(share: float) -> Sampler:
    """A share of the keys, 0 to 1, and all messages of those; without a key the id decides. The same keys everywhere,
    and those of a smaller share are among those of a larger one. Raises ``InvalidOption``."""
    if not 0 <= share <= 1:
        raise InvalidOption(f"share cannot be {share!r}", mend="0 to 1")
    return Sampler(lambda message: crc32((message.key or message.id).encode()) < share * 2**32)


def sample_interval(interval: Duration) -> Sampler:
    """The first message of each key in an interval; those without a key are one key. Of more than 10,000 keys in an
    interval some are handled more often. Raises ``InvalidOption``."""
    length, last = seconds(interval, "interval"), dict[str | None, float]()

    def chosen(message: Message[Any]) -> bool:
        now = current_clock().monotonic()
        if now - last.get(message.key, -length) < length:
            return False
        last.pop(message.key, None)  # the newest stand last
        last[message.key] = now
        if len(last) > KEYS:
            del last[next(iter(last))]
        return True

    return Sampler(chosen)
