"""The jobs of service desks and machine halls, on real logs: windows by the hour and alerts; cases with a deadline.

What comes of them is held against a plain computation of the same, in ``test_windows.py``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from math import sqrt
from typing import Any

from msgspec import Struct

from tidings import App, Message, State, Table, Topic
from tidings.patterns import Since, Tumbling, Window, splitter, windowed

HOUR, DEADLINE, PATIENCE = 3600.0, 30 * 86400.0, "2s"
MEMORY, LEARNING, STRANGE = 0.05, 24, 4.0  # how fast the usual is forgotten; hours; standard deviations


class Reading(Struct):
    """A line of a sensor's file."""

    sensor: str
    timestamp: str
    value: float

    @property
    def at(self) -> datetime:
        return datetime.fromisoformat(self.timestamp).replace(tzinfo=UTC)


class Sum(Struct):
    count: int
    total: float
    least: float
    most: float


class Hour(Struct):
    sensor: str
    start: float
    count: int
    mean: float
    least: float
    most: float


class Usual(Struct):
    """What a sensor's hours are like: a mean and a variance that forget."""

    hours: int = 0
    mean: float = 0.0
    variance: float = 0.0


class Alert(Struct):
    sensor: str
    start: float
    deviation: float


class Event(Struct):
    """A line of the incident log, as far as it is needed."""

    number: str
    incident_state: str
    sys_updated_at: str

    @property
    def at(self) -> datetime:
        return datetime.strptime(self.sys_updated_at, "%d/%m/%Y %H:%M").replace(tzinfo=UTC)


class Progress(Struct):
    events: int
    last: str


class Case(Struct):
    """What became of an incident by its deadline."""

    number: str
    begun: float
    events: int
    last: str
    kept: bool


readings, hours, alerts = Topic("hall.readings", Reading), Topic("hall.hours", Hour), Topic("hall.alerts", Alert)
bundles, events = Topic("desk.bundles", list[Event]), Topic("desk.events", Event, lax=True)
cases = Topic("desk.cases", Case)
usual = Table("usual", Usual)


def add(before: Sum | None, reading: Reading) -> Sum:
    value = reading.value
    if before is None:
        return Sum(1, value, value, value)
    return Sum(before.count + 1, before.total + value, min(before.least, value), max(before.most, value))


def hour_of(total: Sum, window: Window) -> Hour:
    return Hour(window.key, window.start, total.count, total.total / total.count, total.least, total.most)


def learn(now: Usual, hour: Hour) -> tuple[Usual, Alert | None]:
    """What is usual then, and whether this hour was not."""
    off, deviation = hour.mean - now.mean, sqrt(now.variance)
    strange = now.hours >= LEARNING and deviation > 0 and abs(off) > STRANGE * deviation
    weight = max(MEMORY, 1 / (now.hours + 1))
    then = Usual(now.hours + 1, now.mean + weight * off, (1 - weight) * (now.variance + weight * off * off))
    return then, Alert(hour.sensor, hour.start, off / deviation) if strange else None


def follow(before: Progress | None, event: Event) -> Progress:
    return Progress(before.events + 1 if before else 1, event.incident_state)


def case_of(progress: Progress, window: Window) -> Case:
    return Case(window.key, window.start, progress.events, progress.last, progress.last == "Closed")


class Job:
    """The app, and what came of it."""

    def __init__(self, url: str) -> None:
        self.app = app = App("job", url)
        self.hours: list[Hour] = []
        self.alerts: list[Alert] = []
        self.cases: list[Case] = []
        windowed(
            app, readings, Tumbling("1h"), by=lambda r: r.sensor, time=lambda r: r.at, fold=add, to=hours, idle=PATIENCE
        )(hour_of)
        windowed(
            app,
            events,
            Since(DEADLINE),
            by=lambda e: e.number,
            time=lambda e: e.at,
            fold=follow,
            to=cases,
            idle=PATIENCE,
        )(case_of)

        @splitter(app, bundles, to=events, key=lambda event: event.number, concurrency=1)
        def unpack(bundle: list[Event]) -> list[Event]:
            return bundle

        @app.on(hours)
        async def judge(hour: Hour, state: State) -> Message[Alert] | None:
            then, alert = learn(await state.get(usual, hour.sensor) or Usual(), hour)
            state.put(usual, hour.sensor, then)
            return alerts(alert, key=alert.sensor) if alert else None

        self._collect(hours, self.hours)
        self._collect(alerts, self.alerts)
        self._collect(cases, self.cases)

    def _collect(self, topic: Topic[Any], into: list[Any]) -> None:
        @self.app.on(topic, group=f"job.collect-{topic.name.rpartition('.')[2]}", concurrency=1)
        async def collect(payload: Any) -> None:
            into.append(payload)
