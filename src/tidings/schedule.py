"""Ticks: ``every`` and ``cron``. One replica is chosen for a tick, which is then a message of the handler's own group.

A tick expires when the next is due, so a slow handler gets one, not the backlog; one that was missed while nothing ran
is made up for once, at start-up. The first tick ever is the next one due.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Protocol, runtime_checkable
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Struct

from .kernel.bus import Bus
from .kernel.codec import seal
from .kernel.errors import BusError, InvalidOption, Unsupported, users
from .kernel.message import Message
from .kernel.topics import TICK

log = logging.getLogger("tidings")

LONGEST_SLEEP = 5.0  # seconds; the wall clock may be set meanwhile


class Schedule(Protocol):
    """When a tick is due; Unix seconds."""

    def last(self, now: float) -> float:
        """The last due time at or before ``now``."""

    def next(self, due: float) -> float:
        """The first due time after ``due``."""


@runtime_checkable
class Ticking(Protocol):
    """Buses that can choose one replica for a tick."""

    async def tick(self, name: str, due: float) -> bool:
        """True for exactly one caller of (``name``, ``due``); never for a ``due`` at or before one already won."""


class Interval(Struct, frozen=True):
    """Multiples of an interval since the epoch, the same on every replica."""

    interval: float

    def __post_init__(self) -> None:
        if self.interval < 0.01:
            raise InvalidOption(f"an interval cannot be {self.interval:g} s", mend="at least 10 ms")

    def last(self, now: float) -> float:
        return now // self.interval * self.interval

    def next(self, due: float) -> float:
        return (round(due / self.interval) + 1) * self.interval


class Cron(Struct, frozen=True):
    """The times of a cron expression in a time zone, as Debian's cron treats changes of daylight saving time."""

    expression: str
    tz: str

    def __post_init__(self) -> None:
        from cronsim import CronSim, CronSimError

        try:
            CronSim(self.expression, datetime.now(ZoneInfo(self.tz)))
        except CronSimError as error:
            mend = "five fields: minute hour day month weekday, as in '0 9 * * 1-5'"
            raise InvalidOption(f"cron cannot be {self.expression!r}", why=str(error), mend=mend) from None
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise InvalidOption(
                f"tz cannot be {self.tz!r}", why=str(error), mend="an IANA name: 'Europe/Rome'"
            ) from None

    def _near(self, moment: float, *, reverse: bool) -> float:
        from cronsim import CronSim

        start = datetime.fromtimestamp(moment, UTC).astimezone(ZoneInfo(self.tz))
        return float(next(CronSim(self.expression, start, reverse=reverse)).timestamp())

    def last(self, now: float) -> float:
        return self._near(now // 1 + 1, reverse=True)

    def next(self, due: float) -> float:
        return self._near(due, reverse=False)


async def sleep_until(due: float, now: Callable[[], float]) -> None:
    """Until the wall clock says so, also if it is set meanwhile."""
    while (left := due - now()) > 0:  # noqa: ASYNC110  # the clock may be set
        await asyncio.sleep(min(left, LONGEST_SLEEP))


def ticking(bus: Bus, where: str) -> Ticking:
    """The bus as one that can choose a replica; raises ``Unsupported``."""
    if not isinstance(bus.transport, Ticking):
        kind, mend = type(bus.options).__name__, "each=True runs it on every replica"
        raise Unsupported(f"{kind} cannot choose one replica for a tick", mend=mend, where=where)
    return bus.transport


async def tick_once(chooser: Ticking, bus: Bus, group: str, schedule: Schedule, source: str) -> None:
    """Publish a tick to the group whenever one is due and this replica is chosen; for ever.

    A replica that dies between being chosen and publishing takes that one tick with it.
    """
    now, name, due, won = bus.clock.now, TICK + group, 0.0, 0.0
    while True:
        await sleep_until(due, now)
        try:
            if not due and await chooser.tick(f"{group}.born", 1.0):  # the first time ever: nothing was missed
                await chooser.tick(group, schedule.last(now()))
            due = due or schedule.last(now())
            following = schedule.next(max(due, schedule.last(now())))
            if won == due or await chooser.tick(group, due):
                won = due
                tick: Message[Any] = Message(name, data=None, id=f"{group}-{due:.3f}", type=name, expires_at=following)
                await bus.publish((seal(tick, now=now(), source=source),))
            due = following
        except BusError as error:
            log.warning("no tick for %s, trying again: %s", group, error)
            await asyncio.sleep(1.0)


async def tick_each(
    schedule: Schedule, now: Callable[[], float], call: Callable[[], Awaitable[None]], name: str
) -> None:
    """Call on this replica whenever due; an exception is logged, and the next tick comes all the same."""
    due = schedule.next(schedule.last(now()))
    while True:
        await sleep_until(due, now)
        try:
            await call()
        except Exception as error:
            log.error("%s failed at a tick", name, exc_info=users(error))
        due = schedule.next(max(due, schedule.last(now())))
