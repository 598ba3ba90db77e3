"""Measuring handlers from outside, by middleware: how long messages took, and what they led to."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence

from msgspec.structs import replace

from tidings import App, Delivery
from tidings.assembly import group_of
from tidings.kernel.handler import Many, One, Outcome, Outgoing

LAST = 256  # messages of each handler


class Gauge:
    """One handler's; as a middleware, around it."""

    def __init__(self) -> None:
        self.running = self.done = 0
        self.batched = False
        self.sent: Counter[str] = Counter()  # by the first token of the topic
        self.seconds: deque[float] = deque(maxlen=LAST)  # from publishing to handled

    def __call__(self, one: One) -> One:
        async def measured(delivery: Delivery) -> Outgoing:
            self.running += 1
            try:
                outgoing = await one(delivery)
            finally:
                self.running -= 1
            self._handled(delivery, outgoing)
            return outgoing

        return measured

    def many(self, many: Many) -> Many:
        """The same around a handler of batches."""
        self.batched = True

        async def measured(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            self.running += 1
            try:
                outcomes = await many(deliveries)
            finally:
                self.running -= 1
            for delivery, outcome in zip(deliveries, outcomes, strict=False):
                if not isinstance(outcome, BaseException):
                    self._handled(delivery, outcome)
            return outcomes

        return measured

    def _handled(self, delivery: Delivery, outgoing: Outgoing) -> None:
        self.done += 1
        self.seconds.append(max(0.0, time.time() - delivery.message.time))
        self.sent.update(message.topic.partition(".")[0] for message in outgoing if message.address is None)


class Meter:
    """The gauges of all handlers of an app that is not open yet, by group."""

    def __init__(self, app: App) -> None:
        self.gauges: dict[str, Gauge] = {}
        for index, registration in enumerate(app.registrations):
            gauge = self.gauges[group_of(registration, app.name)] = Gauge()
            app.registrations[index] = replace(registration, middleware=(gauge, *registration.middleware))

    @property
    def sent(self) -> Counter[str]:
        """Messages published by all handlers, by the first token of the topic."""
        return sum((gauge.sent for gauge in self.gauges.values()), Counter())

    @property
    def running(self) -> int:
        return sum(gauge.running for gauge in self.gauges.values())

    def seconds(self) -> list[float]:
        """The last latencies of all handlers, but for batches: those wait on purpose."""
        return [second for gauge in self.gauges.values() if not gauge.batched for second in gauge.seconds]


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that is not below ``percent`` of them; None of none."""
    ranked = sorted(values)
    return ranked[max(0, -int(-len(ranked) * percent // 100) - 1)] if ranked else None
