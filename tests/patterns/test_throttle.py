"""Throttles: never more than the rate, evenly, and what is far away goes back to the bus."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from tests.kernel.rig import until, virtual

from tidings import App, Topic
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import InvalidOption
from tidings.patterns import SharedThrottle, Throttle
from tidings.testing import running

numbers, others = Topic("numbers", int), Topic("others", int)


def watch(app: App, topic: Topic[int], **options: Any) -> list[float]:
    """When its handler starts, in seconds since now."""
    began, starts = current_clock().now(), list[float]()

    async def handle(n: int) -> None:
        starts.append(current_clock().now() - began)

    app.on(topic, group=f"shop.{topic.name}-{app.name}", **options)(handle)
    return starts


def most(starts: list[float], window: float) -> int:
    """The most starts in any such window."""
    starts = sorted(starts)
    return max(sum(start <= each < start + window for each in starts) for start in starts)


@virtual
async def test_evenly_and_no_faster() -> None:
    app = App("shop", "memory://")
    starts = watch(app, numbers, middleware=[Throttle(10, "1s")])
    async with running(app) as captured:
        await app.publish_many([numbers(n) for n in range(50)])
        await captured.idle()
    assert len(starts) == 50
    assert [round(b - a, 2) for a, b in pairwise(starts)] == [0.1] * 49


@virtual
async def test_a_burst_after_a_rest() -> None:
    app = App("shop", "memory://")
    starts = watch(app, numbers, middleware=[Throttle(60, "1m", burst=5)])
    async with running(app) as captured:
        await app.publish_many([numbers(n) for n in range(8)])
        await captured.idle()
    assert [round(start) for start in starts] == [0, 0, 0, 0, 0, 1, 2, 3]


@virtual
async def test_one_throttle_for_two_handlers_and_for_batches() -> None:
    app = App("shop", "memory://")
    throttle = Throttle(10)
    one = watch(app, numbers, middleware=[throttle])
    sizes: list[tuple[float, int]] = []

    @app.on(others, batch=10, middleware=[throttle])
    async def batch(ns: list[int]) -> None:
        sizes.append((current_clock().now(), len(ns)))

    async with running(app) as captured:
        began = current_clock().now()
        await app.publish_many([numbers(n) for n in range(20)])
        await app.publish_many([others(n) for n in range(20)])
        await captured.idle()
        assert current_clock().now() - began >= 2.9
    assert sum(size for _, size in sizes) == 20
    assert most(one, 0.99) <= 10


@virtual
async def test_what_is_far_away_goes_back_uncounted() -> None:
    app = App("shop", "memory://")
    starts = watch(app, numbers, middleware=[Throttle(1, "1m", longest="90s")], concurrency=4)
    async with running(app) as captured:
        await app.publish_many([numbers(n) for n in range(6)])
        await captured.idle(timeout=3600)
        assert app.stats()["shop.numbers-shop"].released > 0
        assert await captured.dead() == []
    assert len(starts) == 6
    assert most(starts, 59.9) == 1


@virtual
async def test_processes_share_a_rate() -> None:
    """Two apps on one bus, each as fast as it gets messages: together no more than the rate."""
    apps = [App(name, "memory://shared-rate") for name in ("one", "two")]
    starts = [
        watch(app, numbers, middleware=[SharedThrottle(app, "bank", 20, "1s", longest="1h")], concurrency=64)
        for app in apps
    ]
    async with apps[0], apps[1]:
        await apps[0].publish_many([numbers(n) for n in range(200)])
        await until(lambda: sum(map(len, starts)) == 400)
    together = [*starts[0], *starts[1]]
    assert most(together, 0.999) <= 21
    assert min(map(len, starts)) == 200
    assert max(together) < 2 * 400 / 20  # and it is made use of


@virtual
async def test_a_shared_rate_goes_on_after_a_restart() -> None:
    began = current_clock().now()
    starts: list[float] = []
    keeper = App("keeper", "memory://restarted-rate")
    async with keeper.connect():
        for _ in range(3):
            app = App("shop", "memory://restarted-rate")
            came = watch(app, numbers, middleware=[SharedThrottle(app, "bank", 1, "10s", longest="1h")])
            since = current_clock().now()
            async with app:
                await app.publish(numbers(1))
                await until(lambda came=came: bool(came))  # type: ignore[misc]
            starts += [since - began + each for each in came]
    assert [round(start) for start in starts] == [0, 10, 20]


def test_what_cannot_be_is_refused() -> None:
    for rate in (0, -1, True, "10"):
        with pytest.raises(InvalidOption, match="rate cannot be"):
            Throttle(rate)  # type: ignore[arg-type]
    for burst in (0, 1.5):
        with pytest.raises(InvalidOption, match="burst cannot be"):
            Throttle(1, burst=burst)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="per cannot be"):
        Throttle(1, "soon")
