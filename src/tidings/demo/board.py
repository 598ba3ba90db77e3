"""All that is shown, as numbers: collected on the loop, drawn elsewhere."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from tidings import App, Message, TidingsError
from tidings.assembly import group_of
from tidings.kernel.settling import Stats
from tidings.kernel.transport import GroupInfo, Inspectable
from tidings.router import Registration

from .app import Anomaly, View
from .meter import Meter, percentile
from .sensors import Reading

OVER = 5.0  # seconds that a rate is an average of
SAID = 15.0  # seconds that a warning is shown


class Row(Struct, frozen=True):
    """One handler."""

    group: str
    name: str
    runs: str  # where and how
    takes: str
    gives: Sequence[str]
    rate: float
    handled: int
    lag: int | None  # None: not a group, or the bus cannot tell
    dead: int
    p50: float | None
    p99: float | None
    failed: int = 0


class Snapshot(Struct, frozen=True):
    """One moment."""

    bus: str
    url: str  # from another terminal in the same folder
    elapsed: float
    pid: int
    waiting: int  # when it started
    recovered: int
    published: int
    rate: float
    rows: Sequence[Row]
    readings: Sequence[tuple[Reading, Sequence[float]]]  # each with those before it
    alerts: Sequence[tuple[str, Anomaly]]
    severities: Mapping[str, int]
    letters: Sequence[Message[bytes]]
    buried: int  # letters ever
    p50: float | None
    p99: float | None
    said: str = ""  # the last warning

    @property
    def dead(self) -> int:
        return sum(row.dead for row in self.rows)

    @property
    def lag(self) -> int:
        return sum(row.lag or 0 for row in self.rows)


class Board:
    """Collects for an open app."""

    def __init__(self, app: App, meter: Meter, view: View, waiting: int) -> None:
        self.app, self.meter, self.view, self.waiting = app, meter, view, waiting
        self.started = time.monotonic()
        self.bus = bus_name(app)
        self.stats: Mapping[str, Stats] = app.stats()  # they go on counting while the app closes
        self.groups: dict[str, GroupInfo] = {}
        self.asked = float("-inf")
        self.past: deque[tuple[float, Counter[str]]] = deque()
        self.said, self.heard = "", 0.0

    async def refresh(self, every: float = 1.0) -> None:
        """Ask the bus about its groups, at most so often."""
        now = time.monotonic()
        if now - self.asked < every:
            return
        self.asked = now
        self.past.append((now, self.counts()))
        while now - self.past[0][0] > OVER + every / 2:
            self.past.popleft()
        with suppress(TidingsError):  # it may be closing
            self.groups = await groups(self.app)

    def counts(self) -> Counter[str]:
        """What each group has handled, and under ``""`` what was published."""
        counts = Counter({group: stats.handled for group, stats in self.stats.items()})
        counts[""] = self.meter.sent.total()
        return counts

    def snapshot(self) -> Snapshot:
        """Everything, copied: to be drawn in another thread."""
        counts, view, seconds = self.counts(), self.view, self.meter.seconds()
        since, before = self.past[0] if self.past else (self.started, Counter())
        elapsed = max(time.monotonic() - since, 0.001)
        rates = {group: (count - before[group]) / elapsed for group, count in counts.items()}
        return Snapshot(
            bus=self.bus,
            url=reached(self.bus),
            elapsed=time.monotonic() - self.started,
            pid=os.getpid(),
            waiting=self.waiting,
            recovered=self.app.events["recovered"],
            published=counts[""],
            rate=rates[""],
            rows=[self._row(registration, rates) for registration in self.app.registrations],
            readings=[(r, tuple(view.trail.values.get(r.series, ()))) for r in view.latest.values()],
            alerts=tuple(view.alerts),
            severities=dict(view.severities),
            letters=tuple(view.dead),
            buried=self.stats[f"{self.app.name}.mourn"].handled,
            p50=percentile(seconds, 50),
            p99=percentile(seconds, 99),
            said=self.said if time.monotonic() - self.heard < SAID else "",
        )

    def _row(self, registration: Registration, rates: Mapping[str, float]) -> Row:
        group = group_of(registration, self.app.name)
        info, stats, gauge = self.groups.get(group), self.stats[group], self.meter.gauges[group]
        return Row(
            group=group,
            name=registration.fn.__name__,
            runs=_runs(registration),
            takes=_takes(registration),
            gives=[registration.to.name] if registration.to else [name for name, _ in gauge.sent.most_common()],
            rate=rates[group],
            handled=stats.handled,
            lag=info.lag + info.in_flight + info.parked if info else None,
            dead=info.dead if info else stats.dead * (not registration.live),
            p50=percentile(gauge.seconds, 50),
            p99=percentile(gauge.seconds, 99),
            failed=stats.failed,
        )


def _runs(registration: Registration) -> str:
    if registration.live:
        return "live"
    return "batch" if registration.batch else registration.run


def _takes(registration: Registration) -> str:
    if registration.role == "tick":
        return "clock"
    return "requests" if registration.role == "answer" else registration.template.partition(".")[0]


async def groups(app: App) -> dict[str, GroupInfo]:
    """What the bus knows of the app's groups; nothing where it cannot tell."""
    bus = app.bus()
    if not isinstance(bus, Inspectable):
        return {}
    return {group.name: group for group in await bus.groups() if group.app == app.name}


async def waiting(app: App) -> int:
    """How many messages wait for an app that is not open, those in dead hands included. Old ticks do not count."""
    async with app.connect():
        found = await groups(app)
        return sum(g.lag + g.in_flight + g.parked for g in found.values() if not g.pattern.startswith("_"))


def bus_name(app: App) -> str:
    """The bus an open app really uses."""
    bus = app.bus()
    path = getattr(bus, "path", None)
    return f"sqlite:///{path}" if path else f"{type(bus).__name__.lower()}://"


def reached(bus: str) -> str:
    """The shortest URL by which another terminal in this folder reaches the same bus; ``""``: none does."""
    path = Path(bus.removeprefix("sqlite:///"))
    if not bus.startswith("sqlite:///"):
        return ""
    return f"sqlite:///{path.relative_to(Path.cwd())}" if path.is_relative_to(Path.cwd()) else bus
