"""How fast each group of an app starts messages, in one process, changed while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidings.kernel.handler import Many, One, Outcome, Outgoing
from tidings.kernel.transport import Delivery
from tidings.middleware import Group

from .throttle import Throttle


class Pace:
    """A middleware for one group; given to ``instrument`` it has one for each group of an app, in ``known``."""

    def __init__(self) -> None:
        self.known: dict[str, Pace] = {}
        self.throttle: Throttle | None = None

    def of(self, group: Group) -> Pace:
        """That of a group."""
        return self.known.setdefault(group.name, Pace())

    def attach(self, app: Any) -> None:
        """Nothing: it needs no more of an app."""

    def set(self, rate: float | None) -> None:
        """So many messages a second from now on; None: as they come. Those that wait already keep their turns."""
        self.throttle = None if rate is None else Throttle(rate)

    def __call__(self, one: One) -> One:
        async def paced(delivery: Delivery) -> Outgoing:
            if self.throttle is not None:
                await self.throttle.turn()
            return await one(delivery)

        return paced

    def many(self, many: Many) -> Many:
        """The same around a handler of batches; each message counts."""

        async def paced(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            if self.throttle is not None:
                await self.throttle.turn(len(deliveries))
            return await many(deliveries)

        return paced
