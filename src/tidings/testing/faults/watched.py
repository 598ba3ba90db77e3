"""A transport that is watched: what passes the interface is written to a journal, and may meet fail points.

Points that every transport has: ``spi.publish.before``, ``spi.publish.after``, ``spi.receive.after``,
``spi.settle.before``, ``spi.settle.after``, ``spi.mark.after``, ``spi.extend.before``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tidings.kernel.message import Message
from tidings.kernel.transport import (
    ACK,
    Consumer,
    Delivery,
    Event,
    Failure,
    Options,
    Release,
    Settlement,
    Subscription,
    Transport,
)
from tidings.transports._points import passed

from .history import Journal, Line


class Watched:
    """Options whose transports are watched."""

    def __init__(self, inner: Options, journal: Journal) -> None:
        self.inner, self.journal = inner, journal

    @classmethod
    def from_url(cls, url: str) -> Watched:
        raise NotImplementedError

    def transport(self) -> Any:
        return WatchedTransport(self.inner.transport(), self.journal)


class WatchedTransport:
    """Passes everything on."""

    def __init__(self, inner: Transport, journal: Journal) -> None:
        self.inner, self.journal = inner, journal

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def open(self, notify: Callable[[Event], None]) -> None:
        def told(event: Event) -> None:
            self.journal.write("event", detail=event.kind, n=event.count, why=event.detail)
            notify(event)

        await self.inner.open(told)

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        passed("spi.publish.before")
        failures = await self.inner.publish(messages)
        passed("spi.publish.after")
        return failures

    async def subscribe(self, subscription: Subscription) -> Consumer:
        inner = await self.inner.subscribe(subscription)
        return WatchedConsumer(inner, subscription.group or "", self.journal)


class WatchedConsumer:
    """Passes everything on."""

    def __init__(self, inner: Consumer, group: str, journal: Journal) -> None:
        self.inner, self.group, self.journal = inner, group, journal
        self.lease, self.stop, self.close = inner.lease, inner.stop, inner.close

    async def receive(self, limit: int) -> Sequence[Delivery]:
        came = await self.inner.receive(limit)
        self.journal.extend(self._line("received", delivery, "suspect" * delivery.suspect) for delivery in came)
        passed("spi.receive.after")
        return came

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        passed("spi.settle.before")
        failures = await self.inner.settle(settlements)
        failed = {failure.index: failure.kind for failure in failures}
        self.journal.extend(
            self._line("unsettled", settlement.delivery, failed[index])
            if index in failed
            else self._line("settled", settlement.delivery, _means(settlement))
            for index, settlement in enumerate(settlements)
        )
        passed("spi.settle.after")
        return failures

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        passed("spi.extend.before")
        await self.inner.extend(deliveries)

    async def mark(self, delivery: Delivery) -> bool:
        ours = await self.inner.mark(delivery)
        passed("spi.mark.after")
        return ours

    def _line(self, what: str, delivery: Delivery, detail: str) -> Line:
        message = delivery.message
        return Line(what=what, group=self.group, id=message.id, attempt=delivery.attempt, detail=detail)


def _means(settlement: Settlement) -> str:
    if settlement.action is ACK:
        return "dead" if any(message.header("tdgreason") for message in settlement.outgoing) else "ack"
    return "release" if isinstance(settlement.action, Release) else "retry"
