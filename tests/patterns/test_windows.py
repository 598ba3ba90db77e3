"""Windows are what a direct computation says, whatever the order of arrival, batches and crashes."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from tests.state.stores import STORES, url_of
from tests.transports.consuming import until

from tidings import App, Message, Topic
from tidings.kernel.errors import InvalidHandler, InvalidName, InvalidOption
from tidings.patterns import Session, Since, Sliding, Tumbling, Window, windowed


class Reading(Struct):
    device: str
    at: float
    value: int


class Total(Struct):
    count: int = 0
    sum: int = 0


class Result(Struct):
    device: str
    start: float
    end: float
    count: int
    sum: int


readings, results = Topic("readings", Reading), Topic("results", Result)
KINDS = {"tumbling": Tumbling("10s"), "sliding": Sliding("10s", "2s"), "session": Session("3s"), "since": Since("7s")}


def add(total: Total | None, reading: Reading) -> Total:
    total = total or Total()
    return Total(total.count + 1, total.sum + reading.value)


def both(a: Total, b: Total) -> Total:
    return Total(a.count + b.count, a.sum + b.sum)


def made(total: Total, window: Window) -> Result:
    return Result(window.key, window.start, window.end, total.count, total.sum)


def directly(kind: str, all: Iterable[Reading]) -> list[Result]:
    """All windows, the plain way."""
    spans: dict[tuple[str, float, float], list[int]] = defaultdict(list)
    by_device: dict[str, list[Reading]] = defaultdict(list)
    for reading in all:
        by_device[reading.device].append(reading)
    for device, mine in by_device.items():
        if kind == "session":
            session: list[Reading] = []
            for reading in [*sorted(mine, key=lambda r: r.at), Reading("", 1e12, 0)]:
                if session and reading.at - session[-1].at >= 3:
                    spans[device, session[0].at, session[-1].at + 3] = [r.value for r in session]
                    session = []
                session.append(reading)
            continue
        if kind == "since":
            end = 0.0
            for reading in mine:
                if reading.at >= end:
                    begin, end = reading.at, reading.at + 7
                spans[device, begin, end].append(reading.value)
            continue
        size, every = (10, 10) if kind == "tumbling" else (10, 2)
        for reading in mine:
            start = reading.at // every * every
            while start + size > reading.at:
                spans[device, start, start + size].append(reading.value)
                start -= every
    return [Result(*span, len(values), sum(values)) for span, values in spans.items()]


def order(some: Iterable[Result]) -> list[Result]:
    return sorted(some, key=lambda result: (result.end, result.device))


class Collected:
    def __init__(self, app: App) -> None:
        self.messages: list[Message[Result]] = []

        @app.on(results)
        async def collect(message: Message[Result]) -> None:
            self.messages.append(message)

    @property
    def results(self) -> list[Result]:
        return [message.data for message in self.messages]


def some(seed: int, count: int = 600, late: float = 0.0) -> list[Reading]:
    chance = random.Random(seed)
    at = [1_700_000_000.0 + chance.random() * 300 for _ in range(count)]
    all = [Reading(chance.choice("abc"), when, chance.randrange(100)) for when in sorted(at)]
    return sorted(all, key=lambda reading: reading.at + chance.random() * late)


@pytest.mark.parametrize("watermark", ["group", "key"])
@pytest.mark.parametrize("kind", KINDS)
async def test_they_are_as_computed_directly(kind: str, watermark: Any, tmp_path: Path) -> None:
    app = App("shop", url_of("sqlite", tmp_path))
    windowed(
        app, readings, KINDS[kind], by=lambda r: r.device, time=lambda r: r.at, fold=add, merge=both, to=results,
        lateness="5s", idle="300ms", watermark=watermark,
    )(made)  # fmt: skip
    collected, sent = Collected(app), some(1, late=0.0 if kind == "since" else 5.0)
    expected = order(directly(kind, sent))
    assert kind == "since" or any(a.at > b.at for a, b in pairwise(sent)), "they came in order, so nothing was tried"
    async with app:
        for n in range(0, len(sent), 100):
            await app.publish_many([readings(reading) for reading in sent[n : n + 100]])
        await until(lambda: len(collected.results) >= len(expected))
    assert order(collected.results) == expected
    assert len({message.id for message in collected.messages}) == len(expected)
    first = collected.messages[0]
    assert first.header("window-start") == datetime.fromtimestamp(first.data.start, UTC).isoformat()
    assert first.key == first.data.device


@pytest.mark.parametrize("kind", STORES)
async def test_open_windows_outlive_the_app(kind: str, tmp_path: Path) -> None:
    url, sent = url_of(kind, tmp_path), some(2)
    expected, seen = order(directly("tumbling", sent)), list[Result]()
    async with App("keep", url).connect():  # memory lasts as long as somebody has it open
        for n in range(0, len(sent), 150):
            app = App("shop", url)
            windowed(app, readings, Tumbling("10s"), by=lambda r: r.device, time=lambda r: r.at, fold=add, to=results)(
                made
            )
            collected = Collected(app)
            async with app:
                await app.publish_many([readings(reading) for reading in sent[n : n + 150]])
                due = [r for r in expected if r.end <= max(s.at for s in sent[: n + 150])]
                fresh, stats = len(due) - len(seen), app.stats()["shop.made"]
                await until(lambda c=collected, n=fresh, s=stats: s.handled == 150 and len(c.results) >= n)
            seen += collected.results
            assert order(seen) == due


async def test_what_is_too_late_is_dropped_or_dead(tmp_path: Path) -> None:
    app = App("shop", "memory://")
    windowed(app, readings, Tumbling("10s"), time=lambda r: r.at, fold=add, to=results, lateness="5s", late="dead")(
        made
    )
    collected, dead = Collected(app), list[Message[Any]]()

    @app.on("_dead.shop.made")
    async def letters(message: Message[Any]) -> None:
        dead.append(message)

    async with app:
        for at in (1.0, 12.0, 9.0, 15.5, 9.5, 26.0):
            await app.publish(readings, Reading("a", at, int(at)))
        await until(lambda: len(collected.results) == 2 and dead)
        assert [(r.start, r.count, r.sum) for r in collected.results] == [(0.0, 2, 10), (10.0, 2, 27)]
        assert [message.header("tdgreason") for message in dead] == ["late"]
        assert b"9.5" in dead[0].body


async def test_event_time_may_be_a_datetime_or_that_of_publishing(tmp_path: Path) -> None:
    app = App("shop", "memory://")
    windowed(
        app, readings, Tumbling("1h", offset="30m"), to=results, fold=add, idle="200ms",
        time=lambda r: datetime.fromtimestamp(r.at, UTC), group="shop.dated",
    )(made)  # fmt: skip
    windowed(app, readings, Tumbling("1d"), to=results, fold=add, idle="200ms", group="shop.published")(made)
    collected = Collected(app)
    async with app:
        await app.publish(readings, Reading("a", 7199.0, 1))
        await until(lambda: len(collected.results) == 2)
    starts = sorted(result.start for result in collected.results)
    assert starts[0] == 5400.0
    assert starts[1] % 86400 == 0
    assert starts[1] > 1.7e9


async def test_after_a_pause_closed_windows_stay_closed(tmp_path: Path) -> None:
    app = App("shop", url_of("sqlite", tmp_path))
    windowed(app, readings, Tumbling("10s"), time=lambda r: r.at, fold=add, to=results, idle="200ms")(made)
    collected = Collected(app)
    async with app:
        await app.publish(readings, Reading("a", 3.0, 1))
        await until(lambda: len(collected.results) == 1)
        await app.publish_many([readings(Reading("a", 4.0, 1)), readings(Reading("a", 12.0, 1))])
        await until(lambda: len(collected.results) == 2)
    assert [(r.start, r.count) for r in collected.results] == [(0.0, 1), (10.0, 1)]


def test_what_means_nothing_is_refused() -> None:
    app: Any = App("shop", "memory://")
    good: dict[str, Any] = {"to": results, "fold": add}
    for kind, wrong in [
        (Tumbling("0s"), {}), (Sliding("1s", "2s"), {}), ("5m", {}), (Session("1s"), {}),
        (Tumbling("1s"), {"late": "never"}), (Tumbling("1s"), {"latness": "1s"}), (Tumbling("1s"), {"by": "device"}),
        (Tumbling("1s"), {"to": "results"}), (Tumbling("1s"), {"watermark": "mine"}),
    ]:  # fmt: skip
        with pytest.raises(InvalidOption):
            windowed(app, readings, kind, **{**good, **wrong})
    with pytest.raises(InvalidHandler, match="does not say what it returns"):
        windowed(app, readings, Tumbling("1s"), to=results, fold=lambda total, reading: total)
    with pytest.raises((InvalidOption, InvalidName)):
        windowed(app, "readings", Tumbling("1s"), **good)
