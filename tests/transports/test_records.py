"""Messages as values of a database: what comes back is what went in."""

from __future__ import annotations

from msgspec.structs import replace

from tidings.kernel.message import Message
from tidings.transports._records import messages, record

PLAIN = Message("orders.placed", body=b"\x00\xff", id="m1", key="k", time=1.5, type="orders.{x}", source="shop")
RARE = [
    replace(PLAIN, headers=(("a", "1"), ("a", "ü"))),
    replace(PLAIN, priority=9),
    replace(PLAIN, deliver_at=2.0, expires_at=3.0),
    replace(PLAIN, reply_to="_reply.x", correlation_id="c", causation_id="d"),
    replace(PLAIN, address="_dead.shop.bill"),
    replace(PLAIN, body=b"", key=None, content_type="", headers=()),
]


def test_they_come_back_as_they_were() -> None:
    sent = [PLAIN, *RARE]
    came = messages(b"".join(map(record, sent)), len(sent))
    assert came == sent
    assert sent == came
    assert {hash(message) for message in came} == {hash(message) for message in sent}
    assert [message.destination for message in came] == [message.destination for message in sent]
    assert came[0] != replace(PLAIN, id="m2")


def test_what_is_usual_is_small() -> None:
    assert len(record(PLAIN)) < len(record(RARE[0])) - 6
