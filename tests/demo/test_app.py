"""The example's handlers, called like the functions they are; and the app on a bus in memory."""

from __future__ import annotations

import asyncio

import pytest

from tidings import Message, Reject
from tidings.demo.app import (
    Anomaly,
    Window,
    alerts,
    app,
    minutes,
    readings,
    route,
    score,
    summary,
    translate,
    view,
    window,
    windows,
)
from tidings.demo.sensors import HOST, Reading

CALM = [5.0, 6.0, 4.0, 5.0, 7.0, 5.0, 4.0, 6.0, 5.0, 5.0, 6.0, 4.0, 5.0, 5.0]


def reading(value: float = 5.0, device: str = "core-0", time: float = 60.0) -> Reading:
    return Reading(HOST, device, "load", "%", value, time)


async def test_translate_understands_a_whole_line_and_rejects_a_torn_one() -> None:
    line = Message("legacy.h.uptime", data="up 7 s, load average: 0.42, 0.31, 0.28", time=9.0)
    told = [message.data for message in await translate(line, "h", "uptime")]
    assert [(r.quantity, r.value, r.time) for r in told] == [
        ("load1", 0.42, 9.0),
        ("load5", 0.31, 9.0),
        ("load15", 0.28, 9.0),
    ]
    with pytest.raises(Reject, match="no load average"):
        await translate(Message("legacy.h.uptime", data="up 7 s, load ave"), "h", "uptime")


async def test_window_carries_what_came_before() -> None:
    sent = [await window(reading(value, "test-window"), "test-window", "load") for value in (1.0, 2.0)]
    assert sent[-1].data.values == [1.0, 2.0]
    assert sent[-1].key == "test-window.load"


async def test_minutes_publishes_what_is_over() -> None:
    assert await minutes([reading(1.0, time=0.0)]) == []
    (sent,) = await minutes([reading(2.0, time=60.0)])
    assert (sent.topic, sent.data.count) == (f"minutes.{HOST}.core-0.load", 1)


def test_score_speaks_up_once() -> None:
    found = score(Window(reading(95.0), [*CALM, 95.0]))
    assert found is not None
    assert found.score >= 16
    assert score(Window(reading(96.0), [*CALM, 95.0, 96.0])) is None
    assert score(Window(reading(5.0), [*CALM, 5.0])) is None


@pytest.mark.parametrize(
    ("device", "strength", "severity"),
    [
        ("core-0", 5.1, "notice"),
        ("core-0", 8.0, "warning"),
        ("core-0", 16.0, "critical"),
        ("memory", 5.1, "warning"),
        ("memory", 40.0, "critical"),
    ],
)
async def test_route_goes_by_content(device: str, strength: float, severity: str) -> None:
    found = Anomaly(reading(device=device), strength)
    assert await route(found) == alerts.bind(severity=severity)(found, key=found.reading.series)


async def test_on_a_bus() -> None:
    odd = Window(reading(95.0, "core-9"), [*CALM, 95.0])
    app.use("memory://")
    async with asyncio.timeout(20), app:
        bound = {"host": HOST, "device": "core-9", "quantity": "load"}
        await app.publish(windows.bind(**bound)(odd, key="core-9.load"))
        await app.publish(readings.bind(**bound)(odd.reading))
        while not (view.alerts and "core-9.load" in view.latest):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        told = await app.request(summary, None)
        assert told.sensors["core-9.load"] == 95.0
        assert told.alerts["critical"] == 1
