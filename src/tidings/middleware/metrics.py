"""Metrics for Prometheus: what is handled, how long that takes, how long messages waited, what runs and what waits.

Counted in plain lists on the event loop and read when somebody scrapes: a counter of ``prometheus_client`` takes a lock
for every message.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from tidings.kernel.errors import MissingExtra, Unsupported
from tidings.kernel.handler import Many, One, Outcome, Outgoing
from tidings.kernel.settling import Stats
from tidings.kernel.transport import Delivery, GroupInfo, Inspectable, Transport

from . import Group

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Metric
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
except ImportError as error:
    mend = "pip install 'tidings[metrics]'"
    raise MissingExtra("metrics need a package that is not installed", why=str(error), mend=mend) from None

BOUNDS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0)  # seconds
TOOK = "How long handlers took; of a batch, the whole call."
WAITED = "From publishing, or when a message was due, to its first attempt."
BEYOND = {  # of Stats: what no handler sees
    "dead": ("tidings_dead_letters", "Messages that went to the dead letters."),
    "expired": ("tidings_messages_expired", "Messages that expired before they were handled."),
    "released": ("tidings_messages_released", "Messages given back to their group, uncounted."),
    "fenced": ("tidings_messages_fenced", "Messages that had become another process's before they were settled."),
}
GROUPS = {  # of GroupInfo
    "lag": ("tidings_group_lag_messages", "Messages not yet handed out to the group."),
    "in_flight": ("tidings_group_in_flight_messages", "Messages handed out and not settled, in all processes."),
    "parked": ("tidings_group_parked_messages", "Messages that wait for their next attempt."),
    "dead": ("tidings_group_dead_letters", "Dead letters that the bus holds for the group."),
    "oldest": ("tidings_group_oldest_timestamp_seconds", "When the group's first unsettled message was published."),
}


class Durations:
    """A histogram: how many were at most each bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def samples(self) -> dict[str, Any]:
        """As Prometheus has it: cumulative."""
        names = (*map(str, self.bounds), "+Inf")
        return {"buckets": [*zip(names, accumulate(self.counts), strict=True)], "sum_value": self.total}


class Series:
    """The numbers of one group."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.took, self.waited = Durations(bounds), Durations(bounds)
        self.handled = self.running = 0
        self.failed = Counter[str]()  # by what follows


class Metrics:
    """A middleware that counts, and a collector of ``registry``. One may observe several apps of a process.

    ``bounds``: the upper bounds of histogram buckets, in seconds, ascending.
    """

    def __init__(self, registry: CollectorRegistry | None = REGISTRY, bounds: Sequence[float] = BOUNDS) -> None:
        self.bounds = tuple(map(float, bounds))
        self.series: dict[str, Series] = {}
        self.groups: Sequence[GroupInfo] = ()
        self._apps: list[Callable[[], dict[str, Stats]]] = []
        if registry is not None:
            registry.register(self)

    def of(self, group: Group) -> Meter:
        """A middleware around a handler of this group."""
        return Meter(group, self.series.setdefault(group.name, Series(self.bounds)))

    def attach(self, app: Any) -> None:
        """Tell its ``stats()`` too."""
        self._apps.append(app.stats)

    def __call__(self, one: One) -> One:
        return self.of(Group())(one)

    def many(self, many: Many) -> Many:
        """The same around a handler of batches."""
        return self.of(Group()).many(many)

    async def look(self, *buses: Transport) -> None:
        """Ask buses how far their groups are; scraped until asked again. Raises ``Unsupported``."""
        found: list[GroupInfo] = []
        for bus in buses:
            if not isinstance(bus, Inspectable):
                mend = "leave it out, or use its own exporter"
                raise Unsupported(f"{type(bus).__name__} cannot tell its groups", mend=mend)
            found += await bus.groups()
        self.groups = found

    def collect(self) -> Iterator[Metric]:
        """What a scrape is told, perhaps in another thread."""
        by = ("group",)
        handled = CounterMetricFamily("tidings_messages_handled", "Handled messages.", labels=("group", "outcome"))
        running = GaugeMetricFamily("tidings_messages_in_flight", "Messages being handled here.", labels=by)
        took = HistogramMetricFamily("tidings_handler_duration_seconds", TOOK, labels=by)
        waited = HistogramMetricFamily("tidings_message_queue_time_seconds", WAITED, labels=by)
        for group, series in list(self.series.items()):
            for outcome, count in {"handled": series.handled, **series.failed}.items():
                handled.add_metric((group, outcome), count)
            running.add_metric((group,), series.running)
            took.add_metric((group,), **series.took.samples())
            waited.add_metric((group,), **series.waited.samples())
        yield from (handled, running, took, waited)
        stats = [pair for app in self._apps for pair in app().items()]
        for name, (metric, what) in BEYOND.items():
            counter = CounterMetricFamily(metric, what, labels=by)
            for group, found in stats:
                counter.add_metric((group,), getattr(found, name))
            yield counter
        for name, (metric, what) in GROUPS.items():
            gauge = GaugeMetricFamily(metric, what, labels=by)
            for info in self.groups:
                if (value := getattr(info, name)) is not None:
                    gauge.add_metric((info.name,), value)
            yield gauge


class Meter:
    """The metrics of one group, around its handler."""

    def __init__(self, group: Group, series: Series) -> None:
        self.group, self.series = group, series

    def __call__(self, one: One) -> One:
        series, failed, begun, took = self.series, self._failed, self._begun, self.series.took.add
        clock = time.perf_counter

        async def measured(delivery: Delivery) -> Outgoing:
            began = clock()
            begun(delivery)
            series.running += 1
            try:
                outgoing = await one(delivery)
            except BaseException as error:
                failed(delivery, error)
                raise
            finally:
                series.running -= 1
                took(clock() - began)
            series.handled += 1
            return outgoing

        return measured

    def many(self, many: Many) -> Many:
        """The same around a handler of batches."""
        series = self.series

        async def measured(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            began = time.perf_counter()
            for delivery in deliveries:
                self._begun(delivery)
            series.running += len(deliveries)
            try:
                outcomes = await many(deliveries)
            except BaseException as error:
                if len(deliveries) == 1:  # several are tried again one by one
                    self._failed(deliveries[0], error)
                raise
            finally:
                series.running -= len(deliveries)
                series.took.add(time.perf_counter() - began)
            for delivery, outcome in zip(deliveries, outcomes, strict=False):
                if isinstance(outcome, BaseException):
                    self._failed(delivery, outcome)
                else:
                    series.handled += 1
            return outcomes

        return measured

    def _begun(self, delivery: Delivery) -> None:
        message = delivery.message
        due = message.deliver_at or message.time
        if due and not (delivery.failures or delivery.crashes):
            self.series.waited.add(max(0.0, time.time() - due))  # clocks of machines differ

    def _failed(self, delivery: Delivery, error: BaseException) -> None:
        self.series.failed[self.group.outcome(delivery, error)] += 1
