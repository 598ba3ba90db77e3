"""Normalizer: every format it knows becomes one type; what is wrong goes to the invalid-message channel as it came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from tests.transports.consuming import until

from tidings import App, Backoff, Message, Reject, Router, Topic
from tidings.kernel.errors import InvalidHandler, InvalidName, InvalidOption
from tidings.kernel.transport import Inspectable
from tidings.patterns import Normalizer, normalizer


class Order(Struct):
    id: str
    count: int


class Acme(Struct):
    number: str
    pieces: int


orders = Topic("orders.placed", Order)
unreadable = Topic("orders.invalid", bytes)

each_bus = pytest.mark.parametrize("scheme", ["memory", "sqlite"])


def url(scheme: str, folder: Path) -> str:
    return "memory://" if scheme == "memory" else f"sqlite:///{folder / 'bus.db'}"


def foreign(body: bytes, content_type: str, topic: str = "partners.orders.acme", **more: Any) -> Message[Any]:
    return Message(topic, body, content_type=content_type, **more)


def declare(normal: Normalizer[Order]) -> None:
    """Four formats."""

    @normal.translator(content_type="text/csv")
    def from_csv(text: str) -> Iterator[Order]:
        for line in text.splitlines():
            id, count = line.split(",")
            yield Order(id, int(count))

    @normal.translator(topic="partners.orders.acme", when=lambda message: message.header("x-version") == "2")
    def from_acme_2(message: Message[dict[str, Any]]) -> Order:
        return Order(message.header("x-order"), message.data["n"])

    @normal.translator(topic="partners.orders.acme", content_type="application/json")
    async def from_acme(acme: Acme) -> Order | None:
        if acme.pieces < 0:
            raise Reject("nobody orders less than nothing")
        return Order(acme.number, acme.pieces) if acme.pieces else None

    @normal.translator(content_type="application/x-ticks")
    async def from_ticks(body: bytes) -> AsyncIterator[Order]:
        for count in body:
            yield Order("tick", count)


def listen(app: App, topic: Topic[Any]) -> list[Message[Any]]:
    came: list[Message[Any]] = []

    async def heard(message: Message[Any]) -> None:
        came.append(message)

    app.on(topic, group=f"{app.name}.{topic.name.replace('.', '_')}", concurrency=1)(heard)
    return came


@each_bus
async def test_every_format_becomes_one(scheme: str, tmp_path: Path) -> None:
    app = App("shop", url(scheme, tmp_path))
    declare(normalizer(app, "partners.orders.>", to=orders, invalid=unreadable, concurrency=1))
    came, wrong = listen(app, orders), listen(app, unreadable)
    async with app:
        await app.publish_many(
            [
                foreign(b"a,1\nb,2\n", "Text/CSV; charset=utf-8", "partners.orders.other", key="k"),
                foreign(b'{"n":3}', "application/json", headers=(("x-version", "2"), ("x-order", "c"))),
                foreign(b'{"number":"d","pieces":4}', "application/json"),
                foreign(b'{"number":"none","pieces":0}', "application/json"),
                foreign(b"\5\6", "application/x-ticks"),
            ]
        )
        await until(lambda: len(came) == 6)
        assert "shop.normalize" in app.stats()
    expected = [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("tick", 5), ("tick", 6)]
    assert sorted((message.data for message in came), key=lambda order: order.count) == [Order(*o) for o in expected]
    assert {message.data.id: message.key for message in came} == dict.fromkeys("ab", "k") | dict.fromkeys(
        ("c", "d", "tick")
    )
    assert wrong == []


async def test_a_key_of_its_own() -> None:
    app = App("shop", "memory://")
    declare(normalizer(app, Topic("partners.orders.{name}", bytes), to=orders, key=lambda order: order.id))
    came = listen(app, orders)
    async with app:
        await app.publish(foreign(b"a,1\nb,2\n", "text/csv", key="k"))
        await until(lambda: len(came) == 2)
    assert [message.key for message in came] == ["a", "b"]


WRONG = [
    (
        b"<order/>",
        "application/xml",
        "Undecodable: no translator takes it: content type 'application/xml'",
    ),
    (b"a,many", "text/csv", "ValueError: invalid literal for int()"),
    (b"\xff", "text/csv", "Undecodable: the body is no str"),
    (b'{"number":"d"}', "application/json", "Undecodable: the body is no Acme"),
    (b'{"number":"d","pieces":-1}', "application/json", "Reject: nobody orders less than nothing"),
]


@pytest.mark.parametrize(("body", "content_type", "why"), WRONG)
async def test_what_is_wrong_goes_to_the_invalid_message_channel_as_it_came(
    body: bytes, content_type: str, why: str
) -> None:
    app = App("shop", "memory://")
    declare(normalizer(app, "partners.orders.>", to=orders, invalid=unreadable))
    wrong = listen(app, unreadable)
    async with app:
        await app.publish(foreign(body, content_type, key="k", headers=(("tenant", "a"),)))
        await until(lambda: len(wrong) == 1)
        assert app.stats()["shop.normalize"].failed == 0
    (message,) = wrong
    assert (message.data, message.content_type, message.key) == (body, content_type, "k")
    assert message.header("tenant") == "a"
    assert message.header("invalid-topic") == "partners.orders.acme"
    assert message.header("invalid-reason").startswith(why)


@pytest.mark.parametrize(("body", "content_type", "why"), WRONG)
async def test_without_that_channel_to_the_dead_letters(body: bytes, content_type: str, why: str) -> None:
    app = App("shop", "memory://")
    declare(normalizer(app, "partners.orders.>", to=orders, group="mine"))
    async with app:
        await app.publish(foreign(body, content_type))
        bus = app.bus()
        assert isinstance(bus, Inspectable)
        async with asyncio.timeout(20):
            while not (letters := await bus.peek("_dead.mine")):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    told = letters[0].message
    assert (told.body, told.header("tdgfailures")) == (body, "0")
    assert why.split(": ")[1] in told.header("tdgdetail")


async def test_a_program_that_fails_is_tried_again() -> None:
    app, runs = App("shop", "memory://", backoff=Backoff(first=0.001)), iter((ConnectionError(), None))
    normal = normalizer(app, "partners.orders.>", to=orders, invalid=unreadable)
    came, wrong = listen(app, orders), listen(app, unreadable)

    @normal.translator()
    async def read(body: bytes) -> Order:
        if error := next(runs):
            raise error
        return Order(body.decode(), 1)

    async with app:
        await app.publish(foreign(b"a", "application/edi"))
        await until(lambda: len(came) == 1)
    assert (came[0].data, wrong) == (Order("a", 1), [])


def test_what_means_nothing_is_refused() -> None:
    app = Router()
    with pytest.raises(InvalidOption, match="to cannot be"):
        normalizer(app, "partners.>", to="orders.placed")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="invalid cannot be"):
        normalizer(app, "partners.>", to=orders, invalid=Topic("invalid.*", bytes))
    with pytest.raises(InvalidOption, match=r"to='orders\.placed' comes back to 'orders\.>'"):
        normalizer(app, "orders.>", to=orders)
    with pytest.raises(InvalidOption, match="is in one format already"):
        normalizer(app, Topic("partners.orders", Acme), to=orders)  # type: ignore[arg-type]
    assert app.registrations == []
    normal = normalizer(app, "partners.>", to=orders)
    with pytest.raises(InvalidOption, match="when cannot be"):
        normal.translator(when=True)  # type: ignore[arg-type]
    with pytest.raises(InvalidName):
        normal.translator(topic="a..b")
    with pytest.raises(InvalidHandler, match="takes more than that") as caught:

        @normal.translator()  # type: ignore[arg-type]
        def read(body: bytes, message: Message[bytes]) -> Order:
            return Order("", 0)

    assert caught.value.where.startswith(__file__)
