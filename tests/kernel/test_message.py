"""Durations, ids, headers."""

from __future__ import annotations

import os
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings import Message, Topic
from tidings.kernel.errors import InvalidOption
from tidings.kernel.message import derived_id, new_id, seconds


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        ("250ms", 0.25),
        ("5s", 5),
        ("10m", 600),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
        ("1.5s", 1.5),
        (0, 0),
        (3, 3),
        (2.5, 2.5),
        (timedelta(minutes=2), 120),
    ],
)
def test_durations(duration: Any, expected: float) -> None:
    assert seconds(duration) == pytest.approx(expected)


@pytest.mark.parametrize(
    "wrong",
    [
        *("", "5", "5 s", "s", "-5s", "5x", "5s ", "1e3s", "999999999999d"),
        *(-1, 1e10, float("nan"), float("inf"), timedelta(days=-1), True, None, [], object),
    ],
    ids=repr,
)
def test_what_is_no_duration(wrong: Any) -> None:
    with pytest.raises(InvalidOption, match=r"pause cannot be (?s:.*)mend") as refusal:
        seconds(wrong, "pause")
    assert "test_message.py" in refusal.value.where


@given(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h"]))
def test_durations_are_linear(number: int, unit: str) -> None:
    assert seconds(f"{number}{unit}") == pytest.approx(number * seconds(f"1{unit}"))


def test_ids_are_unique_also_after_a_fork() -> None:
    mine = {new_id() for _ in range(1000)}
    assert len(mine) == 1000
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, pickle.dumps([new_id() for _ in range(100)]))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = set(pickle.loads(os.read(reader, 100_000)))
    os.close(reader)
    os.close(writer)
    assert len(theirs) == 100
    assert not theirs & {*mine, *(new_id() for _ in range(1000))}
    assert len({id.partition("-")[0] for id in theirs | mine}) == 2


def test_derived_ids_are_stable_and_tell_apart() -> None:
    """Stored ids depend on it: another value would make every replayed output a new message."""
    assert derived_id("m", "shop.bill", "billing.invoiced", 0) == derived_id("m", "shop.bill", "billing.invoiced", 0)
    assert derived_id("m", "shop.bill", "billing.invoiced", 0) == "0654dfc492693abde9f3055c93fcb3e4"
    others = {
        derived_id(parent, group, destination, ordinal)
        for parent in ("m", "n", "m\x00")
        for group in ("g", "h")
        for destination in ("t", "u")
        for ordinal in (0, 1, 10)
    }
    assert len(others) == 36


def test_headers() -> None:
    sent: Message[Any] = Message("t", headers=(("a", "1"), ("b", "2")))
    assert (sent.header("b"), sent.header("c"), sent.header("c", "no")) == ("2", "", "no")
    assert Message("t").header("a") == ""


def test_drafts_are_equal_when_they_say_the_same() -> None:
    topic = Topic("billing.invoiced", dict)
    assert topic({"a": 1}, key="k") == topic({"a": 1}, key="k")
    assert topic({"a": 1}, key="k") != topic({"a": 1}, key="l")
    assert topic({"a": 1}) != Topic("billing.other", dict)({"a": 1})
    assert (topic({}).id, topic({}).time) == ("", 0.0)
