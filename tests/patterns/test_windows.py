"""Windows are what a direct computation says, whatever the order of arrival, batches and crashes."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec import Struct
from tests.state.stores import STORES, url_of
from tests.transports.consuming import DEADLINE, until

from tidings import App, Backoff, Message, Topic
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
KINDS: dict[str, Any] = {
    "tumbling": Tumbling("10s"),
    "sliding": Sliding("10s", "2s"),
    "session": Session("3s"),
    "since": Since("7s"),
}


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

        @app.on(results, batch=500, concurrency=1)  # a batch comes in the order of arrival, whatever the keys
        async def collect(messages: list[Message[Result]]) -> None:
            self.messages += messages

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
        lateness="5s", watermark=watermark,
    )(made)  # fmt: skip
    collected, sent = Collected(app), some(1, late=0.0 if kind == "since" else 5.0)
    expected = order(directly(kind, sent))
    assert kind == "since" or any(a.at > b.at for a, b in pairwise(sent)), "they came in order, so nothing was tried"
    async with app:
        for n in range(0, len(sent), 100):
            await app.publish_many([readings(reading) for reading in sent[n : n + 100]])
        # What ends the last windows is a message, not a pause: a slow machine pauses wherever it likes.
        await app.publish_many([readings(Reading(device, 2e9, 0)) for device in "abc"])
        await until(lambda: len(collected.results) >= len(expected))
    assert (collected.results if watermark == "group" else order(collected.results)) == expected
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


def letters(app: App) -> list[Message[Any]]:
    found = list[Message[Any]]()

    @app.on("_dead.shop.made")
    async def letter(message: Message[Any]) -> None:
        found.append(message)

    return found


async def bring(app: App, some: Iterable[Reading], together: bool) -> None:
    """Publish them at once, or so that each is a batch of its own."""
    if together:
        await app.publish_many([readings(reading) for reading in some])
        return
    for reading in some:
        seen = app.stats()["shop.made"].handled + 1
        await app.publish(readings, reading)
        await until(partial(lambda n: app.stats()["shop.made"].handled >= n, seen))


@pytest.mark.parametrize("together", [True, False], ids=["one-batch", "a-batch-each"])
async def test_what_is_too_late_is_dropped_or_dead(together: bool) -> None:
    app = App("shop", "memory://")
    windowed(app, readings, Tumbling("10s"), time=lambda r: r.at, fold=add, to=results, lateness="5s", late="dead")(
        made
    )
    collected, dead = Collected(app), letters(app)
    async with app:
        await bring(app, [Reading("a", at, int(at)) for at in (1.0, 12.0, 9.0, 15.5, 9.5, 26.0)], together)
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


@pytest.mark.parametrize("watermark", ["group", "key"])
async def test_after_a_pause_closed_windows_stay_closed(watermark: Any, tmp_path: Path) -> None:
    app = App("shop", url_of("sqlite", tmp_path))
    windowed(
        app, readings, Tumbling("10s"), time=lambda r: r.at, fold=add, to=results, idle="500ms", watermark=watermark
    )(made)
    collected = Collected(app)
    async with app:
        await app.publish(readings, Reading("a", 3.0, 1))
        await until(lambda: len(collected.results) == 1)
        await app.publish_many([readings(Reading("a", 4.0, 1)), readings(Reading("a", 12.0, 1))])
        await until(lambda: len(collected.results) == 2)
    assert [(r.start, r.count) for r in collected.results] == [(0.0, 1), (10.0, 1)]


@pytest.mark.parametrize("watermark", ["group", "key"])
async def test_after_a_pause_they_end_whatever_is_rounded(watermark: Any) -> None:
    lateness, app = 0.4, App("shop", "memory://")
    assert 0.1 + lateness - lateness < 0.1
    windowed(
        app, readings, Tumbling("100ms"), time=lambda r: r.at, fold=add, to=results, lateness=lateness, idle="300ms",
        watermark=watermark,
    )(made)  # fmt: skip
    collected = Collected(app)
    async with app:
        await app.publish(readings, Reading("a", 0.05, 1))
        await until(lambda: collected.results)
        await app.publish_many([readings(Reading("a", at, 1)) for at in (0.06, 0.15)])
        await until(lambda: len(collected.results) == 2)
    assert [(r.end, r.count) for r in collected.results] == [(0.1, 1), (0.2, 1)]


async def test_a_key_that_is_idle_is_forgotten() -> None:
    app = App("shop", "memory://")
    windowed(
        app, readings, Since("5s"), by=lambda r: r.device, time=lambda r: r.at, fold=add, to=results, watermark="key",
        idle="50ms",
    )(made)  # fmt: skip
    collected = Collected(app)
    async with app:
        await app.publish_many([readings(Reading(f"case-{n}", 1.0, n)) for n in range(50)])
        await until(lambda: len(collected.results) == 50)
        store, left = cast(Any, app.bus()), 1
        async with asyncio.timeout(DEADLINE):
            while left:
                left = sum(each.records for each in await store.tables() if each.name.startswith("shop.made."))
                await asyncio.sleep(0)
        assert len(collected.results) == 50


async def test_after_a_pause_windows_end_on_the_bus_of_their_source() -> None:
    app, far = App("shop", "memory://", second="memory://"), Topic("far", Reading, bus="second")
    windowed(app, far, Tumbling("10s"), time=lambda r: r.at, fold=add, to=results, idle="200ms")(made)
    collected = Collected(app)
    async with app:
        await app.publish(far, Reading("a", 3.0, 1))
        await until(lambda: collected.results)
    assert [(r.start, r.count) for r in collected.results] == [(0.0, 1)]


@pytest.mark.parametrize("size", [10, 100], ids=["tumbling", "sliding"])
async def test_windows_whose_length_is_not_exact_in_binary(size: int) -> None:
    """Times and borders are whole hundredths of a second here, until they are divided."""
    app, since, step = App("shop", "memory://"), 170_000_000_003, 10
    kind = Tumbling("100ms") if size == step else Sliding("1s", every=0.1)
    windowed(app, readings, kind, time=lambda r: r.at, fold=add, to=results)(made)
    collected, counts = Collected(app), defaultdict[int, int](int)
    for at in range(since, since + 2000):
        for start in range(at // step * step, at - size, -step):
            counts[start] += 1
    async with app:
        await app.publish_many([readings(Reading("", at / 100, 1)) for at in range(since, since + 2000)])
        await app.publish(readings, Reading("", 1e10, 1))
        await until(lambda: sum(r.count for r in collected.results) == 2000 * size // step)
    expected = [(start / 100, (start + size) / 100, count) for start, count in sorted(counts.items())]
    assert [(r.start, r.end, r.count) for r in collected.results] == expected


SINCE, SESSION = Since("10s"), Session("10s")


@pytest.mark.parametrize(
    ("kind", "times", "lateness", "windows", "late"),
    [
        (SINCE, (0.0, 10.0, 5.0, 30.0), 0.0, [(0.0, 1), (10.0, 1)], 1),
        (SINCE, (0.0, 10.5, 12.0, 10.2, 30.0), 1.0, [(0.0, 1), (10.5, 2)], 1),
        (SINCE, (12.0, 11.0, 40.0), 5.0, [(12.0, 2)], 0),
        (SINCE, (0.0, 10.5, 9.0, 10.2, 40.0), 5.0, [(0.0, 2), (10.5, 2)], 0),
        (SESSION, (0.0, 20.0, 9.0, 60.0), 0.0, [(0.0, 1), (20.0, 1)], 1),
        (SESSION, (0.0, 12.0, 5.0, 60.0), 0.0, [(0.0, 1), (5.0, 2)], 0),
        (SESSION, (0.0, 12.0, 5.0, 60.0), 2.5, [(0.0, 3)], 0),
    ],
)
@pytest.mark.parametrize("together", [True, False], ids=["one-batch", "a-batch-each"])
async def test_what_is_from_before_a_first_message(
    kind: Any, times: tuple[float, ...], lateness: float, windows: list[Any], late: int, together: bool
) -> None:
    app = App("shop", "memory://")
    windowed(
        app, readings, kind, time=lambda r: r.at, fold=add, merge=both, to=results, lateness=lateness, late="dead"
    )(made)
    collected, dead = Collected(app), letters(app)
    async with app:
        await bring(app, [Reading("", at, 1) for at in times], together)
        await until(lambda: len(collected.results) >= len(windows) and len(dead) >= late)
    assert [(r.start, r.count) for r in collected.results] == windows
    assert len(dead) == late


@pytest.mark.parametrize("together", [True, False], ids=["one-batch", "a-batch-each"])
async def test_each_key_has_come_as_far_as_its_own_messages(together: bool) -> None:
    app = App("shop", "memory://")
    windowed(
        app, readings, Tumbling("10s"), by=lambda r: r.device, time=lambda r: r.at, fold=add, to=results, late="dead",
        watermark="key",
    )(made)  # fmt: skip
    collected, dead = Collected(app), letters(app)
    came = [("a", 1.0), ("b", 1000.0), ("a", 2.0), ("b", 999.0), ("a", 12.0), ("a", 3.0), ("b", 1011.0)]
    async with app:
        await bring(app, [Reading(device, at, int(at)) for device, at in came], together)
        await until(lambda: len(collected.results) == 2 and len(dead) == 2)
    assert [(r.device, r.start, r.count) for r in collected.results] == [("a", 0.0, 2), ("b", 1000.0, 1)]
    assert [b'"at":999.0' in message.body or b'"at":3.0' in message.body for message in dead] == [True, True]


async def test_they_come_by_their_end_whoever_ends_them() -> None:
    app = App("shop", "memory://")
    windowed(app, readings, Tumbling("5s"), by=lambda r: r.device, time=lambda r: r.at, fold=add, to=results)(made)
    collected = Collected(app)
    async with app:
        await bring(app, [Reading("c", 1.0, 1), Reading("a", 8.0, 1)], together=False)
        await bring(app, [Reading("b", at, 1) for at in (7.0, 12.0, 20.0)], together=True)
        await until(lambda: len(collected.results) == 4)
    assert [(r.device, r.end) for r in collected.results] == [("c", 5.0), ("a", 10.0), ("b", 10.0), ("b", 15.0)]


@pytest.mark.parametrize("idle", ["0s", "2s"])
async def test_more_keys_end_at_once_than_are_looked_at_together(idle: str) -> None:
    app, count = App("shop", "memory://"), 2500
    windowed(
        app, readings, Tumbling("5s"), by=lambda r: r.device, time=lambda r: r.at, fold=add, to=results, idle=idle
    )(made)
    collected = Collected(app)
    some = [Reading(f"{n:04}", at, n) for at in (1.0, 6.0) for n in range(count)]
    random.Random(4).shuffle(some)
    async with app:
        await app.publish_many([readings(reading) for reading in sorted(some, key=lambda r: r.at)])
        if idle == "0s":
            await app.publish(readings, Reading("last", 100.0, 1))
        await until(lambda: len(collected.results) == 2 * count)
    assert collected.results == order(collected.results)
    assert len({(r.device, r.end) for r in collected.results}) == 2 * count


async def test_times_that_nobody_means_are_dead_letters() -> None:
    app = App("shop", "memory://")
    windowed(
        app, readings, Tumbling("5s"), time=lambda r: r.at * 1000 if r.value < 0 else float(r.device), fold=add,
        to=results, backoff=Backoff(attempts=1),
    )(made)  # fmt: skip
    collected, dead = Collected(app), letters(app)
    async with app:
        for device, value in (("nan", 1), ("inf", 1), ("ms", -1), ("1", 1), ("7", 1)):
            await app.publish(readings, Reading(device, 1.7e9, value))
        await until(lambda: collected.results and len(dead) == 3)
    assert [(r.start, r.count) for r in collected.results] == [(0.0, 1)]


def test_what_means_nothing_is_refused() -> None:
    app: Any = App("shop", "memory://")
    good: dict[str, Any] = {"to": results, "fold": add}
    for kind, wrong in [
        (Tumbling("0s"), {}), (Tumbling(1e-9), {}), (Sliding("1s", "2s"), {}), ("5m", {}), (Session("1s"), {}),
        (Tumbling("1s"), {"late": "never"}), (Tumbling("1s"), {"latness": "1s"}), (Tumbling("1s"), {"by": "device"}),
        (Tumbling("1s"), {"to": "results"}), (Tumbling("1s"), {"watermark": "mine"}),
    ]:  # fmt: skip
        with pytest.raises(InvalidOption):
            windowed(app, readings, kind, **{**good, **wrong})
    with pytest.raises(InvalidHandler, match="does not say what it returns"):
        windowed(app, readings, Tumbling("1s"), to=results, fold=lambda total, reading: total)
    with pytest.raises((InvalidOption, InvalidName)):
        windowed(app, "readings", Tumbling("1s"), **good)
