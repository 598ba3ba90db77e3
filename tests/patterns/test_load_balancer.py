"""Load balancers: weights, keys that stay, and how few move."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tests.kernel.rig import virtual

from tidings import App, Topic
from tidings.kernel.errors import InvalidOption
from tidings.patterns import load_balancer
from tidings.patterns.load_balancer import choose
from tidings.testing import running

numbers = Topic("numbers", int)
one, two, three = (Topic(f"shards.{name}", int) for name in ("one", "two", "three"))
KEYS = [f"key-{n}" for n in range(10_000)]


@virtual
async def test_by_weight_and_a_key_always_to_the_same() -> None:
    app = App("shop", "memory://")
    load_balancer(app, numbers, {one: 3, two: 1, three: 0})
    async with running(app) as captured:
        await app.publish_many([numbers(n % 400, key=f"k{n % 400}") for n in range(1200)])
        await captured.idle()
        first, second = await captured.payloads(one), await captured.payloads(two)
        assert await captured.payloads(three) == []
        assert list(app.stats()) == ["shop.load_balancer_numbers"]
    assert Counter(first) == dict.fromkeys(set(first), 3)
    assert Counter(second) == dict.fromkeys(set(second), 3)
    assert len(set(first)) + len(set(second)) == 400
    assert 0.68 < len(first) / 1200 < 0.82


@virtual
async def test_without_a_key_they_are_spread() -> None:
    app = App("shop", "memory://")
    load_balancer(app, numbers, {one: 1, two: 1}, group="shop.spread")
    async with running(app) as captured:
        await app.publish_many([numbers(n) for n in range(1000)])
        await captured.idle()
        assert 400 < len(await captured.payloads(one)) < 600
        assert list(app.stats()) == ["shop.spread"]


def test_only_those_move_that_must() -> None:
    before = {key: choose(key, {one: 1.0, two: 1.0}) for key in KEYS}
    after = {key: choose(key, {one: 1.0, two: 1.0, three: 1.0}) for key in KEYS}
    moved = [key for key in KEYS if before[key] is not after[key]]
    assert {after[key] for key in moved} == {three}
    assert abs(len(moved) / len(KEYS) - 1 / 3) < 0.03
    heavier = {key: choose(key, {one: 1.0, two: 3.0}) for key in KEYS}
    moved = [key for key in KEYS if before[key] is not heavier[key]]
    assert {heavier[key] for key in moved} == {two}
    assert abs(len(moved) / len(KEYS) - 1 / 4) < 0.03


def test_the_choice_is_the_same_in_every_process_and_version() -> None:
    chosen = [choose(key, {one: 1.0, two: 2.0, three: 3.0}).name[7:] for key in KEYS[:8]]
    assert chosen == ["two", "one", "three", "three", "three", "one", "one", "three"]


def test_what_cannot_be_is_refused() -> None:
    app = App("shop", "memory://")
    wrong: list[Any] = [-1, "1", True, float("inf"), float("nan")]
    for weight in wrong:
        with pytest.raises(InvalidOption, match="a weight cannot be"):
            load_balancer(app, numbers, {one: weight})
    for to in ({}, {one: 0}):
        with pytest.raises(InvalidOption, match="no topic has a weight"):
            load_balancer(app, numbers, to)
    with pytest.raises(InvalidOption, match="a key of to cannot be"):
        load_balancer(app, numbers, {Topic("shards.{name}", int): 1})
