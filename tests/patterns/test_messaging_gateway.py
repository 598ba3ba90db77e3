"""EIP Messaging Gateway: a Protocol whose methods send and ask; what does not fit is refused at its line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

import pytest
from msgspec import Struct
from tests.kernel.rig import until, virtual

from tidings import App, Message, NoAnswerer, Service, Topic, UsageError
from tidings.kernel.errors import InvalidHandler, InvalidOption, NotOpen, PayloadRefused
from tidings.patterns import gateway


class Quote(Struct):
    article: str


class Rush(Quote):
    hours: int = 1


class Price(Struct):
    cents: int


prices = Service("prices.quote", Quote, Price)
counts = Service("counts.to", int, int)
placed = Topic("orders.placed", Quote)
readings = Topic("sensors.{device}.temperature", float)
anything = Topic("notes")


class Base(Protocol):
    async def place(self, order: Quote, /) -> None: ...


class Shop(Base, Protocol):
    async def price(self, quote: Rush, /) -> Price | None: ...

    def count(self, to: int, /) -> AsyncIterator[int]: ...

    async def read(self, value: float, /, *, device: str, key: str | None = None, delay: float = 0.0) -> None: ...

    async def note(self, text: str, /) -> None: ...


def shop(app: App) -> Shop:
    return gateway(app, Shop, price=prices, count=counts, place=placed, read=readings, note=anything)


@virtual
async def test_methods_send_and_ask() -> None:
    app, came = App("shop", "memory://"), list[Message[Any]]()

    @app.on("*.>")
    async def see(message: Message[Any]) -> None:
        came.append(message)

    @app.on("notes")
    async def note(message: Message[str]) -> None:
        came.append(message)

    @app.answer(prices)
    async def price(quote: Quote) -> Price:
        return Price(len(quote.article))

    @app.answer(counts)
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    calls = shop(app)
    async with app:
        assert await calls.price(Rush("tea")) == Price(3)
        assert [number async for number in calls.count(3)] == [0, 1, 2]
        await calls.place(Quote("cup"))
        await calls.read(21.5, device="a7", key="k", delay=60.0)
        await calls.note("ü")
        await until(lambda: len(came) == 3)
    found = {message.topic: message for message in came}
    assert found["orders.placed"].data == {"article": "cup"}
    assert (found["sensors.a7.temperature"].data, found["sensors.a7.temperature"].key) == (21.5, "k")
    assert found["sensors.a7.temperature"].deliver_at
    assert found["notes"].data == "ü"


@virtual
async def test_errors_are_those_of_publish_and_request() -> None:
    app = App("shop", "memory://")
    calls = shop(app)
    with pytest.raises(NotOpen):
        await calls.place(Quote("cup"))
    async with app.connect():
        with pytest.raises(NoAnswerer):
            await calls.price(Rush("tea"))
        with pytest.raises(PayloadRefused):
            await calls.place("cup")  # type: ignore[arg-type]
        with pytest.raises(InvalidOption, match="no option 'kye'"):
            await calls.read(1.0, device="a7", kye="k")  # type: ignore[call-arg]


def test_it_has_the_methods_and_nothing_else() -> None:
    calls = shop(App("shop", "memory://"))
    assert [name for name in dir(calls) if not name.startswith("_")] == ["count", "note", "place", "price", "read"]
    with pytest.raises(AttributeError):
        calls.other = 1  # type: ignore[attr-defined]


class Takes(Protocol):
    async def place(self, order: Price, /) -> None: ...


class Returns(Protocol):
    async def place(self, order: Quote, /) -> Price: ...


class Replies(Protocol):
    async def price(self, quote: Quote, /) -> int: ...


class Wide(Protocol):
    async def price(self, quote: Quote | str, /) -> Price: ...


class Plain(Protocol):
    def price(self, quote: Quote, /) -> Price: ...


class Yields(Protocol):
    def count(self, to: int, /) -> AsyncIterator[str]: ...


class Nothing(Protocol):
    async def place(self) -> None: ...


class Second(Protocol):
    async def place(self, order: Quote, key: str) -> None: ...


class Unknown(Protocol):
    async def place(self, order: Quote, /, *, kye: str) -> None: ...


class Hole(Protocol):
    async def read(self, value: float, /) -> None: ...


class Asks(Protocol):
    async def price(self, quote: Quote, /, *, key: str) -> Price: ...


class Field(Protocol):
    name: str


class Unresolved(Protocol):
    async def place(self, order: Nowhere, /) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("protocol", "channels", "kind", "said"),
    [
        (Takes, {"place": placed}, InvalidHandler, "Takes.place() takes Price, and 'orders.placed' carries Quote"),
        (Returns, {"place": placed}, InvalidHandler, "returns nothing"),
        (Replies, {"price": prices}, InvalidHandler, "'prices.quote' replies Price, and Replies.price() returns int"),
        (Wide, {"price": prices}, InvalidHandler, "'prices.quote' is asked Quote"),
        (Plain, {"price": prices}, InvalidHandler, "does not wait"),
        (Yields, {"count": counts}, InvalidHandler, "Yields.count() yields str"),
        (Nothing, {"place": placed}, InvalidHandler, "takes nothing to send"),
        (Second, {"place": placed}, InvalidHandler, "takes 'key' by position"),
        (Unknown, {"place": placed}, InvalidHandler, "did you mean 'key'?"),
        (Hole, {"read": readings}, InvalidHandler, "does not say 'device'"),
        (Asks, {"price": prices}, InvalidHandler, "'key', which nothing uses"),
        (Field, {}, InvalidHandler, "Field.name is no method"),
        (Unresolved, {"place": placed}, InvalidHandler, "cannot be resolved"),
        (Base, {}, InvalidHandler, "Base.place() has no topic"),
        (Base, {"place": "orders.placed"}, InvalidHandler, "Base.place() has no topic"),
        (Base, {"palce": placed}, InvalidOption, "did you mean 'place'?"),
        (Quote, {}, InvalidHandler, "is no Protocol"),
        (Base, {"place": placed, "timeout": -1}, InvalidOption, "timeout cannot be -1"),
    ],
)
def test_refused_at_the_line(protocol: Any, channels: dict[str, Any], kind: type[UsageError], said: str) -> None:
    with pytest.raises(kind) as caught:
        gateway(App("shop", "memory://"), protocol, **channels)
    assert said in str(caught.value)
    assert "test_messaging_gateway.py" in caught.value.where
