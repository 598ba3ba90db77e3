"""The CloudEvents HTTP binding, both ways, beside the official SDK's."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from cloudevents.core.bindings import http
from cloudevents.core.bindings.http import HTTPMessage
from cloudevents.core.v1.event import CloudEvent
from cloudevents.v1.conversion import to_binary, to_structured
from cloudevents.v1.http import CloudEvent as OldEvent
from cloudevents.v1.http import from_http

from tidings import Message
from tidings.gateway.cloudevents import BATCHED, STRUCTURED, batched, binary, drafts, structured
from tidings.gateway.refusals import Malformed, UnsupportedMediaType
from tidings.kernel.codec import seal

NOW = 1_700_000_000.5
ODD = 'Euro € 😀 "quoted" 100% a%20b \\ \u00e9'

BODIES = [  # body, content type, what the SDK reads
    (b'{"total": 3}', "application/json", {"total": 3}),
    (b"null", "application/json", None),
    (b'"text"', "application/json", "text"),
    ("Grüezi\n".encode(), "text/plain", "Grüezi\n"),
    (b"<much wow='xml'/>", "text/xml; charset=utf-8", "<much wow='xml'/>"),
    (b"\x00\xff\x01", "application/octet-stream", b"\x00\xff\x01"),
    (b"{not json", "application/vnd.shop+json", b"{not json"),
    (b"", "application/json", None),
]

each_body = pytest.mark.parametrize(("body", "kind", "read"), BODIES, ids=lambda value: repr(value)[:20])


def sealed(**fields: Any) -> Message[Any]:
    fields = {"topic": "orders.placed", "body": b'{"total": 3}', "type": "order", **fields}
    return seal(Message(**fields), now=NOW, source="shop")


def told(message: Message[Any]) -> tuple[Any, ...]:
    """All that travels; a time may lose what a float has beyond a tenth of a microsecond."""
    return tuple(
        round(value, 6) if isinstance(value, float) else value
        for value in msgspec.structs.astuple(message)
        if value is not msgspec.UNSET
    )


@each_body
def test_the_sdk_reads_ours(body: bytes, kind: str, read: Any) -> None:
    message = sealed(body=body, content_type=kind, key=ODD, headers=(("tenant", ODD),), priority=7)
    headers, content = binary(message)
    for event in (
        http.from_binary_event(HTTPMessage(headers, content)),
        http.from_structured_event(HTTPMessage({"content-type": STRUCTURED}, structured(message))),
    ):
        assert event.get_id() == message.id
        assert event.get_source() == "shop"
        assert event.get_type() == "order"
        assert event.get_specversion() == "1.0"
        assert event.get_datacontenttype() == kind
        assert event.get_time() == datetime.fromtimestamp(NOW, UTC)
        extensions = ("partitionkey", "tenant", "tdgpriority", "tdgtopic")
        assert [event.get_extension(name) for name in extensions] == [ODD, ODD, "7", "orders.placed"]
        data = event.get_data()
        assert (data.encode() if isinstance(read, bytes) and isinstance(data, str) else data) == read


@each_body
def test_we_read_the_sdks(body: bytes, kind: str, read: Any) -> None:
    about = {
        "id": "7",
        "source": "/shop",
        "type": "order",
        "partitionkey": ODD,
        "subject": "a b",
        "datacontenttype": kind,
    }
    event = CloudEvent({**about, "time": datetime.fromtimestamp(NOW, UTC)}, read)
    for sent in (http.to_binary_event(event), http.to_structured_event(event)):
        if sent.headers["content-type"] == kind and kind == "application/json" and not isinstance(read, dict):
            continue  # the SDK writes a text, or None, as a body that is no JSON
        (message,) = drafts("a.b", sent.headers, sent.body)
        assert (message.topic, message.id, message.source, message.type) == ("a.b", "7", "/shop", "order")
        assert (message.key, message.content_type, message.time) == (ODD, kind, NOW)
        assert message.headers == (("subject", "a b"),)
        assert message.body == body or json.loads(message.body or b"null") == read


@each_body
def test_what_goes_out_comes_in_as_it_was(body: bytes, kind: str, read: Any) -> None:
    odd = (("traceparent", "00-1-2-01"), ("X-Request-Id", ODD), ("id", "not the id"), ("a-name-of-more-than-20", ""))
    message = sealed(
        body=body, content_type=kind, key="", headers=odd, delay=5, expires=60, correlation_id="c", causation_id="d"
    )
    headers, content = binary(message)
    assert all(name == name.lower() and value.isascii() and value.isprintable() for name, value in headers.items())
    for given, came in ((headers, content), ({"content-type": STRUCTURED}, structured(message))):
        (again,) = drafts(message.topic, given, came)
        assert sorted(again.headers or ()) == sorted(odd)
        assert told(msgspec.structs.replace(again, headers=odd)) == told(message)
    (again,) = drafts(message.topic, {"content-type": BATCHED}, batched([message]))
    assert again.id == message.id


def test_the_sdks_older_interface_agrees() -> None:
    event = OldEvent({"type": "order", "source": "/shop", "partitionkey": "a 7"}, {"total": 3})
    for headers, content in (to_binary(event), to_structured(event)):
        (message,) = drafts("a.b", {name.lower(): value for name, value in headers.items()}, content)
        assert (message.id, message.key, json.loads(message.body)) == (event["id"], "a 7", {"total": 3})
    ours = from_http({"content-type": STRUCTURED}, structured(sealed(key="a 7")))
    assert (ours["partitionkey"], ours.data) == ("a 7", {"total": 3})


def test_messages_of_strangers_are_events_too() -> None:
    bare: Message[Any] = Message(
        "a.b", b"hello", "7", time=NOW, type="a.b", content_type=""
    )  # no source, no content type
    event = http.from_structured_event(HTTPMessage({}, structured(bare)))
    assert (event.get_source(), event.get_datacontenttype(), event.get_data()) == ("/topics/a.b", "text/plain", "hello")
    headers, body = binary(msgspec.structs.replace(bare, content_type="text/plain\r\nset-cookie: a"))
    assert (headers["content-type"], body) == ("application/octet-stream", b"hello")


def test_headers_are_unquoted_then_decoded_once() -> None:
    required = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
    for value, read in {
        '"a \\"b\\" c"': 'a "b" c',
        "%41%e2%82%ac": "A€",
        "%2541": "%41",
        '"%22"': '"',
        "100%": "100%",
    }.items():
        (message,) = drafts("a", {**required, "ce-partitionkey": value}, b"")
        assert message.key == read


def test_bodies_without_events_are_messages_as_they_are() -> None:
    (message,) = drafts("a", {"content-type": "image/png", "ce-id": "7"}, b"\x89PNG")
    assert (message.body, message.content_type, message.id) == (b"\x89PNG", "image/png", "")


def test_an_event_goes_where_it_is_posted() -> None:
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": "t"}
    been = {"tdgtopic": "elsewhere", "tdgaddress": "_group.x", "tdgfailures": "3", "tdgreason": "rejected"}
    (message,) = drafts("a", {"content-type": STRUCTURED}, msgspec.json.encode(event | been))
    assert (message.topic, message.address, message.headers) == ("a", None, None)


def test_a_batch_may_be_empty_and_values_null() -> None:
    assert drafts("a", {"content-type": f"{BATCHED}; charset=UTF-8"}, b"[]") == []
    event = b'{"specversion":"1.0","id":"1","source":"s","type":"t","subject":null,"flag":true,"n":-3,"data":null}'
    (message,) = drafts("a", {"content-type": STRUCTURED}, event)
    assert message.headers == (("flag", "true"), ("n", "-3"))
    assert (message.body, message.content_type) == (b"null", "application/json")


WRONG = {
    "no JSON": b"{",
    "no UTF-8": b'{"specversion":"1.0","id":"\xff","source":"s","type":"t"}',
    "no object": b"[1]",
    "too deep": b"[" * 100_000,
    "specversion": {"specversion": "0.3"},
    "no id": {"id": None},
    "empty id": {"id": ""},
    "no source": {"source": ""},
    "an object as an attribute": {"more": {"a": 1}},
    "a fraction as an attribute": {"more": 1.5},
    "a name with capitals": {"partitionKey": "a"},
    "a control character": {"partitionkey": "a\r\nb: c"},
    "no time": {"time": "yesterday"},
    "no expiry": {"expirytime": ""},
    "no priority": {"tdgpriority": 10},
    "two bodies": {"data": 1, "data_base64": "AAA="},
    "no base64": {"data_base64": "AAA=*"},
    "base64 that is no text": {"data_base64": 7},
    "headers that are none": {"tdgheaders": "{}"},
    "headers of ours": {"tdgheaders": '[["tdgreason", "x"]]'},
    "headers with lines": {"tdgheaders": '[["a", "x\\ny"]]'},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_no_event_is_refused(wrong: Any) -> None:
    if isinstance(wrong, dict):
        event = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", **wrong}
        wrong = json.dumps(event).encode()
    with pytest.raises(Malformed):
        drafts("a", {"content-type": STRUCTURED}, wrong)
    with pytest.raises(Malformed):
        drafts("a", {"content-type": BATCHED}, b"[%b]" % wrong)


@pytest.mark.parametrize(
    "header",
    [("ce-id", ""), ("ce-type", "%C0%A0"), ("ce-some-thing", "a"), ("ce-time", "soon"), ("ce-specversion", "2")],
)
def test_headers_that_are_wrong_are_refused(header: tuple[str, str]) -> None:
    required = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
    with pytest.raises(Malformed):
        drafts("a", {**required, header[0]: header[1]}, b"")


def test_other_formats_of_events_are_refused() -> None:
    for kind in ("application/cloudevents+xml", "application/cloudevents-batch+avro"):
        with pytest.raises(UnsupportedMediaType):
            drafts("a", {"content-type": kind}, b"")
