"""Idempotent Receiver: once, whoever sends twice; and what was not handled is not taken for handled."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.state.stores import STORES, url_of
from tests.transports.consuming import until

from tidings import App, Backoff, Message, Reject, Topic
from tidings.kernel.errors import InvalidOption
from tidings.middleware.dedup import Dedup

things, done = Topic("things", int), Topic("done", int)


def counts(app: App, group: str = "app.handle") -> tuple[int, int, int]:
    stats = app.stats()[group]
    return stats.handled, stats.skipped, stats.dead


@pytest.mark.parametrize("kind", STORES)
async def test_what_comes_twice_is_handled_once(kind: str, tmp_path: Path) -> None:
    app, ran, arrived = App("app", url_of(kind, tmp_path)), Counter[int](), list[int]()

    @app.on(things, middleware=[Dedup()])
    async def handle(n: int) -> Message[int]:
        ran[n] += 1
        await asyncio.sleep(0)
        return done(n)

    @app.on(done)
    async def receive(n: int) -> None:
        arrived.append(n)

    async with app:
        await app.publish_many([things(n, id=f"n{n}") for n in (*range(50), *range(50), 7)])
        await until(lambda: sum(counts(app)[:2]) == 101)
        assert counts(app) == (50, 51, 0)
        await app.publish(things, 3, id="n3")
        await until(lambda: counts(app)[1] == 52)
        await until(lambda: len(arrived) == 50)
    assert sorted(arrived) == list(range(50))
    assert set(ran) == set(range(50))


@pytest.mark.parametrize("kind", STORES)
async def test_in_a_batch_and_over_batches(kind: str, tmp_path: Path) -> None:
    app, ran = App("app", url_of(kind, tmp_path)), Counter[int]()

    @app.on(things, batch=20, within="20ms", concurrency=1, middleware=[Dedup()])
    async def handle(some: list[int]) -> None:
        ran.update(some)

    async with app:
        await app.publish_many([things(n % 50, id=f"n{n % 50}") for n in range(120)])
        await until(lambda: sum(counts(app)[:2]) == 120)
        assert counts(app) == (50, 70, 0)
    assert set(ran) == set(range(50))  # some perhaps in two runs, of which one came to nothing


async def test_what_failed_is_tried_again_and_what_is_dead_may_come_again(tmp_path: Path) -> None:
    app, ran = App("app", url_of("sqlite", tmp_path), backoff=Backoff(attempts=3, first=0.01)), Counter[int]()

    @app.on(things, middleware=[Dedup()])
    async def handle(n: int) -> None:
        ran[n] += 1
        if n == 1 and ran[n] < 3:
            raise RuntimeError("not now")
        if n == 2 and ran[n] == 1:
            raise Reject("never")

    async with app:
        await app.publish_many([things(1, id="one"), things(2, id="two")])
        await until(lambda: counts(app) == (1, 0, 1))
        await app.publish_many([things(1, id="one"), things(2, id="two")])
        await until(lambda: counts(app) == (2, 1, 1))
    assert ran == {1: 3, 2: 2}


async def test_the_key_says_what_is_the_same_and_the_window_for_how_long(tmp_path: Path) -> None:
    app, ran = App("app", url_of("sqlite", tmp_path)), list[int]()

    def of(message: Message[Any]) -> str:
        return message.header("order")

    @app.on(things, middleware=[Dedup(window="100ms", key=of)])
    async def handle(n: int) -> None:
        ran.append(n)

    @app.on(things, middleware=[Dedup(key=of)])
    async def other(n: int) -> None: ...

    async with app:
        for n, order in enumerate("aab"):
            await app.publish(things, n, headers={"order": order})
        await until(lambda: counts(app) == (2, 1, 0))
        assert ran == [0, 2]
        assert counts(app, "app.other") == (2, 1, 0), "groups do not share what they have seen"


def test_what_means_nothing_is_refused() -> None:
    for wrong in ({"window": 0}, {"window": "soon"}, {"key": "id"}):
        with pytest.raises(InvalidOption):
            Dedup(**wrong)  # type: ignore[arg-type]
