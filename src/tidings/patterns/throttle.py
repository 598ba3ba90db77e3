"""So many messages in a time, and no more (beyond the book: Throttle): middlewares for any handler.

    @app.on(orders, middleware=[Throttle(10, "1s")])
    async def call_the_bank(order: Order) -> None: ...

A message waits for its turn in place, and so do those of its key behind it; one whose turn is far away goes back to the
bus until then (``Defer``: nothing is counted, and others of its key may overtake it).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tidings.app import App
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import Defer, Duration, InvalidOption
from tidings.kernel.handler import Many, One, Outcome, Outgoing
from tidings.kernel.message import seconds
from tidings.kernel.transport import Delivery
from tidings.state import State, Table
from tidings.timers import transact

from ._pattern import describe

AHEAD = 0.25  # seconds: what a process takes of a shared rate at once

reserved = Table("_throttles", float)  # until when the turns of a rate are given away, by its name: Unix seconds


class Throttle:
    """At most ``rate`` messages ``per`` time in this process, evenly, or after a rest up to ``burst`` at once.

    ``longest``: what a message may wait in place, which its handler's timeout includes. One throttle may be given to
    several handlers: they share it. A batch counts with all its messages. Raises ``InvalidOption``.
    """

    def __init__(self, rate: float, per: Duration = 1.0, *, burst: int = 1, longest: Duration = 10.0) -> None:
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
            raise InvalidOption(f"rate cannot be {rate!r}", mend="Throttle(10, '1s'): ten messages a second")
        if isinstance(burst, bool) or not isinstance(burst, int) or burst < 1:
            raise InvalidOption(f"burst cannot be {burst!r}", mend="messages at once: at least 1")
        self.interval = max(seconds(per, "per"), 1e-6) / rate
        self.saved = (burst - 1) * self.interval  # seconds that may be made up for
        self.longest = seconds(longest, "longest")
        self.next = 0.0  # the first turn that is free
        describe(self, "throttle")

    def __call__(self, one: One) -> One:
        async def throttled(delivery: Delivery) -> Outgoing:
            await self.turn()
            return await one(delivery)

        return throttled

    def many(self, many: Many) -> Many:
        """The same around a handler of batches."""

        async def throttled(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            await self.turn(len(deliveries))
            return await many(deliveries)

        return throttled

    async def turn(self, count: int = 1) -> None:
        """Return when so many may start. Raises ``Defer`` when that is far away."""
        start = await self._reserve(count, self._now())
        if (wait := start - self._now()) > 0:
            await asyncio.sleep(wait)

    def _now(self) -> float:
        return current_clock().monotonic()

    async def _reserve(self, count: int, now: float) -> float:
        start = self._first(self.next, now)
        self.next = start + count * self.interval
        return start

    def _first(self, free: float, now: float) -> float:
        """When the next may start, if ``free`` is the first turn that is not given away."""
        start = max(free, now - self.saved)
        if start - now > self.longest:
            raise Defer(start - now, "its rate is limited")
        return start


class SharedThrottle(Throttle):
    """A rate that all processes share which use the same ``name`` and state: at most that, whoever gets the messages.

    Each takes the turns of a quarter of a second at once, or one; those that it does not use are lost. Clocks of
    several machines are compared: what they differ by, a message may start too early or too late. The app needs a bus
    that keeps records; while that one is away, messages fail. Raises ``InvalidOption``.
    """

    def __init__(
        self,
        app: App,
        name: str,
        rate: float,
        per: Duration = 1.0,
        /,
        *,
        burst: int = 1,
        longest: Duration = 10.0,
    ) -> None:
        super().__init__(rate, per, burst=burst, longest=longest)
        self.app, self.name = app, name
        self.until = 0.0  # what we took ends
        self._taking: asyncio.Lock | None = None

    def _now(self) -> float:
        return current_clock().now()

    async def _reserve(self, count: int, now: float) -> float:
        self._taking = self._taking or asyncio.Lock()
        async with self._taking:
            start, needed = max(self.next, now - self.saved), count * self.interval
            if start + needed > self.until + self.interval / 2:
                start = await self._take(max(needed, AHEAD), now)
            self.next = start + needed
            return start

    async def _take(self, length: float, now: float) -> float:
        """Take turns for so many seconds, from the first that is free; returns when that is."""
        start = 0.0

        async def take(state: State) -> None:
            nonlocal start
            start = self._first(await state.get(reserved, self.name) or 0.0, now)
            state.put(reserved, self.name, start + length)

        await transact(self.app, take)
        self.until = start + length
        return start
