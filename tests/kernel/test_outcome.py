"""The decision tables: what becomes of a message, the arithmetic of waiting, and the breaker's life."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tidings import Backoff, Breaker, Defer, Delivery, Message, Reject, Retry, Skip
from tidings.kernel.errors import DeliveryError, HandlerCrashed, HandlerTimeout, InvalidOption, Undecodable, WrongReturn
from tidings.kernel.outcome import IN_PLACE, Dead, Fate, Kind, Wait, before, classify, decide
from tidings.kernel.transport import ACK, Release, Session
from tidings.kernel.transport import Retry as GoesBack

DAY = 86_400.0
SOON = Backoff(attempts=4, first=0.2, factor=4, jitter=0, give_up=(KeyError,))
LATE = Backoff(attempts=4, first=5, jitter=0)


def delivery(failures: int = 0, crashes: int = 0, **fields: Any) -> Delivery:
    return Delivery(Message("t", id="m", **fields), Session(), None, failures, crashes)


TABLE: list[tuple[BaseException, int, int, Backoff, Fate]] = [
    # error, failures, crashes, backoff → fate
    (ValueError("x"), 0, 0, SOON, Wait(0.2, 1)),
    (ValueError("x"), 1, 0, SOON, Wait(0.8, 2)),
    (ValueError("x"), 2, 0, SOON, GoesBack(3.2, 3)),
    (ValueError("x"), 3, 0, SOON, Dead("failed")),
    (ValueError("x"), 9, 0, SOON, Dead("failed")),
    (ValueError("x"), 0, 2, SOON, Wait(0.2, 1)),
    (ValueError("x"), 0, 3, SOON, Dead("failed")),
    (ValueError("x"), 1, 2, SOON, Dead("failed")),
    (ValueError("x"), 0, 0, LATE, GoesBack(5.0, 1)),
    (ValueError("x" * 999), 0, 0, LATE, GoesBack(5.0, 1)),
    (HandlerTimeout("slow"), 0, 0, SOON, Wait(0.2, 1)),
    (HandlerCrashed("dead"), 0, 0, SOON, Wait(0.2, 1)),
    (asyncio.CancelledError(), 0, 0, SOON, Wait(0.2, 1)),
    (Retry(), 0, 0, SOON, Wait(0.2, 1)),
    (Retry(0), 0, 0, SOON, Wait(0.0, 1)),
    (Retry(IN_PLACE), 0, 0, SOON, Wait(1.0, 1)),
    (Retry(1.001), 0, 0, SOON, GoesBack(1.001, 1)),
    (Retry("5m", "busy"), 1, 0, SOON, GoesBack(300.0, 2)),
    (Retry("5m"), 3, 0, SOON, Dead("failed")),
    (KeyError("x"), 0, 0, SOON, Dead("rejected")),
    (Reject("x"), 0, 0, SOON, Dead("rejected")),
    (Undecodable("x"), 0, 0, SOON, Dead("undecodable")),
    (WrongReturn("x"), 0, 0, SOON, Dead("wrong return type")),
    (DeliveryError("x"), 0, 0, SOON, Dead("rejected")),
    (Skip("x"), 0, 0, SOON, ACK),
    (Skip("x"), 9, 9, SOON, ACK),
    (Defer("5m"), 0, 0, SOON, Release(300.0)),
    (Defer("5m"), 9, 0, SOON, Release(300.0)),
]


@pytest.mark.parametrize(("error", "failures", "crashes", "backoff", "fate"), TABLE, ids=lambda value: f"{value!r:.40}")
def test_decisions(error: BaseException, failures: int, crashes: int, backoff: Backoff, fate: Fate) -> None:
    found = decide(error, delivery(failures, crashes), backoff, broken=False, room=True, now=0.0)
    if isinstance(found, GoesBack):
        assert found.why.startswith(type(error).__name__)
        assert len(found.why) <= 200
        found = replace(found, why="")
    assert found == fate


def test_no_room_to_wait_in_place() -> None:
    fate = decide(ValueError("x"), delivery(), SOON, broken=False, room=False, now=0.0)
    assert isinstance(fate, GoesBack)
    assert (fate.delay, fate.failures) == (0.2, 1)


@pytest.mark.parametrize("failures", [0, 3, 99])
def test_failures_behind_an_open_breaker_cost_nothing(failures: int) -> None:
    for error in (ValueError(), Retry("5m")):
        assert decide(error, delivery(failures), SOON, broken=True, room=True, now=0.0) == Release()
    others: list[tuple[Exception, Fate]] = [(Reject(), Dead("rejected")), (Skip(), ACK), (Defer(3), Release(3.0))]
    for other, fate in others:
        assert decide(other, delivery(failures), SOON, broken=True, room=True, now=0.0) == fate


def test_what_was_deferred_for_seven_days_is_dead() -> None:
    old = delivery(time=1000.0)
    for now, fate in ((1000 + 7 * DAY, Release(60.0)), (1001 + 7 * DAY, Dead("deferred for too long"))):
        assert decide(Defer("1m"), old, SOON, broken=False, room=True, now=now) == fate
    assert decide(Defer("1m"), delivery(), SOON, broken=False, room=True, now=1e9) == Release(60.0), "no time, no age"


def test_some_errors_never_count() -> None:
    kinds = {Skip(): Kind.SKIPPED, Defer(1): Kind.DEFERRED, Reject(): Kind.REJECTED, KeyError(): Kind.REJECTED}
    assert {error: classify(error, SOON) for error in kinds} == kinds
    assert classify(KeyError(), LATE) is Kind.FAILED
    assert classify(Skip(), Backoff(give_up=(Exception,))) is Kind.SKIPPED


@pytest.mark.parametrize(
    ("failures", "crashes", "expires", "fate"),
    [
        (0, 0, None, None),
        (3, 0, None, None),
        (4, 0, None, Dead("failed")),
        (0, 4, None, Dead("crashed")),
        (2, 2, None, Dead("crashed")),
        (0, 0, 100.1, None),
        (0, 0, 100.0, ACK),
        (1, 0, 99.0, Dead("expired")),
        (0, 1, 99.0, Dead("expired")),
        (4, 0, 99.0, Dead("expired")),
    ],
)
def test_what_may_start(failures: int, crashes: int, expires: float | None, fate: Fate | None) -> None:
    assert before(delivery(failures, crashes, expires_at=expires), SOON, 100.0) == fate


def test_a_message_that_kills_its_process_runs_at_most_attempts_and_one_times() -> None:
    runs, crashes = 1, 0  # its first run is not marked
    while before(delivery(0, crashes), SOON, 0.0) is None:
        runs, crashes = runs + 1, crashes + 1
    assert runs == SOON.attempts + 1


# -- backoff


def test_the_default_waits() -> None:
    backoff = Backoff(jitter=0)
    assert [backoff.delay(n) for n in range(1, 8)] == pytest.approx([0.2, 0.8, 3.2, 12.8, 51.2, 204.8, 600.0])
    assert (Backoff().attempts, Backoff().jitter) == (8, 0.25)


@given(
    st.floats(0, 100),
    st.floats(1, 1000),
    st.floats(0, 1000),
    st.floats(0, 1),
    st.integers(1, 10_000),
)
def test_waits_are_within_their_bounds(first: float, factor: float, limit: float, jitter: float, failures: int) -> None:
    backoff = Backoff(first=first, factor=factor, limit=limit, jitter=jitter)
    plain = min(first * factor ** min(failures - 1, 64), limit)
    assert plain <= backoff.delay(failures) <= plain * (1 + jitter) + 1e-9


def test_jitter_spreads() -> None:
    waits = {Backoff(first=1).delay(1) for _ in range(100)}
    assert len(waits) > 50
    assert all(1 <= wait <= 1.25 for wait in waits)


def test_durations_are_read() -> None:
    backoff = Backoff(first="250ms", limit="2m")
    assert (backoff.first, backoff.limit) == (0.25, 120.0)


MEANINGLESS: list[dict[str, Any]] = [
    {"attempts": 0},
    {"attempts": "5"},
    {"factor": 0.5},
    {"jitter": -0.1},
    {"jitter": 2},
    {"first": "soon"},
    {"limit": -1},
    {"give_up": 5},
    {"give_up": (ValueError, "KeyError")},
]


@pytest.mark.parametrize("wrong", MEANINGLESS, ids=str)
def test_meaningless_backoffs(wrong: dict[str, Any]) -> None:
    """Found where they are written, not when the first message fails."""
    with pytest.raises(InvalidOption):
        Backoff(**wrong)


# -- breaker


def history(breaker: Breaker, *records: tuple[float, int, int]) -> list[bool]:
    """Whether it is open after each (time, succeeded, failed)."""
    states = []
    for now, succeeded, failed in records:
        breaker.record(succeeded, failed, now)
        states.append(breaker.open)
    return states


@pytest.mark.parametrize(
    ("records", "states"),
    [
        ([(0, 0, 19), (1, 0, 1)], [False, True]),  # 20 of 20
        ([(0, 20, 0), (1, 0, 19), (2, 0, 1)], [False, False, True]),  # half of 40
        ([(0, 21, 0), (1, 0, 20)], [False, False]),  # less than half
        ([(0, 0, 19), (61, 0, 1)], [False, False]),  # out of the window
        ([(0, 0, 10), (30, 0, 9), (59, 0, 1)], [False, False, True]),
        ([(0, 0, 10), (30, 0, 9), (71, 0, 1)], [False, False, False]),
        ([(0, 10_000, 0), (70, 0, 20)], [False, True]),  # old successes do not hide it
        ([(0, 0, 15), (1, 30, 0), (2, 0, 14)], [False, False, False]),
        ([(0, 0, 15), (1, 5, 0)], [False, False]),  # a success never opens it
    ],
)
def test_it_opens_at_half_of_twenty(records: list[tuple[float, int, int]], states: list[bool]) -> None:
    assert history(Breaker(), *records) == states


def test_its_pauses_double_up_to_their_limit() -> None:
    breaker, now, waits = Breaker(pause=1, limit=10), 0.0, []
    breaker.record(0, 20, now)
    for _ in range(6):
        waits.append(breaker.wait(now))
        now += waits[-1]
        assert breaker.wait(now) == 0.0
        breaker.record(0, 1, now)
    assert waits == [1, 2, 4, 8, 10, 10]


def test_it_closes_with_a_probe_and_forgets() -> None:
    breaker = Breaker(pause=5)
    assert history(breaker, (0, 0, 20), (3, 0, 7), (5, 1, 0)) == [True, True, False]
    assert breaker.wait(6) == 0.0
    assert history(breaker, (6, 0, 19), (7, 0, 1)) == [False, True]
    assert breaker.wait(7) == 5, "the pause begins anew"


def test_what_ended_during_the_pause_is_no_probe() -> None:
    breaker = Breaker(pause=5)
    assert history(breaker, (0, 0, 20), (1, 3, 0), (4.9, 1, 0)) == [True, True, True]
    assert breaker.wait(4) == 1


def test_its_durations_are_read() -> None:
    breaker = Breaker(window="1m", pause="250ms", limit="1h")  # type: ignore[arg-type]
    assert (breaker.window, breaker.pause, breaker.limit) == (60.0, 0.25, 3600.0)


@pytest.mark.parametrize(
    "wrong", [{"ratio": 0}, {"ratio": 2}, {"ratio": "x"}, {"least": 0}, {"pause": "soon"}], ids=str
)
def test_meaningless_breakers(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        Breaker(**wrong)


def test_apps_do_not_share_its_state() -> None:
    first, second = Breaker(), Breaker()
    first.record(0, 20, 0.0)
    assert first.open
    assert not second.open
    assert second.buckets == []


def test_waits_never_shrink() -> None:
    waits = [Backoff(jitter=0).delay(n) for n in range(1, 100)]
    assert all(a <= b for a, b in pairwise(waits))
