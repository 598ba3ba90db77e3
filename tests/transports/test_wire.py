"""Attributes on the wire: what goes out comes back, and nothing a stranger writes stops a consumer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tidings.kernel.message import Message
from tidings.transports._wire import attributes, copied, counts, instant, restored, stamp

times = st.just(0.0) | st.floats(1e9, 4e9)  # Unix seconds of 2001 to 2096
texts = st.text(min_size=1, max_size=8)
sealed = st.builds(
    Message,
    topic=st.just("orders.placed"),
    body=st.binary(max_size=9),
    id=texts,
    key=st.none() | st.text(max_size=8),
    time=times.filter(bool),
    type=texts,
    source=st.text(max_size=8),
    headers=st.none() | st.just((("trace", "ü"),)),
    priority=st.integers(0, 9),
    deliver_at=st.none() | times,
    expires_at=st.none() | times,
    reply_to=st.none() | texts,
    correlation_id=st.none() | texts,
    causation_id=st.none() | texts,
    address=st.none() | st.just("_dead.shop.bill"),
)


@given(sealed)
def test_round_trip(message: Message[Any]) -> None:
    back = restored(message.destination, message.body, attributes(message), message.headers, message.content_type)
    assert back == message


@given(sealed, st.integers(0, 99), st.integers(0, 99))
def test_a_copy_is_the_message_it_was(message: Message[Any], failures: int, crashes: int) -> None:
    """At its group's private address, a copy still says where it was, and how often it failed."""
    told = copied(message, failures, crashes)
    back = restored("_group.shop.bill", message.body, told, message.headers, message.content_type)
    assert (back, counts(told)) == (message, (failures, crashes))


@given(times)
def test_time_is_exact(time: float) -> None:
    assert instant(stamp(time)) == time


@pytest.mark.parametrize("time", [-1e300, -7e10, 3e11, 1e300, float("inf"), -float("inf"), float("nan")])
def test_a_time_that_cannot_be_said_is_the_first_or_the_last(time: float) -> None:
    assert stamp(time) in ("0001-01-01T00:00:00.0000000Z", "9999-12-31T23:59:59.0000000Z")


def test_a_message_without_attributes_takes_what_the_broker_knows() -> None:
    back = restored("orders.placed", b"<plain/>", {}, None, "", "17", 1_790_000_000.5)
    wanted: Message[Any] = Message("orders.placed", b"<plain/>", "17", time=1_790_000_000.5, type="orders.placed")
    assert back == replace(wanted, content_type="")


def test_what_a_stranger_writes_is_ignored() -> None:
    strange = {"time": "tuesday", "tdgpriority": "urgent", "expirytime": "-", "tdgdeliverytime": "2026-13-40T00:00:00Z"}
    back = restored("orders.placed", b"", {**strange, "id": "a"}, time=7.0)
    assert (back.time, back.priority, back.expires_at, back.deliver_at) == (7.0, 0, None, None)
    assert counts({"tdgfailures": "many", "tdgcrashes": "²"}) == (0, 0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-26T13:50:00Z", 1795701000.0),
        ("2026-11-26T14:50:00+01:00", 1795701000.0),
        ("2026-11-26T13:50:00.250Z", 1795701000.25),
        ("2026-11-26T13:50:00", 1795701000.0),  # no zone is not RFC 3339; read as UTC
        ("", None),
        (None, None),
        ("2026-11-26T13:50:00.12345x7Z", None),
        ("0001-01-01T00:00:00+14:00", None),  # of the year 0: no stamp could say it
        ("9999-12-31T23:59:59-14:00", None),
    ],
)
def test_other_writers_times(text: str | None, seconds: float | None) -> None:
    assert instant(text) == seconds
