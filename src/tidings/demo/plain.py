"""The demo without a terminal: lines for a log, a pipe, a test. What is a number is a ``key=value``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .board import Snapshot
from .screen import amount, welcome


class Plain:
    """Prints what is new at once, and once a second how it goes."""

    interval = 0.05

    def __init__(self) -> None:
        self.handled = self.recovered = 0
        self.alerts = self.letters = 0
        self.next = 0.0

    async def show(self, snapshot: Snapshot) -> None:
        for line in self.lines(snapshot):
            print(line, flush=True)

    def end(self, snapshot: Snapshot, published: Mapping[str, int], left: int) -> None:
        print(*summary(snapshot, published, left), sep="\n", flush=True)

    def lines(self, snapshot: Snapshot) -> Iterable[str]:
        """What to say now."""
        if not self.next:
            self.recovered, self.next = snapshot.recovered, 1.0
            yield f"demo pid={snapshot.pid} bus={snapshot.bus}"
            yield f"found recovered={snapshot.recovered} waiting={snapshot.waiting}: " + welcome(
                snapshot.recovered, snapshot.waiting
            )
        if snapshot.recovered > self.recovered:
            yield f"found recovered={snapshot.recovered} by now"
            self.recovered = snapshot.recovered
        handled = sum(row.handled for row in snapshot.rows)
        if handled and not self.handled:
            yield f"first handled after seconds={snapshot.elapsed:.2f}"
        self.handled = handled
        yield from self._news(snapshot)
        if snapshot.elapsed >= self.next:
            self.next = int(snapshot.elapsed) + 1.0
            yield f"t={int(snapshot.elapsed)} rate={snapshot.rate:.0f}/s lag={snapshot.lag} {totals(snapshot)}"

    def _news(self, snapshot: Snapshot) -> Iterable[str]:
        alerts, letters = sum(snapshot.severities.values()), snapshot.buried
        for severity, found in snapshot.alerts[len(snapshot.alerts) - alerts + self.alerts :]:
            reading = found.reading
            yield f"alert severity={severity} series={reading.series} score={found.score} value={amount(reading)!r}"
        for letter in snapshot.letters[len(snapshot.letters) - letters + self.letters :]:
            group, detail = letter.header("tdggroup"), letter.header("tdgdetail")
            yield f"dead letter group={group} reason={letter.header('tdgreason')} detail={detail!r}"
            if not self.letters and snapshot.url:
                yield f"  look at it: tidings dead ls --url {snapshot.url}; again: tidings dead replay --all --url ..."
        self.alerts, self.letters = alerts, letters


def totals(snapshot: Snapshot) -> str:
    """The numbers of every line and of the summary."""
    numbers = {
        "published": snapshot.published,
        "handled": sum(row.handled for row in snapshot.rows),
        "dead": snapshot.dead,
        "alerts": sum(snapshot.severities.values()),
        "p50_ms": f"{(snapshot.p50 or 0) * 1e3:.1f}",
        "p99_ms": f"{(snapshot.p99 or 0) * 1e3:.1f}",
    }
    return " ".join(f"{name}={number}" for name, number in numbers.items())


def summary(snapshot: Snapshot, published: Mapping[str, int], left: int) -> Iterable[str]:
    """The last words: totals, by topic, by group. ``left``: what waits for the next start."""
    for topic, number in sorted(published.items()):
        yield f"topic name={topic} published={number}"
    for row in snapshot.rows:
        yield f"group name={row.group} handled={row.handled} failed={row.failed} dead={row.dead}"
    yield f"summary seconds={snapshot.elapsed:.1f} recovered={snapshot.recovered} left={left} {totals(snapshot)}"
