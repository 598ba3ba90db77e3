"""EIP: Test Message. Now and then a probe goes the whole way that messages go, and its time is measured.

    Probe(app, "billing", at=placed, make=lambda: Order("probe", 0.0), to=invoiced, every="10s", within="30s")

A probe is published at one topic, handled as any message, and ends at another: handlers there never see it, but the one
that measures. It is marked by a header, which all that follows from it carries too, so that a handler can do without
what a probe must not touch: ``if is_probe(message): ...``. One that does not arrive in time is reported as missing.
What is on its way is in records of the app's store (``State``), so that no restart forgets it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from tidings.app import App
from tidings.channels import Topic
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import Duration, InvalidOption, Skip
from tidings.kernel.handler import Many, One, Outcome, Outgoing
from tidings.kernel.message import Message, new_id, seconds
from tidings.kernel.topics import check_topic, matches
from tidings.kernel.transport import Delivery
from tidings.middleware import Group, instrument
from tidings.state import State, Table
from tidings.timers import due

from ._pattern import describe
from ._times import Times

T = TypeVar("T")

log = logging.getLogger("tidings")

HEADER = "test-message"  # the probe's name, id, and when it was sent (Unix seconds)
BATCH = 256  # messages


class Result(Struct, frozen=True):
    """What became of one probe: sent at (Unix seconds), ``took`` seconds to arrive; None: it is missing."""

    probe: str
    id: str
    sent: float
    took: float | None = None


class Measured(Struct, frozen=True):
    """What this process has seen: probes that arrived and that are missing; seconds, of the last 1,000 that arrived."""

    arrived: int
    missing: int
    p50: float | None
    p99: float | None


class Probe:
    """Publishes ``make()`` at the topic ``at`` every so often, and measures until it arrives at the topic ``to``.

    ``within``: when it is missing. ``report`` is called with each ``Result``, in the process that finds it; all are
    logged, missing ones as warnings. What other apps on the way send does not carry the mark without
    ``carry_probes(app)``; nor does what handlers of batches return. Raises ``InvalidOption``, ``InvalidName``.
    """

    def __init__(
        self,
        app: App,
        name: str,
        /,
        *,
        at: Topic[T],
        make: Callable[[], T],
        to: Topic[Any],
        every: Duration = 10.0,
        within: Duration = 30.0,
        report: Callable[[Result], Any] | None = None,
    ) -> None:
        if (at.bus, at.pattern) == (to.bus, to.pattern) or not at.publishable:
            raise InvalidOption(f"a probe cannot go from {at!r} to {to!r}", mend="at: one topic, to: another one")
        self.name, self.within, self.report = check_topic(name), seconds(within, "within"), report
        self.sent: Table[float] = Table(f"probes.{name}", float)
        self.times, self.arrived, self.missing = Times(), 0, 0
        group = f"{app.name}.probe-{name}"
        instrument(app, _Carry(f"{name} ", to.pattern, f"{group}-end"))
        self._inject(app, at, make, every, group)
        self._measure(app, to, group)

    def stats(self) -> Measured:
        """What this process has seen of it so far."""
        return Measured(self.arrived, self.missing, self.times.below(0.5), self.times.below(0.99))

    def _inject(self, app: App, at: Topic[T], make: Callable[[], T], every: Duration, group: str) -> None:
        async def probe(state: State) -> Message[T]:
            now, id = current_clock().now(), new_id()
            state.put(self.sent, id, now, due=now + self.within)
            return at(make(), id=id, headers={HEADER: f"{self.name} {id} {now!r}"})

        app.every(every, bus=at.bus, group=group)(describe(probe, "test message", publishes=[at]))

    def _measure(self, app: App, to: Topic[Any], group: str) -> None:
        async def probe_end(messages: list[Message[bytes]], state: State) -> None:
            for message in messages:
                name, _, rest = message.header(HEADER).partition(" ")
                id = rest.partition(" ")[0]
                if name == self.name and (sent := await state.get(self.sent, id)) is not None:
                    state.delete(self.sent, id)  # another one that follows from the same probe tells nothing
                    self._tell(Result(name, id, sent, max(0.0, current_clock().now() - sent)))

        async def probe_missing(id: str, sent: float, state: State) -> None:
            self._tell(Result(self.name, id, sent))

        options: Any = {"batch": BATCH, "concurrency": 1, "bus": to.bus, "group": f"{group}-end"}
        app.on(to.pattern, **options)(describe(probe_end, "test message"))
        due(app, self.sent, group=f"{group}-missing")(describe(probe_missing, "test message"))

    def _tell(self, result: Result) -> None:
        if result.took is None:
            self.missing += 1
            log.warning("probe %s: %s is missing after %g s", self.name, result.id, self.within)
        else:
            self.arrived += 1
            self.times.add(result.took)
            log.info("probe %s: %s took %.3f s", self.name, result.id, result.took)
        if self.report is not None:
            self.report(result)


def is_probe(message: Message[Any]) -> bool:
    """Whether a message is a probe, or follows from one."""
    return message.headers is not None and bool(message.header(HEADER))


def carry_probes(app: App) -> None:
    """Let what the handlers of an app return for a probe be marked as one: of an app between ``at`` and ``to``."""
    instrument(app, _Carry())


class _Carry:
    """An observer: marks what follows from a probe, and ends one at its last topic, for all but who measures."""

    def __init__(self, name: str = "", end: str = "", measures: str = "", group: str = "") -> None:
        self.name, self.end, self.measures, self.group = name, end, measures, group

    def of(self, group: Group) -> _Carry:
        return _Carry(self.name, self.end, self.measures, group.name)

    def attach(self, app: Any) -> None:
        """Nothing: it needs no more of an app."""

    def _ends(self, message: Message[Any]) -> bool:
        mine = bool(self.name) and message.header(HEADER).startswith(self.name)
        return mine and self.group != self.measures and matches(self.end, message.topic)

    def __call__(self, one: One) -> One:
        async def carrying(delivery: Delivery) -> Outgoing:
            message = delivery.message
            if not is_probe(message):
                return await one(delivery)
            if self._ends(message):
                raise Skip("a probe ends here")
            mark = (HEADER, message.header(HEADER))
            sent = await one(delivery)
            return tuple(m if is_probe(m) else replace(m, headers=(*(m.headers or ()), mark)) for m in sent)

        return carrying

    def many(self, many: Many) -> Many:
        async def carrying(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            outcomes: list[Outcome] = [()] * len(deliveries)
            others = [i for i, d in enumerate(deliveries) if not (is_probe(d.message) and self._ends(d.message))]
            if others:
                for index, outcome in zip(others, await many([deliveries[i] for i in others]), strict=True):
                    outcomes[index] = outcome
            return outcomes

        return carrying
