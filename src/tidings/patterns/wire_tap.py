"""Copies of what handlers receive and publish go to a topic of their own (EIP: Wire Tap).

Who wants to see what a *topic* carries needs no tap: another handler of it is a group of its own, and ``live=True`` one
that leaves no trace. This is for what one handler gets, at each attempt, and for what it makes of it. The tapped flow
neither waits for a copy nor fails with it: copies are published beside it, at most once, and those lost are counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any
from zlib import crc32

from msgspec.structs import replace

from tidings.app import App
from tidings.channels import Topic
from tidings.kernel.errors import InvalidOption
from tidings.kernel.handler import Many, One, Outcome, Outgoing
from tidings.kernel.message import Message
from tidings.kernel.transport import Delivery

from ._forward import forward, one_topic
from ._pattern import describe

log = logging.getLogger("tidings")

WAITING = 1024  # copies that are not published yet


class WireTap:
    """A middleware for any handler, or for all of an app: ``@app.on(orders, middleware=[WireTap(app, taps)])``.

    ``to``: where copies go, such as ``Topic("taps.orders", bytes)``. They keep body, key, headers, type and source, and
    their causation id is the id of what they are a copy of. ``received``, ``published``: what is copied, before the
    handler runs and after it has succeeded. ``rate``: the share of conversations that are copied, 0 to 1; all messages
    of one correlation id are, or none. A handler of the tap's own topic is not tapped. ``lost``: copies that the bus
    did not take, or that came faster than it took them.

    Raises ``InvalidOption``.
    """

    def __init__(
        self, app: App, to: Topic[Any], *, received: bool = True, published: bool = False, rate: float = 1.0
    ) -> None:
        if not isinstance(app, App):
            raise InvalidOption(f"a wire tap publishes by an app, not {app!r}", mend="WireTap(app, topic)")
        if not 0 <= rate <= 1:
            raise InvalidOption(f"rate cannot be {rate!r}", mend="a share: 0 to 1")
        self.app, self.to, self.received, self.published = app, one_topic(to, "to"), received, published
        self.below = rate * 2**32
        self.lost = 0
        self._waiting: deque[Message[Any]] = deque()
        self._publishing: asyncio.Task[None] | None = None
        describe(self, "wire tap", publishes=(self.to,))

    def __call__(self, one: One) -> One:
        async def tapped(delivery: Delivery) -> Outgoing:
            tapping = delivery.message.topic != self.to.name
            if tapping and self.received:
                self._tap((delivery.message,))
            outgoing = await one(delivery)
            if tapping and self.published:
                self._tap(outgoing)
            return outgoing

        return tapped

    def many(self, many: Many) -> Many:
        """The same around a handler of batches."""

        async def tapped(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            tapping = deliveries[0].message.topic != self.to.name
            if tapping and self.received:
                self._tap([delivery.message for delivery in deliveries])
            outcomes = await many(deliveries)
            for outcome in outcomes if tapping and self.published else ():
                self._tap(outcome if isinstance(outcome, tuple) else ())
            return outcomes

        return tapped

    def _tap(self, messages: Iterable[Message[Any]]) -> None:
        for message in messages:
            if not self._chosen(message):
                continue
            if len(self._waiting) < WAITING:
                self._waiting.append(self._copy(message))
            else:
                self.lost += 1
        if self._waiting and (self._publishing is None or self._publishing.done()):
            self._publishing = asyncio.get_running_loop().create_task(self._publish())

    def _chosen(self, message: Message[Any]) -> bool:
        return crc32((message.correlation_id or message.id).encode()) < self.below

    def _copy(self, message: Message[Any]) -> Message[Any]:
        return replace(
            forward(message, self.to),
            time=message.time,
            type=message.type,
            source=message.source,
            expires_at=None,
            reply_to=None,
            correlation_id=message.correlation_id or message.id,
            causation_id=message.id,
        )

    async def _publish(self) -> None:
        while self._waiting:
            copies = tuple(self._waiting)
            try:
                await self.app.publish_many(copies)
            except Exception as error:
                self.lost += len(copies)
                log.warning("wire tap %s: %d copies were lost: %s", self.to.name, len(copies), error)
            for _ in copies:
                self._waiting.popleft()
