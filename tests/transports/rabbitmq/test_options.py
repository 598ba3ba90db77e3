"""URLs and options, without a server."""

from __future__ import annotations

import pamqp.frame
import pytest
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from tidings.kernel.errors import InvalidOption, InvalidURL
from tidings.kernel.message import Message
from tidings.transports.rabbitmq import RabbitMQ
from tidings.transports.rabbitmq.channel import encoded
from tidings.transports.rabbitmq.content import properties, words
from tidings.urls import options_for


def test_everything_a_url_can_say() -> None:
    found = RabbitMQ.from_url(
        "amqps://ann:p%40ss@a.example,b.example:5679/shop?namespace=bus.one&lease=10s&queues=shop.bill:legacy,x.y:z"
        "&kind=classic&exchange=events&cafile=/ca.pem"
    )
    assert found.hosts == (("a.example", 5671), ("b.example", 5679))
    assert (found.user, found.password, found.vhost, found.tls) == ("ann", "p@ss", "shop", True)
    assert (found.namespace, found.exchange, found.kind) == ("bus.one", "events", "classic")
    assert found.queues == {"shop.bill": "legacy", "x.y": "z"}
    assert found.urls()[1] == "amqps://ann:p%40ss@b.example:5679/shop?heartbeat=5&auth=plain"


def test_a_short_url_means_the_usual() -> None:
    found = options_for("amqp://")
    assert isinstance(found, RabbitMQ)
    assert found == RabbitMQ()
    assert found.urls() == ["amqp://guest:guest@localhost:5672/?heartbeat=15&auth=plain"]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("amqp://localhost?leese=3s", "did you mean 'lease'?"),
        ("amqp://localhost?lease=soon", "lease cannot be 'soon'"),
        ("amqp://localhost?namespace=a%20b", "namespace cannot be"),
        ("amqp://localhost?namespace=_x", "namespace cannot be"),
        ("amqp://localhost?queues=shop.bill", "names no queue"),
        ("amqp://localhost?kind=fast", "kind"),
        ("amqp://localhost:port", "no host and port"),
    ],
)
def test_what_is_wrong_is_named(url: str, told: str) -> None:
    with pytest.raises(InvalidURL) as refusal:
        RabbitMQ.from_url(url)
    assert told in str(refusal.value)


def test_a_password_is_never_shown() -> None:
    with pytest.raises(InvalidURL) as refusal:
        RabbitMQ.from_url("amqp://ann:hidden@localhost?lease=soon")
    assert "hidden" not in str(refusal.value)


def test_properties_are_what_the_plain_client_would_write() -> None:
    headers = {"a": "1", "ünïcode ☃": "naïve 𝄞", "empty": ""}
    wanted = Basic.Properties(
        content_type="application/json", headers=headers, delivery_mode=2, priority=7, message_id="m", expiration="15"
    )
    ours = encoded("application/json", headers.items(), "m", 1_800_000_000.7, 7, "15")
    frame = b"\0\x3c\0\0" + (3).to_bytes(8) + ours
    _, _, read = pamqp.frame.unmarshal(b"\2\0\1" + len(frame).to_bytes(4) + frame + b"\xce")
    assert isinstance(read, ContentHeader)
    assert read.properties.headers == headers
    assert read.properties.timestamp is not None
    assert read.properties.timestamp.timestamp() == 1_800_000_000
    for name in ("content_type", "delivery_mode", "priority", "message_id", "expiration"):
        assert getattr(read.properties, name) == getattr(wanted, name), name


def test_a_content_type_that_cannot_travel_is_refused() -> None:
    with pytest.raises(InvalidOption):
        properties(Message("orders.placed", content_type="x" * 256), {})


def test_a_request_expires_by_itself_and_nothing_else_does() -> None:
    """A time to live on a message in a delay level would end its delay."""
    import time

    late = time.time() + 5
    asked: Message[object] = Message("prices", reply_to="_reply.me", expires_at=late)
    assert b"\x049" in properties(asked, {}) or b"\x045" in properties(asked, {})  # a short string of four digits
    plain = properties(Message("prices"), {})
    assert len(properties(Message("prices", expires_at=late), {})) == len(plain)
    level = [("tdgdelay0", "1")]
    assert len(properties(asked, {}, level)) == len(properties(Message("prices"), {}, level))


@pytest.mark.parametrize(
    ("pattern", "key"), [("orders.>", "orders.*.#"), (">", "*.#"), ("*.placed", "*.placed"), ("a.b", "a.b")]
)
def test_a_last_wildcard_is_one_word_or_more(pattern: str, key: str) -> None:
    """AMQP's ``#`` alone is none or more: ``orders.#`` would match ``orders``."""
    assert words(pattern) == key
