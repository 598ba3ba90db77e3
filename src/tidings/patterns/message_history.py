"""Which groups a message and what it came from have passed (EIP: Message History).

    instrument(app, MessageHistory())

From then on what a handler returns has a header ``message-history``, ``shop.bill, shop.ship``: the groups that handled
what it follows from, the latest last. A message that comes to the same group again and again, because handlers send to
each other in a circle, goes to the dead letters instead of round for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from tidings.kernel.errors import InvalidOption, Reject
from tidings.kernel.handler import Many, One, Outcome, Outgoing
from tidings.kernel.message import Headers, Message
from tidings.kernel.transport import Delivery
from tidings.middleware import Group

HEADER = "message-history"


class MessageHistory(Struct, frozen=True):
    """An observer for ``instrument``, which tells it the groups.

    ``limit``: so many of the latest groups are kept. ``loops``: a message that has passed a group so often is
    rejected there; None: never. What a batch handler returns follows from the longest history of the batch.
    Raises ``InvalidOption``.
    """

    limit: int = 100
    loops: int | None = 10
    group: Group = Group()

    def __post_init__(self) -> None:
        if self.limit < 1 or not (self.loops is None or 1 <= self.loops <= self.limit):
            raise InvalidOption(f"{self!r} means nothing", mend="limit >= 1, and loops from 1 to limit, or None")

    def of(self, group: Group) -> MessageHistory:
        """The same, around a handler of this group."""
        return replace(self, group=group)

    def attach(self, app: Any) -> None:
        """Nothing is published differently."""

    def __call__(self, one: One) -> One:
        async def noted(delivery: Delivery) -> Outgoing:
            passed = self._passed(delivery.message)
            outgoing = await one(delivery)
            return self._carried(outgoing, passed) if outgoing else outgoing

        return noted

    def many(self, many: Many) -> Many:
        """The same around a handler of batches: what goes in circles is rejected alone."""

        async def noted(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            outcomes: list[Outcome] = [()] * len(deliveries)
            ready: dict[int, Delivery] = {}
            passed: list[str] = []
            for index, delivery in enumerate(deliveries):
                try:
                    passed = max(passed, self._passed(delivery.message), key=len)
                    ready[index] = delivery
                except Reject as reject:
                    outcomes[index] = reject
            done = await many(list(ready.values())) if ready else ()
            for index, outcome in zip(ready, done, strict=True):
                outcomes[index] = self._carried(outcome, passed) if isinstance(outcome, tuple) else outcome
            return outcomes

        return noted

    def _passed(self, message: Message[Any]) -> list[str]:
        """The groups before, and this one."""
        name, before = self.group.name, history(message)
        if self.loops is not None and before.count(name) >= self.loops:
            raise Reject(f"it goes in circles: {' > '.join(before[-20:])} > {name}")
        return [*before, name][-self.limit :]

    def _carried(self, outgoing: Outgoing, passed: list[str]) -> Outgoing:
        said = HEADER, ", ".join(passed)
        return tuple(replace(m, headers=(*_others(m.headers), said)) for m in outgoing)


def history(message: Message[Any]) -> list[str]:
    """The groups that a message and what it came from have passed, the latest last."""
    said = message.header(HEADER)
    return said.split(", ") if said else []


def _others(headers: Headers | None) -> Headers:
    return tuple(pair for pair in headers or () if pair[0] != HEADER)
