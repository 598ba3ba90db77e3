"""Rights: what a pattern covers, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.gateway import Principal, Rights
from tidings.gateway.access import Access, Client, hashed, new_token
from tidings.gateway.limits import KNOWN, Pace
from tidings.gateway.refusals import Forbidden, Limited, Unauthenticated
from tidings.gateway.rights import covers
from tidings.kernel.errors import InvalidName
from tidings.kernel.topics import matches

WORDS = ("a", "b", "_a")
TOPICS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(".".join)
PATTERNS = st.builds(
    lambda parts, last: ".".join((*parts, last)),
    st.lists(st.sampled_from((*WORDS, "*")), max_size=3),
    st.sampled_from((*WORDS, "*", ">")),
)


@given(PATTERNS, PATTERNS, TOPICS)
def test_what_is_covered_reaches_nothing_else(allowed: str, asked: str, topic: str) -> None:
    if covers(allowed, asked) and matches(asked, topic):
        assert matches(allowed, topic)


@given(PATTERNS, TOPICS)
def test_a_topic_is_covered_when_it_matches(allowed: str, topic: str) -> None:
    assert covers(allowed, topic) == matches(allowed, topic)


@pytest.mark.parametrize(
    ("allowed", "asked", "covered"),
    [
        (">", ">", True),
        (">", "_dead.>", False),
        ("_dead.>", "_dead.shop.bill", True),
        ("orders.>", "orders", False),
        ("orders.>", "orders.*.paid", True),
        ("orders.*", "orders.>", False),
        ("orders.*", "orders.*", True),
        ("*.paid", "orders.paid", True),
        ("*", ">", False),
        ("orders.paid", "orders.*", False),
    ],
)
def test_a_pattern_within_a_pattern(allowed: str, asked: str, covered: bool) -> None:
    assert covers(allowed, asked) is covered


def test_a_right_that_is_not_listed_is_none() -> None:
    who = Principal("till-7", Rights(publish=("orders.>",)))
    who.need("publish", "orders.placed")
    with pytest.raises(Forbidden, match=r"'till-7' may not publish 'stock\.taken'") as refused:
        who.need("publish", "stock.taken")
    assert "orders.>" in refused.value.why
    for action in ("subscribe", "group", "request"):
        with pytest.raises(Forbidden, match="is for nothing"):
            who.need(action, "orders.placed")
    for right in ("admin", "member"):
        with pytest.raises(Forbidden, match=right):
            who.need_all_of(right)


def test_a_right_to_what_is_no_pattern_is_refused() -> None:
    with pytest.raises(InvalidName, match="'orders/#' is no valid pattern"):
        Rights(subscribe=("orders/#",))


def test_clients_are_known_by_token_or_certificate() -> None:
    token, rights = new_token(), Rights(publish=("a.>",))
    access = Access(
        [Client(name="t", token=hashed(token), rights=rights), Client(name="c", certificate="c.example")], None
    )
    assert access.principal(token) == Principal("t", rights)
    assert access.principal(None, ("other", "c.example")).name == "c"
    for wrong in (token[:-1], "", hashed(token), "ü"):
        with pytest.raises(Unauthenticated, match="not known"):
            access.principal(wrong)
    with pytest.raises(Unauthenticated, match="without saying who"):
        access.principal(None, ("other",))
    assert not access.anonymous


def test_a_wrong_token_is_refused_even_where_anybody_may_come() -> None:
    access = Access()
    assert access.anonymous
    assert access.principal(None).rights.member
    with pytest.raises(Unauthenticated):
        access.principal("wrong")


def test_who_comes_by_a_token_that_was_replaced_has_to_come_again() -> None:
    rights, ended = Rights(subscribe=("a.>",)), list[str]()
    old, stays = (Client(name="x", token=hashed(token), rights=rights) for token in ("old", "stays"))
    by_name = Client(name="x", certificate="x.example", rights=rights)
    access = Access([old, stays, by_name], rights)
    for token in ("old", "stays"):
        access.watched[lambda token=token: ended.append(token)] = access.principal(token)  # type: ignore[misc]
    access.watched[lambda: ended.append("certificate")] = access.principal(None, ("x.example",))
    access.watched[lambda: ended.append("anyone")] = access.principal(None)
    access.admit([old, stays, by_name], rights)  # read anew, and nothing is new
    assert ended == []
    access.admit([Client(name="x", token=hashed("new"), rights=rights), stays, by_name], rights)
    assert ended == ["old"]
    assert "sha256" not in repr(access.principal("new"))
    access.admit([stays], rights)
    assert ended == ["old", "old", "certificate"]  # it was not taken off the list here


def test_a_client_without_a_token_has_none() -> None:
    access = Access([Client(name="nobody")], None)
    with pytest.raises(Unauthenticated):
        access.principal("")


def test_a_client_has_its_own_pace() -> None:
    pace = Pace(10.0)
    pace.take("a", 20)
    with pytest.raises(Limited, match="more than 10 messages a second") as refused:
        pace.take("a", 10)
    assert 0.5 < refused.value.after <= 1.0
    pace.take("b", 1_000)  # more than ever fits goes when the bucket is full, or it would never go
    with pytest.raises(Limited) as refused:
        pace.take("b", 1)
    assert refused.value.after > 90


def test_paces_are_forgotten() -> None:
    pace = Pace(1.0)
    for n in range(KNOWN + 10):
        pace.take(str(n), 1)
    assert len(pace.known) == KNOWN
