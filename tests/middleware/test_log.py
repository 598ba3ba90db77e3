"""Logs: what has a line and what has none, and what a line says."""

from __future__ import annotations

import asyncio
import json
import logging
from io import StringIO
from pathlib import Path

import pytest

from tidings import App, Backoff, Defer, Partial, Reject, Skip, Topic
from tidings.kernel.errors import InvalidOption
from tidings.middleware import instrument
from tidings.middleware.log import JSONFormatter, Log

from .observed import each_bus, settled, url

billed = Topic("orders.billed", int)


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "tidings.handled"]


@each_bus
async def test_no_line_for_what_goes_well(scheme: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tidings.handled")
    app = App("shop", url(scheme, tmp_path))

    @app.on(billed)
    async def ship(n: int) -> None: ...

    @app.on(billed, batch=10)
    async def tally(ns: list[int]) -> None: ...

    instrument(app, Log(slow="1h"))
    async with app:
        await app.publish_many([billed(n) for n in range(100)])
        await settled(app, "shop.ship", handled=100)
        await settled(app, "shop.tally", handled=100)
    assert lines(caplog) == []


@pytest.mark.parametrize(
    ("error", "outcome", "level"),
    [
        (ValueError("no"), "retry", logging.WARNING),
        (Reject("no"), "dead", logging.ERROR),
        (Skip("no"), "skipped", logging.INFO),
        (Defer(0.001, "no"), "deferred", logging.INFO),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_line_for_each_failure(
    error: Exception, outcome: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tidings.handled")
    app, runs = App("shop", "memory://", backoff=Backoff(first=0.001)), 0

    @app.on(billed)
    async def ship(n: int) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise error

    instrument(app, Log(slow="1h"))
    async with app:
        await app.publish(billed, 1, id="order-1")
        ends = {"dead": 1} if outcome == "dead" else {"skipped": 1} if outcome == "skipped" else {"handled": 1}
        await settled(app, "shop.ship", **ends)
    (line,) = lines(caplog)
    said = vars(line)
    assert (line.levelno, said["outcome"], said["group"], said["topic"]) == (level, outcome, "shop.ship", billed.name)
    assert (said["message_id"], said["attempt"], said["error"]) == ("order-1", 1, type(error).__name__)
    assert said["seconds"] >= 0
    assert (line.exc_info is not None) == (level > logging.INFO)
    assert line.getMessage() == f"shop.ship: {outcome}, id order-1: {type(error).__name__}: no"


async def test_a_line_for_what_is_slow(caplog: pytest.LogCaptureFixture) -> None:
    app = App("shop", "memory://")

    @app.on(billed)
    async def ship(n: int) -> None:
        await asyncio.sleep(0.02 if n else 0)

    instrument(app, Log(slow="20ms"))
    async with app:
        await app.publish(billed, 1, id="slow")
        await settled(app, "shop.ship", handled=1)
    (line,) = lines(caplog)
    assert (line.levelno, vars(line)["outcome"], vars(line)["message_id"]) == (logging.WARNING, "handled", "slow")
    assert vars(line)["seconds"] >= 0.02


async def test_a_sample_of_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tidings.handled")
    app = App("shop", "memory://")

    @app.on(billed)
    async def ship(n: int) -> None: ...

    @app.on(billed, batch=10)
    async def tally(ns: list[int]) -> None: ...

    instrument(app, Log(sample=0.5, slow="1h"))
    async with app:
        await app.publish_many([billed(n) for n in range(400)])
        await settled(app, "shop.ship", handled=400)
        await settled(app, "shop.tally", handled=400)
    for group in ("shop.ship", "shop.tally"):
        assert 100 < sum(vars(line)["group"] == group for line in lines(caplog)) < 300
    assert {line.levelno for line in lines(caplog)} == {logging.INFO}


async def test_in_a_batch_only_what_failed(caplog: pytest.LogCaptureFixture) -> None:
    app = App("shop", "memory://", backoff=Backoff(attempts=1))

    @app.on(billed, batch=3, within="10s")
    async def tally(ns: list[int]) -> None:
        raise Partial({1: ValueError("no")})

    instrument(app, Log(slow="1h"))
    async with app:
        await app.publish_many([billed(n, id=f"order-{n}") for n in range(3)])
        await settled(app, "shop.tally", dead=1)
    assert [vars(line)["message_id"] for line in lines(caplog)] == ["order-1"]


async def test_a_batch_that_fails_as_a_whole_has_no_line_yet(caplog: pytest.LogCaptureFixture) -> None:
    app = App("shop", "memory://")

    @app.on(billed, batch=2, within="10s")
    async def tally(ns: list[int]) -> None:
        if len(ns) > 1 or ns == [1]:
            raise Reject("no")

    instrument(app, Log(slow="1h"))
    async with app:
        await app.publish_many([billed(n, id=f"order-{n}") for n in (1, 2)])
        await settled(app, "shop.tally", dead=1, handled=1)
    assert [(vars(line)["message_id"], vars(line)["outcome"]) for line in lines(caplog)] == [("order-1", "dead")]


async def test_lines_of_json() -> None:
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())
    logger = logging.getLogger("tidings.handled")
    logger.addHandler(handler)
    app = App("shop", "memory://")

    @app.on(billed)
    async def ship(n: int) -> None:
        raise Reject("no “such” thing\nat all")

    instrument(app, Log())
    try:
        async with app:
            await app.publish(billed, 1, id="order-1")
            await settled(app, "shop.ship", dead=1)
    finally:
        logger.removeHandler(handler)
    (line,) = stream.getvalue().splitlines()
    said = json.loads(line)
    assert said.pop("time").endswith("+00:00")
    frames = said.pop("traceback").splitlines()
    assert 'File "' + __file__ in frames[1], "the user's frames come first"
    assert said.pop("seconds") >= 0
    assert said == {
        "level": "ERROR",
        "logger": "tidings.handled",
        "message": "shop.ship: dead, id order-1: Reject: no “such” thing\nat all",
        "group": "shop.ship",
        "topic": "orders.billed",
        "message_id": "order-1",
        "attempt": 1,
        "outcome": "dead",
        "error": "Reject",
        "detail": "no “such” thing\nat all",
    }


def test_json_of_anything() -> None:
    record = logging.makeLogRecord({"msg": "%s", "args": (Path("/a"),), "levelname": "INFO", "what": Path("/b")})
    assert json.loads(JSONFormatter().format(record))["what"] == "/b"


def test_options_that_mean_nothing() -> None:
    with pytest.raises(InvalidOption, match="sample cannot be 2"):
        Log(sample=2)
    with pytest.raises(InvalidOption, match="slow cannot be 'soon'"):
        Log(slow="soon")
