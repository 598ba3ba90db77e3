"""Retry budgets: how many retries there are when everything fails, and when little does."""

from __future__ import annotations

from typing import Any

import pytest
from tests.kernel.rig import virtual

from tidings import App, Backoff, Partial, Reject, Topic
from tidings.kernel.errors import InvalidOption
from tidings.patterns import RetryBudget
from tidings.testing import running

numbers = Topic("numbers", int)
EIGHT = Backoff(attempts=8, first=0.1, jitter=0)


def new_app() -> App:
    return App("shop", "memory://", backoff=EIGHT, breaker=None)


@virtual
async def test_when_all_fails_retries_are_a_share() -> None:
    app, budget = new_app(), RetryBudget(0.1, reserve=10)
    tries: list[int] = []

    @app.on(numbers, middleware=[budget])
    async def fail(n: int) -> None:
        tries.append(n)
        raise OSError("down")

    async with running(app) as captured:
        await app.publish_many([numbers(n) for n in range(500)])
        await captured.idle(timeout=7200)
        letters = await captured.dead()
    retries = len(tries) - 500
    assert 50 <= retries <= 60
    assert retries == budget.spent
    assert (len(letters), budget.refused) == (500, 500)
    refused = [letter for letter in letters if "budget is used up: OSError: down" in letter.header("tdgdetail")]
    assert len(refused) == 500
    assert "in fail" in refused[0].header("tdgtraceback")


@virtual
async def test_when_little_fails_it_is_as_if_it_were_not_there() -> None:
    app, budget = new_app(), RetryBudget(0.2)
    failed: set[int] = set()

    @app.on(numbers, middleware=[budget])
    async def flaky(n: int) -> None:
        if n % 10 == 0 and n not in failed:
            failed.add(n)
            raise OSError
        if n % 10 == 1:
            raise Reject("never")

    async with running(app) as captured:
        await app.publish_many([numbers(n) for n in range(500)])
        await captured.idle()
        letters = await captured.dead()
    assert (budget.spent, budget.refused, len(failed)) == (50, 0, 50)
    assert len(letters) == 50
    assert {letter.header("tdgdetail") for letter in letters} == {"never"}


@virtual
async def test_beyond_it_later_instead_of_never() -> None:
    app, budget = new_app(), RetryBudget(0, reserve=1, delay="1h")
    tries: list[int] = []

    @app.on(numbers, middleware=[budget])
    async def fail(n: int) -> None:
        tries.append(n)
        if len(tries) < 4:
            raise OSError

    async with running(app) as captured:
        await app.publish_many([numbers(1), numbers(2)])
        await captured.idle(timeout=7200)
        assert await captured.dead() == []
    assert (budget.spent, budget.refused, len(tries)) == (1, 2, 5)


@virtual
async def test_batches() -> None:
    app, budget = new_app(), RetryBudget(0, reserve=2)
    tries: list[int] = []

    @app.on(numbers, batch=10, middleware=[budget])
    async def fail(ns: list[int]) -> None:
        tries.extend(ns)
        raise Partial({index: OSError() for index, n in enumerate(ns) if n % 2})

    async with running(app) as captured:
        await app.publish_many([numbers(n) for n in range(10)])
        await captured.idle(timeout=7200)
        assert len(await captured.dead()) == 5
    assert len(tries) == 12


def test_what_cannot_be_is_refused() -> None:
    wrong: list[Any] = [0, 1.5, True]
    for share in (-0.1, 1.1):
        with pytest.raises(InvalidOption, match="share cannot be"):
            RetryBudget(share)
    for reserve in wrong:
        with pytest.raises(InvalidOption, match="reserve cannot be"):
            RetryBudget(reserve=reserve)
    with pytest.raises(InvalidOption, match="delay cannot be"):
        RetryBudget(delay="soon")
