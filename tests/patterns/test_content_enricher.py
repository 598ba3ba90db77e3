"""Lookup: asks no more than it must, and forgets when it should; in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import Struct
from tests.kernel.rig import until, virtual

from tidings import App, Backoff, Topic
from tidings.kernel.errors import InvalidOption
from tidings.patterns import Lookup


class Shelf:
    """What is looked up in, and how often; each look takes a second."""

    def __init__(self, **known: str) -> None:
        self.known, self.looks = known, list[str]()
        self.failing = 0

    async def __call__(self, key: str) -> str | None:
        self.looks.append(key)
        await asyncio.sleep(1)
        if self.failing:
            self.failing -= 1
            raise ConnectionError(key)
        return self.known.get(key)


@virtual
async def test_however_many_ask_at_once_it_is_fetched_once() -> None:
    shelf = Shelf(a="A", b="B")
    lookup = Lookup(shelf)
    found = await asyncio.gather(*(lookup(key) for key in "aabbaa"))
    assert found == ["A", "A", "B", "B", "A", "A"]
    assert sorted(shelf.looks) == ["a", "b"]


@virtual
async def test_it_is_served_for_its_time_to_live() -> None:
    shelf = Shelf(a="A")
    lookup = Lookup(shelf, ttl="1m")
    assert await lookup("a") == "A"
    shelf.known["a"] = "new"
    await asyncio.sleep(59)
    assert await lookup("a") == "A"
    await asyncio.sleep(2)
    assert await lookup("a") == "new"
    assert shelf.looks == ["a", "a"]


@virtual
async def test_what_does_not_exist_is_remembered_too() -> None:
    shelf = Shelf()
    lookup = Lookup(shelf, ttl="1h", missing="10s")
    assert await lookup("a") is await lookup("a") is None
    assert shelf.looks == ["a"]
    shelf.known["a"] = "A"
    await asyncio.sleep(11)
    assert await lookup("a") == "A"
    never = Lookup(shelf, missing=0)
    assert await never("b") is await never("b") is None
    assert shelf.looks == ["a", "a", "b", "b"]


@virtual
async def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    shelf = Shelf(a="A")
    shelf.failing = 1
    lookup = Lookup(shelf)
    found = await asyncio.gather(lookup("a"), lookup("a"), return_exceptions=True)
    assert [repr(error) for error in found] == ["ConnectionError('a')"] * 2
    assert await lookup("a") == "A"
    assert shelf.looks == ["a", "a"]


@virtual
async def test_who_is_cancelled_takes_nobody_along() -> None:
    shelf = Shelf(a="A")
    lookup = Lookup(shelf)
    first = asyncio.ensure_future(lookup("a"))
    await asyncio.sleep(0.5)
    second = asyncio.ensure_future(lookup("a"))
    await asyncio.sleep(0.1)
    first.cancel()
    assert await second == "A"
    assert first.cancelled()
    assert shelf.looks == ["a"]


@virtual
async def test_the_least_recently_used_go_first() -> None:
    shelf = Shelf()
    lookup = Lookup(shelf, size=2)
    for key in "abac":  # a is used between b and c
        await lookup(key)
    shelf.looks.clear()
    for key in "acb":
        await lookup(key)
    assert shelf.looks == ["b"]


@virtual
async def test_what_has_changed_is_forgotten_also_while_it_comes() -> None:
    shelf = Shelf(a="A")
    lookup = Lookup(shelf)
    await lookup("a")
    shelf.known["a"] = "new"
    lookup.forget("a")
    coming = asyncio.ensure_future(lookup("a"))
    await asyncio.sleep(0.5)
    lookup.forget("a")
    shelf.known["a"] = "newest"
    assert await lookup("a") == "newest"
    assert await coming
    assert await lookup("a") == "newest"
    assert shelf.looks == ["a"] * 3
    lookup.forget("never asked for")


def test_it_outlives_an_event_loop() -> None:
    shelf = Shelf(a="A")
    lookup = Lookup(shelf)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lookup("a"), 0.001)

    asyncio.run(give_up())
    shelf.known["a"] = "new"
    assert asyncio.run(asyncio.wait_for(lookup("a"), 10)) == "new"


class Order(Struct):
    customer: str
    name: str | None = None


@virtual
async def test_in_a_handler_a_failure_of_it_is_a_failure_of_the_handler() -> None:
    orders, enriched = Topic("orders.placed", Order), Topic("orders.enriched", Order)
    app, shelf = App("shop", "memory://", backoff=Backoff(first=0.001)), Shelf(a="Ada")
    shelf.failing, lookup = 1, Lookup(shelf)
    came: list[Any] = []

    @app.on(orders, to=enriched)
    async def enrich(order: Order) -> Order:
        return Order(order.customer, await lookup(order.customer))

    @app.on(enriched)
    async def see(order: Order) -> None:
        came.append(order)

    async with app:
        await app.publish_many([orders(Order("a"))] * 50)
        await until(lambda: len(came) == 50)
    assert came == [Order("a", "Ada")] * 50
    assert len(shelf.looks) <= 4  # 16 at once fail together, and are tried together or one after the other


def test_what_means_nothing_is_refused() -> None:
    for options in ({"ttl": "soon"}, {"missing": -1}, {"size": 0}, {"size": "many"}):
        with pytest.raises(InvalidOption):
            Lookup(Shelf(), **options)
    with pytest.raises(InvalidOption, match="fetch cannot be"):
        Lookup({"a": "A"})  # type: ignore[arg-type]
