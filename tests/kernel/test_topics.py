"""Names: what is a topic, what is a pattern, and who listens."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.kernel.errors import InvalidName
from tidings.kernel.topics import (
    captures,
    check_pattern,
    check_topic,
    is_pattern,
    matches,
    refuse_reserved,
    token,
    untoken,
)
from tidings.transports._matcher import Matcher

TOKENS = st.sampled_from(["a", "b", "c", "_x", "_dead"])
NAMES = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.builds(
    lambda parts, end: ".".join([*parts, *end]),
    st.lists(st.one_of(TOKENS, st.just("*")), min_size=1, max_size=3),
    st.sampled_from([[], [">"], ["*"]]),
) | st.just(">")


@pytest.mark.parametrize("name", ["a", "orders.placed", "A-b_c.0.%2E", "_dead.shop.bill", "x" * 300])
def test_valid_topics(name: str) -> None:
    assert check_topic(name) == name


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("", "give it a name"),
        (".", "give it a name"),
        ("a..b", "a.b"),
        (".a", "'a'"),
        ("a.", "'a'"),
        ("a b", "a%20b"),
        ("a/b", "a%2Fb"),
        ("sensors.küche", "sensors.k%C3%BCche"),
        ("a\n", "a%0A"),
        (None, ""),
        (7, ""),
    ],
)
def test_invalid_topics(name: str, mend: str) -> None:
    with pytest.raises(InvalidName) as refusal:
        check_topic(name)
    assert mend in refusal.value.mend
    assert "test_topics.py" in refusal.value.where


@pytest.mark.parametrize("name", ["a.*", "*", ">", "a.>", "a.{b}", "{a}.b"])
def test_a_pattern_is_no_topic(name: str) -> None:
    with pytest.raises(InvalidName, match="is a pattern"):
        check_topic(name)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("a.b", "a.b"),
        ("a.*", "a.*"),
        ("*.b", "*.b"),
        (">", ">"),
        ("a.>", "a.>"),
        ("a.*.>", "a.*.>"),
        ("a.{device}.t", "a.*.t"),
        ("{x}.>", "*.>"),
    ],
)
def test_valid_patterns(name: str, pattern: str) -> None:
    assert check_pattern(name) == pattern
    assert is_pattern(pattern) == (pattern != "a.b")


@pytest.mark.parametrize(
    "name", ["", "a.>.b", ">.a", "a*", "a.b>", "a.*b", "a.{b", "a.{}", "a.{1}", "a{b}", "a..*", "a b", None, "a.**"]
)
def test_invalid_patterns(name: str) -> None:
    with pytest.raises(InvalidName):
        check_pattern(name)


@pytest.mark.parametrize("name", ["a/+/b", "a.#", "sensors.+"])
def test_mqtt_wildcards_are_explained(name: str) -> None:
    with pytest.raises(InvalidName, match=r"MQTT's '\+' and '#' are '\*' and '>' here"):
        check_pattern(name)


def test_reserved() -> None:
    assert refuse_reserved("orders._x") == "orders._x"
    with pytest.raises(InvalidName, match="reserved") as refusal:
        refuse_reserved("_group.x")
    assert "'group.x'" in refusal.value.mend


def test_captures() -> None:
    assert captures("sensors.{device}.{kind}") == {"device": 1, "kind": 2}
    assert captures("sensors.*.a") == {}
    with pytest.raises(InvalidName, match="twice"):
        captures("{a}.{a}")


@given(st.text(min_size=1))
def test_tokens_are_reversible(text: str) -> None:
    escaped = token(text)
    assert re.fullmatch(r"[A-Za-z0-9_%-]+", escaped)
    assert check_topic(escaped) == escaped
    assert untoken(escaped) == text


@given(st.text(min_size=1), st.text(min_size=1))
def test_tokens_do_not_collide(one: str, other: str) -> None:
    assert (token(one) == token(other)) == (one == other)


@pytest.mark.parametrize("text", ["", "\ud800"], ids=ascii)
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(InvalidName):
        token(text)


MATCHES = [
    ("a.b", "a.b", True),
    ("a.b", "a.c", False),
    ("a.b", "a", False),
    ("a.*", "a.b", True),
    ("a.*", "a", False),
    ("a.*", "a.b.c", False),
    ("*.b", "a.b", True),
    ("a.>", "a.b", True),
    ("a.>", "a.b.c", True),
    ("a.>", "a", False),
    (">", "a", True),
    (">", "a.b.c", True),
    ("*.>", "a.b", True),
    ("*.>", "a", False),
    (">", "_dead.x", False),
    ("*.x", "_dead.x", False),
    ("*.>", "_dead.x", False),
    ("_dead.>", "_dead.x.y", True),
    ("_dead.*", "_dead.x", True),
    ("a.>", "a._x", True),
    ("a.*", "a._x", True),
]


@pytest.mark.parametrize(("pattern", "topic", "expected"), MATCHES)
def test_matches(pattern: str, topic: str, expected: bool) -> None:
    assert matches(pattern, topic) == expected


def spelled(pattern: str, topic: str) -> bool:
    """The same by another way: a regular expression."""
    if pattern[0] in "*>" and topic.startswith("_"):
        return False
    parts = [{"*": r"[^.]+", ">": r".+"}.get(part, re.escape(part)) for part in pattern.split(".")]
    return re.fullmatch(r"\.".join(parts), topic) is not None


@given(st.lists(PATTERNS, max_size=8), st.lists(NAMES, min_size=1, max_size=8), st.data())
def test_the_matcher_agrees(patterns: list[str], topics: list[str], data: st.DataObject) -> None:
    matcher: Matcher[int] = Matcher()
    for index, pattern in enumerate(patterns):
        matcher.add(pattern, index)
    for topic in topics:
        expected = [index for index, pattern in enumerate(patterns) if spelled(pattern, topic)]
        assert [index for index, pattern in enumerate(patterns) if matches(pattern, topic)] == expected
        assert sorted(matcher.match(topic)) == expected
    if patterns:
        gone = data.draw(st.integers(0, len(patterns) - 1))
        matcher.remove(patterns[gone], gone)
        for topic in topics:
            assert gone not in matcher.match(topic)


def test_the_matchers_cache_is_bounded_and_right() -> None:
    matcher: Matcher[str] = Matcher()
    matcher.add("a.>", "first")
    for n in range(70_000):
        assert matcher.match(f"a.{n}") == ("first",)
    assert len(matcher._known) <= 65_536
    matcher.add("a.7", "second")
    assert sorted(matcher.match("a.7")) == ["first", "second"]


@pytest.mark.parametrize("topic", ["", "a..b", ".", "a.", "*", "a.>", "a.*"])
def test_the_matcher_takes_any_text(topic: str) -> None:
    """Foreign topics are not checked: what is no topic of ours matches nothing literal, and breaks nothing."""
    matcher: Matcher[str] = Matcher()
    for pattern in ("a", "a.b", "a.*.b", "a.>"):
        matcher.add(pattern, pattern)
    assert isinstance(matcher.match(topic), tuple)
