"""Samplers: what is handled, and that the rest is settled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.kernel.rig import virtual

from tidings import App, Backoff, Topic
from tidings.kernel.errors import InvalidOption
from tidings.patterns import Sampler, sample_every, sample_interval, sample_keys
from tidings.patterns.sampler import KEYS
from tidings.testing import running

numbers = Topic("numbers", int)


def watch(app: App, sampler: Sampler, name: str = "watch") -> list[int]:
    came: list[int] = []

    @app.on(numbers, group=f"shop.{name}", middleware=[sampler])
    async def handle(n: int) -> None:
        came.append(n)

    return came


@virtual
async def test_one_in_n() -> None:
    app, sampler = App("shop", "memory://"), sample_every(10)
    came = watch(app, sampler)
    async with running(app) as captured:
        await app.publish_many([numbers(n) for n in range(95)])
        await captured.idle()
        assert app.stats()["shop.watch"].handled == 95
    assert came == list(range(0, 95, 10))
    assert sampler.left_out == 85


@virtual
async def test_a_share_of_keys_and_the_same_everywhere() -> None:
    app = App("shop", "memory://")
    few, more, all_, none = (
        watch(app, sample_keys(share), name) for share, name in ((0.1, "a"), (0.3, "b"), (1, "c"), (0, "d"))
    )
    async with running(app) as captured:
        await app.publish_many([numbers(n % 500, key=f"k{n % 500}") for n in range(1500)])
        await captured.idle()
    assert len(few) == 3 * len(set(few))
    assert 20 < len(set(few)) < 85
    assert 105 < len(set(more)) < 200
    assert set(few) < set(more)
    assert (len(all_), none) == (1500, [])


@virtual
async def test_the_first_of_a_key_in_an_interval() -> None:
    app = App("shop", "memory://")
    came = watch(app, sample_interval("9.5s"))
    async with running(app) as captured:
        for n in range(25):
            await app.publish_many([numbers(n, key="a"), numbers(100 + n, key="b"), numbers(200 + n)])
            await asyncio.sleep(1)
        await captured.idle()
    assert sorted(came) == sorted(base + n for base in (0, 100, 200) for n in (0, 10, 20))


@virtual
async def test_few_keys_are_remembered() -> None:
    app = App("shop", "memory://")
    came = watch(app, sample_interval("1h"))
    async with running(app) as captured:
        await app.publish_many([numbers(n, key=str(n)) for n in range(KEYS + 1)])
        await app.publish_many([numbers(-1, key=str(KEYS)), numbers(-2, key="0")])
        await captured.idle()
    assert came == [*range(KEYS + 1), -2]


@virtual
async def test_a_failed_one_is_tried_again() -> None:
    app = App("shop", "memory://", backoff=Backoff(attempts=3, first=0.1))
    tries: list[int] = []

    @app.on(numbers, middleware=[sample_every(2)])
    async def fail(n: int) -> None:
        tries.append(n)
        raise OSError

    async with running(app) as captured:
        await app.publish_many([numbers(n) for n in range(4)])
        await captured.idle()
        assert len(await captured.dead()) == 2
    assert sorted(tries) == [0, 0, 0, 2, 2, 2]


@virtual
async def test_batches() -> None:
    app = App("shop", "memory://")
    came: list[list[int]] = []

    @app.on(numbers, batch=10, middleware=[sample_every(3)])
    async def handle(ns: list[int]) -> None:
        came.append(ns)

    async with running(app) as captured:
        await app.publish_many([numbers(n) for n in range(20)])
        await captured.idle()
    assert [n for ns in came for n in ns] == list(range(0, 20, 3))


def test_what_cannot_be_is_refused() -> None:
    wrong: list[Any] = [0, 1.5, True]
    for n in wrong:
        with pytest.raises(InvalidOption, match="n cannot be"):
            sample_every(n)
    for share in (-0.1, 1.01):
        with pytest.raises(InvalidOption, match="share cannot be"):
            sample_keys(share)
    with pytest.raises(InvalidOption, match="interval cannot be"):
        sample_interval("often")
