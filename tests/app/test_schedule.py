"""Ticks: when they are due, that one replica gets each, and what is missed."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kernel.rig import until, virtual

from tidings import App, Backoff, Depends, Message, Topic
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import BusFull
from tidings.schedule import Cron, Interval
from tidings.transports.memory import Memory

MOMENTS = st.floats(1.0e9, 2.5e9)
sampled = Topic("sensors.cpu", int)


def stamp(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@asynccontextmanager
async def bus(name: str) -> AsyncIterator[Any]:
    """A shared memory bus that outlives the apps of a test."""
    keeper = Memory(name=name).transport()
    await keeper.open(lambda event: None)
    try:
        yield keeper
    finally:
        await keeper.close()


# -- when


@given(MOMENTS, st.sampled_from([0.01, 0.1, 0.3, 1.0, 5.0, 7.5, 60.0, 3600.0, 86_400.0, 604_800.0]))
def test_intervals_are_multiples_since_the_epoch(now: float, interval: float) -> None:
    schedule = Interval(interval)
    last = schedule.last(now)
    following = schedule.next(last)
    slack = 1e-6
    assert last <= now + slack
    assert following > now - slack
    assert following - last == pytest.approx(interval, abs=slack)
    assert schedule.last(last + slack) == pytest.approx(last, abs=slack)
    steps = last / interval
    assert abs(steps - round(steps)) < 1e-3


@given(
    MOMENTS, st.sampled_from(["* * * * *", "*/5 * * * *", "0 9 * * 1-5", "30 2 * * *", "0 0 1 * *", "15,45 8-18 * * *"])
)
def test_cron_times_around_any_moment(now: float, expression: str) -> None:
    schedule = Cron(expression, "Europe/Rome")
    last = schedule.last(now)
    following = schedule.next(last)
    assert last <= now < following
    assert schedule.last(last) == last
    assert schedule.last(following - 0.5) == last


@pytest.mark.parametrize(
    ("expression", "zone", "now", "due"),
    [
        ("0 9 * * *", "UTC", "2026-01-01T00:00", ["2026-01-01T09:00", "2026-01-02T09:00"]),
        ("0 9 * * 1-5", "UTC", "2026-01-02T09:00", ["2026-01-05T09:00", "2026-01-06T09:00"]),
        ("0 9 * * *", "Europe/Rome", "2026-03-28T10:00", ["2026-03-29T09:00", "2026-03-30T09:00"]),
        ("0 9 * * *", "Europe/Rome", "2026-10-24T10:00", ["2026-10-25T09:00", "2026-10-26T09:00"]),
    ],
)
def test_cron_follows_the_wall_clock_of_its_zone(expression: str, zone: str, now: str, due: list[str]) -> None:
    schedule, moment = Cron(expression, zone), stamp(now, zone)
    for expected in due:
        moment = schedule.next(moment)
        assert moment == stamp(expected, zone)


def test_a_skipped_hour_and_a_repeated_one() -> None:
    """As Debian's cron: a daily job is neither lost nor run twice; an hourly one follows the sun."""
    daily = Cron("30 2 * * *", "Europe/Rome")
    spring = daily.next(stamp("2026-03-28T12:00", "Europe/Rome"))
    local = datetime.fromtimestamp(spring, ZoneInfo("Europe/Rome"))
    assert (local.month, local.day) == (3, 29)
    autumn = daily.next(stamp("2026-10-24T12:00", "Europe/Rome"))
    assert datetime.fromtimestamp(autumn, ZoneInfo("Europe/Rome")).day == 25
    assert datetime.fromtimestamp(daily.next(autumn), ZoneInfo("Europe/Rome")).day == 26
    hourly, moment = Cron("0 * * * *", "Europe/Rome"), stamp("2026-10-24T22:00")
    times = []
    for _ in range(5):
        moment = hourly.next(moment)
        times.append(moment)
    assert [b - a for a, b in pairwise(times)] == [3600.0] * 4


# -- who


@virtual
async def test_one_tick_for_two_replicas() -> None:
    ticks, ran = Counter[float](), Counter[str]()
    apps = [App("shop", "memory://ticks-single") for _ in range(2)]
    for number, a in enumerate(apps):

        async def sample(message: Message[Any], number: int = number) -> None:
            ticks[round(current_clock().now())] += 1
            ran[str(number)] += 1
            assert message.topic == "_tick.shop.sample"

        a.every("5s")(sample)
    began = current_clock().now()
    async with apps[0], apps[1]:
        await asyncio.sleep(102)
    assert set(ticks.values()) == {1}
    assert sorted(ticks) == [round(began) + 5 * n for n in range(1, 21)]


@virtual
async def test_each_replica_ticks_itself() -> None:
    ran = Counter[int]()
    apps = [App("shop", "memory://ticks-each") for _ in range(2)]
    for number, a in enumerate(apps):

        async def sample(number: int = number) -> None:
            ran[number] += 1
            if ran[number] == 2:
                raise ValueError("this tick is lost, the next one comes")

        a.every("5s", each=True)(sample)
    async with apps[0], apps[1]:
        await asyncio.sleep(52)
    assert ran == {0: 10, 1: 10}


@virtual
async def test_what_a_tick_returns_is_published() -> None:
    a, came = App("shop", "memory://"), list[Any]()

    @a.every("5s")
    async def sample() -> Message[int]:
        return sampled(1)

    @a.every("5s", each=True)
    async def local() -> AsyncIterator[Message[int]]:
        yield sampled(2)
        yield sampled(3)

    @a.on(sampled)
    async def collect(n: int) -> None:
        came.append(n)

    async with a:
        await asyncio.sleep(11)
    assert sorted(came) == [1, 1, 2, 2, 3, 3]


@virtual
async def test_a_first_start_does_not_fire_for_the_past() -> None:
    ran: list[float] = []
    a = App("shop", "memory://")

    @a.cron("0 9 * * *")
    async def report() -> None:
        ran.append(current_clock().now())

    async with a:
        await asyncio.sleep(8 * 3600)
        assert ran == []
        await asyncio.sleep(2 * 3600)
    assert [datetime.fromtimestamp(at, UTC).hour for at in ran] == [9]


@virtual
async def test_a_first_start_just_before_a_tick_does_not_lose_it() -> None:
    ran: list[float] = []
    a = App("shop", "memory://")

    @a.cron("* * * * *")
    async def report() -> None:
        ran.append(current_clock().now())

    await asyncio.sleep(59.5)
    async with a:
        await asyncio.sleep(10)
    assert len(ran) == 1


@virtual
async def test_what_was_missed_is_made_up_for_once() -> None:
    ran: list[float] = []

    def shop() -> App:
        a = App("shop", "memory://ticks-missed")

        @a.every("1h")
        async def report() -> None:
            ran.append(current_clock().now())

        return a

    async with bus("ticks-missed"):
        async with shop():
            await asyncio.sleep(2.5 * 3600)
        assert len(ran) == 2
        await asyncio.sleep(10 * 3600)
        async with shop():
            await asyncio.sleep(60)
            assert len(ran) == 3
            await asyncio.sleep(3600)
        assert len(ran) == 4


@virtual
async def test_ticks_of_a_slow_handler_coalesce() -> None:
    starts: list[float] = []
    a = App("shop", "memory://")

    @a.every("5s")
    async def slow() -> None:
        starts.append(current_clock().now())
        await asyncio.sleep(23)

    async with a:
        await asyncio.sleep(300)
    assert 11 <= len(starts) <= 14
    assert all(b - a <= 30.1 for a, b in pairwise(starts))
    assert a.stats() == {}


@virtual
async def test_a_failing_tick_is_tried_again() -> None:
    attempts: list[int] = []
    a = App("shop", "memory://", backoff=Backoff(first=0.1))

    @a.every("1m")
    async def report(message: Message[Any]) -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise ValueError

    async with a:
        await asyncio.sleep(70)
        assert len(attempts) == 3
        assert a.stats()["shop.report"].handled == 1


@virtual
async def test_the_clock_steps_and_ticks_go_on() -> None:
    ran: list[float] = []
    a = App("shop", "memory://")

    @a.every("10s")
    async def report() -> None:
        ran.append(current_clock().now())

    loop: Any = asyncio.get_running_loop()
    async with a:
        await asyncio.sleep(25)
        loop.advance(1000)  # the loop was blocked
        await asyncio.sleep(25)
    assert 5 <= len(ran) <= 6


@virtual
async def test_ticks_survive_a_bus_that_fails_for_a_while() -> None:
    """A tick that could not be published is not the last one."""
    ran: list[float] = []
    a = App("shop", Memory(messages=1))

    @a.every("10s")
    async def report() -> None:
        ran.append(current_clock().now())

    stuck = asyncio.Event()

    @a.on("fill")
    async def hold(n: int) -> None:
        await stuck.wait()

    async with a:
        await a.publish(Topic("fill", int), 1)
        with pytest.raises(BusFull):
            await a.publish(Topic("fill", int), 2)
        await asyncio.sleep(25)
        assert ran == [], "inconclusive: the bus took ticks"
        stuck.set()
        await asyncio.sleep(30)
        assert len(ran) >= 2


async def test_plain_functions_tick_in_threads() -> None:
    a, ran = App("shop", "memory://"), list[tuple[str, bool]]()

    def setting() -> int:
        return 7

    @a.every("50ms")
    def single(setting: Annotated[int, Depends(setting)]) -> None:
        ran.append(("single", threading.current_thread() is threading.main_thread()))

    @a.every("50ms", each=True)
    def each(setting: Annotated[int, Depends(setting)]) -> None:
        ran.append(("each", threading.current_thread() is threading.main_thread()))

    async with asyncio.timeout(10), a:
        await until(lambda: {name for name, _ in ran} == {"single", "each"})
    assert not any(main for _, main in ran)
    await until(lambda: not [t for t in threading.enumerate() if t.name.startswith("tidings shop.")], within=5)
