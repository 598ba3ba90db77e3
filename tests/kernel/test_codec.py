"""Bytes to payloads and back: every kind of type, every content type, the empty body; and what is refused."""

from __future__ import annotations

import dataclasses
import enum
import math
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings import Message, Topic
from tidings.kernel.codec import decoder, encode, seal
from tidings.kernel.errors import InvalidHandler, InvalidOption, PayloadRefused, Undecodable
from tidings.kernel.message import BINARY, JSON, TEXT


class Order(msgspec.Struct):
    id: str
    total: float = 0.0
    note: Any = None


class Tagged(msgspec.Struct, tag=True):
    n: int


class Other(msgspec.Struct, tag=True):
    n: int


@dataclasses.dataclass
class Reading:
    celsius: float


class Point(TypedDict):
    x: int


class Model(pydantic.BaseModel):
    n: int = 0
    x: float = 0.0


class Renamed(pydantic.BaseModel):
    by: int = pydantic.Field(alias="BY")


class Constants(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(ser_json_inf_nan="constants")
    x: float


@pydantic.dataclasses.dataclass
class Validated:
    x: float


class State(enum.StrEnum):
    ON = "on"


class Plain:
    pass


UserId = NewType("UserId", str)
Short = Annotated[str, msgspec.Meta(max_length=5)]
NOW = datetime(2026, 1, 1, tzinfo=UTC)

ROUND_TRIPS: list[tuple[Any, Any, str]] = [
    # type, payload, content type
    (Order, Order("1", 1.5, {"a": [None]}), JSON),
    (Tagged | Other, Other(2), JSON),
    (Reading, Reading(20.5), JSON),
    (Point, {"x": 1}, JSON),
    (Model, Model(n=1), JSON),
    (Renamed, Renamed(BY=3), JSON),
    (Validated, Validated(1.5), JSON),
    (list[Model], [Model(n=1), Model(n=2)], JSON),
    (Model | None, Model(n=1), JSON),
    (Model | None, None, JSON),
    (Order | None, None, JSON),
    (dict[str, Any], {"a": [1, 2.5, True, None, "ü"]}, JSON),
    (dict[int, int], {1: 2}, JSON),
    (tuple[int, ...], (1, 2), JSON),
    (set[int], {1, 2}, JSON),
    (int, 7, JSON),
    (float, 0.1, JSON),
    (bool, True, JSON),
    (None, None, JSON),
    (datetime, NOW, JSON),
    (uuid.UUID, uuid.UUID(int=7), JSON),
    (Decimal, Decimal("1.10"), JSON),
    (Any, {"a": 1}, JSON),
    (Any, None, JSON),
    (Any, "text", TEXT),
    (Any, b"bytes", BINARY),
    (Any, "", TEXT),
    (Any, b"", BINARY),
    (str, "grüße ☃ 𝄞", TEXT),
    (str, "", TEXT),
    (bytes, b"\x00\xff", BINARY),
    (bytes, b"", BINARY),
    (str | None, "x", TEXT),
    (str | None, "", TEXT),
    (str | None, None, JSON),
    (bytes | None, b"", BINARY),
    (bytes | None, None, JSON),
    (str | int, 5, JSON),
    (str | int, "5", TEXT),
    (bytes | Order, b"{", BINARY),
    (bytes | Order, Order("1"), JSON),
    (State, State.ON, TEXT),
    (Literal["on", "off"], "on", TEXT),
    (Literal[1, 2], 2, JSON),
    (UserId, UserId("u"), TEXT),
    (Short, "abc", TEXT),
    (list[bytes], [b"\xff"], JSON),
]


@pytest.mark.parametrize(("type", "payload", "content_type"), ROUND_TRIPS, ids=lambda value: f"{value!s:.30}")
def test_what_is_published_arrives(type: Any, payload: Any, content_type: str) -> None:
    """Whatever form it takes on the way: the type of a topic reads what the topic accepts."""
    body, content = encode(Topic("t", type)(payload).data)
    arrived = decoder(type)(body, content)
    assert arrived == payload
    assert isinstance(arrived, payload.__class__)


@pytest.mark.parametrize(
    ("payload", "body", "content_type"),
    [
        (Order("1"), b'{"id":"1","total":0.0,"note":null}', JSON),
        (Model(n=1), b'{"n":1,"x":0.0}', JSON),
        (Renamed(BY=3), b'{"BY":3}', JSON),
        ([Renamed(BY=3)], b'[{"BY":3}]', JSON),
        ("ü", "ü".encode(), TEXT),
        (b"\xff", b"\xff", BINARY),
        (bytearray(b"a"), b"a", BINARY),
        (memoryview(b"a"), b"a", BINARY),
        (None, b"null", JSON),
        (5, b"5", JSON),
    ],
)
def test_the_body_is_the_plain_payload(payload: Any, body: bytes, content_type: str) -> None:
    assert encode(payload) == (body, content_type)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    # text with a surrogate is refused, below
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=8,
)


@given(JSON_VALUES)
def test_any_json_value_round_trips(value: Any) -> None:
    assert decoder(Any)(*encode(value)) == value


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "payload",
    [
        NAN,
        -INF,
        Order("1", NAN),
        Order("1", note=[{"a": (1, INF)}]),
        Order("1", note=Model(x=NAN)),
        {"a": NAN},
        {"a": {1.0, INF}},
        [None, NAN],
        Reading(INF),
        Model(x=NAN),
        [Model(x=INF)],
        Constants(x=NAN),
        Constants(x=-INF),
        Validated(NAN),
    ],
    ids=repr,
)
def test_nan_and_infinity_are_refused(payload: Any) -> None:
    """JSON has none: encoders write ``null``, or what no other reader takes."""
    with pytest.raises(PayloadRefused, match="NaN") as refusal:
        encode(payload)
    assert "test_codec.py" in refusal.value.where


@pytest.mark.parametrize(
    "payload", [None, {"a": None}, Order("null"), [None], "null", Model(), {"nan": "NaN"}], ids=repr
)
def test_null_is_no_nan(payload: Any) -> None:
    assert b"NaN" not in encode(payload)[0].replace(b'"NaN"', b"")


@pytest.mark.parametrize(
    "payload",
    ["\ud800", {"a": "\udfff"}, {"\ud800": 1}, Order("\ud800"), Model.model_construct(x="\ud800"), ["a", "\ud800"]],
    ids=ascii,
)
def test_lone_surrogates_are_refused(payload: Any) -> None:
    with pytest.raises(PayloadRefused):
        encode(payload)


@pytest.mark.parametrize(
    "payload",
    [Plain(), {"a": Plain()}, object, 1j, [lambda: 1], {Plain(): 1}],
    ids=["object", "in a value", "type", "complex", "function", "in a key"],
)
def test_what_cannot_be_encoded_is_refused(payload: Any) -> None:
    with pytest.raises(PayloadRefused) as refusal:
        encode(payload)
    assert refusal.value.why


def test_a_payload_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(PayloadRefused):
        encode(loop)


@pytest.mark.parametrize(
    "type",
    [
        Plain,
        object,
        complex,
        Callable[[], int],
        Callable,
        list[Plain],
        dict[str, complex],
        Order | Plain,
        tuple[int, Plain],
        [int],
        "Order",
        Order | Model,
        list[Order | Model],
    ],
    ids=str,
)
def test_types_nobody_can_decode_are_refused_at_once(type: Any) -> None:
    with pytest.raises(InvalidHandler, match="payloads cannot be") as refusal:
        decoder(type)
    assert "test_codec.py" in refusal.value.where
    assert "Struct" in refusal.value.mend


# -- foreign messages


@pytest.mark.parametrize("content_type", [JSON, "", "application/json; charset=utf-8", "text/json", "Application/JSON"])
def test_json_by_any_of_its_names(content_type: str) -> None:
    assert decoder(Order)(b'{"id":"1"}', content_type) == Order("1")
    assert decoder(Model)(b'{"n":1}', content_type) == Model(n=1)


def test_structured_suffixes_are_json() -> None:
    assert decoder(Order)(b'{"id":"1"}', "application/vnd.shop+json") == Order("1")


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "application/octet-stream", "x"])
def test_what_is_no_json_is_not_read_as_such(content_type: str) -> None:
    with pytest.raises(Undecodable, match="Order"):
        decoder(Order)(b'{"id":"1"}', content_type)


@pytest.mark.parametrize(
    ("type", "body", "content_type", "payload"),
    [
        (bytes, b"\xff", "anything", b"\xff"),
        (bytes, b'"a"', JSON, b'"a"'),
        (str, b"text", "", "text"),
        (str, b'"text"', JSON, "text"),
        (str, b"<a/>", "application/xml", "<a/>"),
        (str, "ü".encode(), "text/html; charset=utf-8", "ü"),
        (Any, b"\xff", BINARY, b"\xff"),
        (Any, b"plain", "text/plain", "plain"),
        (Any, b'{"a":1}', JSON, {"a": 1}),
        (Any, b'{"a":1}', "", {"a": 1}),
        (Any, b"\x00", "image/png", b"\x00"),
    ],
)
def test_foreign_content(type: Any, body: bytes, content_type: str, payload: Any) -> None:
    assert decoder(type)(body, content_type) == payload


@pytest.mark.parametrize("content_type", [JSON, "", TEXT, BINARY, "x/y"])
@pytest.mark.parametrize(
    ("type", "payload"),
    [(bytes, b""), (str, ""), (Order | None, None), (Model | None, None), (None, None), (int | None, None)],
    ids=str,
)
def test_an_empty_body_is_legal(type: Any, payload: Any, content_type: str) -> None:
    assert decoder(type)(b"", content_type) == payload


@pytest.mark.parametrize("content_type", [JSON, "", TEXT, BINARY])
@pytest.mark.parametrize("type", [Order, Model, int, list[int], Point, Reading], ids=str)
def test_an_empty_body_is_no_value(type: Any, content_type: str) -> None:
    with pytest.raises(Undecodable):
        decoder(type)(b"", content_type)


@pytest.mark.parametrize("type", [Order, Model, Reading, Point, dict[str, int], int, str, list[Model], Any], ids=str)
@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"{'a': 1}", b'{"id":"1"} trailing'])
def test_broken_json_is_undecodable(type: Any, body: bytes) -> None:
    with pytest.raises(Undecodable) as failure:
        decoder(type)(body, JSON)
    assert failure.value.why


def test_deep_nesting_is_undecodable_and_no_crash() -> None:
    for type in (Any, Model, list[Any]):
        with pytest.raises(Undecodable):
            decoder(type)(b"[" * 100_000 + b"]" * 100_000, JSON)


def test_text_that_is_no_text() -> None:
    with pytest.raises(Undecodable):
        decoder(str)(b"\xff", TEXT)


@pytest.mark.parametrize("kind", [Order, Model, Reading, list[Model]], ids=str)
def test_strict_unless_lax(kind: Any) -> None:
    """Both libraries alike: ``"1"`` is no number, unless the topic says so."""
    single = b'{"id":"1","n":"7","x":"1.5","total":"1.5","celsius":"1.5"}'
    body = b"[" + single + b"]" if kind == list[Model] else single
    with pytest.raises(Undecodable):
        decoder(kind)(body, JSON)
    found = decoder(kind, lax=True)(body, JSON)
    found = found[0] if isinstance(found, list) else found
    assert 1.5 in (getattr(found, "total", 0), getattr(found, "x", 0), getattr(found, "celsius", 0))


def test_missing_and_wrong_fields_say_where() -> None:
    for kind in (Order, Renamed):
        with pytest.raises(Undecodable) as failure:
            decoder(kind)(b'{"nothing": 1}', JSON)
        assert "id" in failure.value.why or "BY" in failure.value.why


# -- sealing


def test_sealing() -> None:
    parent: Message[Any] = Message("p", id="parent", correlation_id=None)
    draft = Topic("t", dict)({"a": 1}, key="k", delay="10s", expires="1m", priority=3, headers={"h": "v"})
    sealed = seal(draft, now=100.0, source="shop", id="derived", parent=parent)
    assert sealed == Message(
        "t",
        body=b'{"a":1}',
        id="derived",
        key="k",
        time=100.0,
        type="t",
        source="shop",
        headers=(("h", "v"),),
        priority=3,
        deliver_at=110.0,
        expires_at=160.0,
        correlation_id="parent",
        causation_id="parent",
    )


def test_a_publishers_own_id_stays() -> None:
    assert seal(Topic("t")({}, id="mine"), now=1.0, source="s", id="derived").id == "mine"
    ids = {seal(Topic("t")({}), now=1.0, source="s").id for _ in range(100)}
    assert len(ids) == 100


def test_correlation_follows_the_chain() -> None:
    first = seal(Topic("t")({}), now=1.0, source="s")
    second = seal(Topic("t")({}), now=2.0, source="s", parent=first)
    third = seal(Topic("t")({}), now=3.0, source="s", parent=second)
    assert (first.correlation_id, second.correlation_id, third.correlation_id) == (None, first.id, first.id)
    assert third.causation_id == second.id


@pytest.mark.parametrize(("delay", "expires"), [("1m", "1m"), ("2m", "1m"), ("0s", "0s")])
def test_what_expires_before_it_is_due_is_refused(delay: str, expires: str) -> None:
    with pytest.raises(InvalidOption, match="would expire before it is due"):
        seal(Topic("t")({}, delay=delay, expires=expires), now=1.0, source="s")
