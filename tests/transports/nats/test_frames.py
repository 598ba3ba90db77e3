"""What a message, a group and a stream's subjects are, without a server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.kernel.topics import matches
from tidings.transports.nats.frames import (
    Bounds,
    Frame,
    durable,
    forgotten,
    head,
    opened,
    parsed,
    place,
    private,
    superset,
    widened,
)

TOKENS = st.sampled_from(["a", "b", "c"])
TOPICS = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.builds(
    lambda parts, last: ".".join([*parts, *last]),
    st.lists(st.one_of(TOKENS, st.just("*")), min_size=1, max_size=3),
    st.sampled_from([[], [">"]]),
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def by_the_client(block: bytes) -> dict[str, str]:
    from nats.aio.client import Client

    assert block.startswith(b"NATS/1.0\r\n")
    assert block.endswith(b"\r\n\r\n")
    return Client._parse_header_lines(block[len(b"NATS/1.0\r\n") :])


@given(st.dictionaries(TEXT.filter(bool), TEXT, min_size=1, max_size=4), TEXT.filter(bool))
def test_any_headers_and_attributes_come_as_they_were_sent(headers: dict[str, str], text: str) -> None:
    block = head(
        {"id": text, "tdgtopic": "a.b"}, "text/plain; charset=utf-8", tuple(headers.items()), {"Nats-Msg-Id": "1"}
    )
    assert parsed(block) == by_the_client(block)
    message, told = opened("a.b", b"", parsed(block), "7", 0.0)
    assert dict(message.headers or ()) == headers
    assert (message.id, message.content_type) == (text, "text/plain; charset=utf-8")
    assert told["tdgtopic"] == "a.b"


@pytest.mark.parametrize("text", ["7\r\nNats-Rollup: all", "7\r\nce-tdgtopic: bank", "7\nx: y", "7\r\n\r\n"])
def test_a_value_that_looks_like_one_more_header_is_none(text: str) -> None:
    """All else of the block is plain, and so is each line of the value: only their number tells."""
    block = head({"id": text}, "application/json", None, {"Nats-Msg-Id": "1"})
    assert sorted(by_the_client(block)) == ["Nats-Msg-Id", "ce-datacontenttype", "ce-id"]
    message, told = opened("a.b", b"", parsed(block), "7", 0.0)
    assert (message.id, message.topic, "tdgtopic" in told) == (text, "a.b", False)


@pytest.mark.parametrize(
    "lines", [b"a:b", b"a:\tb ", b" a : b: c", b"nothing", b"a: \xff", b"a: b\r\nA: c\r\na: d", b"", b"a:"]
)
def test_a_stranger_s_headers_are_read_as_the_client_reads_them(lines: bytes) -> None:
    block = b"NATS/1.0\r\n" + lines + b"\r\n\r\n"
    assert parsed(block) == by_the_client(block)


def test_what_needs_no_escape_is_not_escaped() -> None:
    block = head({"id": "m1"}, "application/json", (("trace-id", "a b ☃"),), {})
    assert block == (
        b"NATS/1.0\r\nce-id: m1\r\nce-datacontenttype: application/json\r\n" + "trace-id: a b ☃\r\n\r\n".encode()
    )
    assert b"Nats-Schedule: @at 2026-01-01T00:00:00Z\r\n" in head(
        {}, "", None, {"Nats-Schedule": "@at 2026-01-01T00:00:00Z"}
    )


def test_frames() -> None:
    assert Frame("a", b"", b"xy").to("") == b"PUB a  2\r\nxy\r\n"
    assert Frame("a", b"NATS/1.0\r\n\r\n", b"xy").to("r") == b"HPUB a r 12 14\r\nNATS/1.0\r\n\r\nxy\r\n"


@given(PATTERNS, PATTERNS, TOPICS)
def test_a_superset_takes_every_topic_of_what_is_in_it(wide: str, narrow: str, topic: str) -> None:
    if superset(wide, narrow) and matches(narrow, topic):
        assert matches(wide, topic)
    assert superset(wide, topic) == matches(wide, topic)


@given(st.lists(PATTERNS, min_size=1, max_size=5), TOPICS)
def test_widened_subjects_take_all_and_none_is_in_another(patterns: list[str], topic: str) -> None:
    found = widened(patterns, ())
    assert any(matches(p, topic) for p in patterns) == any(matches(p, topic) for p in found)
    assert not any(a != b and superset(a, b) for a in found for b in found)


def test_names_and_filters() -> None:
    assert (durable("shop.bill"), durable("shop.bill", 3)) == ("shop~bill", "shop~bill@3")
    assert private(["shop.bill", "old"], "x.") == ["x._group.shop.bill", "x._group.old"]


def test_reply_subjects_of_both_kinds() -> None:
    assert place("$JS.ACK.tidings.shop~bill.1.42.7.1795701616613475771.0") == ("shop~bill", 42, 7)
    assert place("$JS.ACK._.hash.tidings.shop~bill.1.42.7.1795701616613475771.0.rnd") == ("shop~bill", 42, 7)


@pytest.mark.parametrize(
    ("stream", "consumer", "delivered_since", "anew", "recent", "lost"),
    [
        (42, 7, False, True, True, False),  # it is as it was told
        (41, 6, False, True, True, True),  # it has not delivered that, as far as it knows
        (60, 6, False, True, True, True),  # it was a redelivery, and that is forgotten
        (60, 6, True, False, True, False),  # the same server as ever
        (60, 9, True, True, True, True),  # to whom, nobody can tell
        (60, 9, True, True, False, False),  # long ago: it had written that down
    ],
)
def test_what_may_be_forgotten(
    stream: int, consumer: int, delivered_since: bool, anew: bool, recent: bool, lost: bool
) -> None:
    told: dict[str, Any] = {"stream_seq": stream, "consumer_seq": consumer}
    told |= {"last_active": "2026-11-26T20:45:24Z"} if delivered_since else {}
    token = "$JS.ACK.tidings.shop~bill.1.42.7.1795701616613475771.0"
    assert forgotten(token, {"shop~bill": told}, anew, recent) is lost
    assert not forgotten(token, {"shop~other": told}, anew, recent)


def test_bounds_of_generations() -> None:
    old = Bounds("orders.*", 10)
    assert old.admits("orders.a", 10)
    assert not old.admits("orders.a", 11)
    everything = Bounds(">")
    assert not everything.admits("_dead.g", 1)
    assert not everything.admits("_group.g", 1), "its private address has a consumer of its own"
    assert Bounds("_dead.>").admits("_dead.g", 1)
    assert Bounds("_group.>").admits("_group.g", 1)
