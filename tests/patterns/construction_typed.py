"""Uses that type checkers accept and, marked so, uses that they refuse: read by ``test_construction_typing.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, assert_type

from tidings import App, Message, Topic
from tidings.patterns import (
    ClaimCheck,
    FolderBlobs,
    Lookup,
    MessageHistory,
    Position,
    Schema,
    encrypted,
    normalizer,
    position,
    sequenced,
    splitter,
)


@dataclass
class Line:
    sku: str


@dataclass
class Order:
    lines: list[Line]


app = App("shop")
orders = Topic("orders.placed", Order)
lines = Topic("orders.lines", Line)
foreign = Topic("partners.{name}", bytes)


@splitter(app, orders, to=lines, key=lambda line: line.sku, concurrency=4, group="mine")
def s1(order: Order) -> list[Line]:
    return order.lines


@splitter(app, orders, to=lines)
async def s2(message: Message[Order], app: App) -> AsyncIterator[Line]:
    for line in message.data.lines:
        yield line


@splitter(app, "orders.>", to=lines)
async def s3(order: Order) -> tuple[Line, ...]:
    return tuple(order.lines)


@splitter(app, orders, to=lines)
def s4(order: Order, customer: str = "") -> Iterator[Line]:
    yield from order.lines


assert_type(s1(Order([])), list[Line])


@splitter(app, orders, to=lines)  # wrong: takes another payload
def w1(order: Line) -> list[Line]:
    return [order]


@splitter(app, orders, to=lines)  # wrong: gives other parts
def w2(order: Order) -> list[Order]:
    return [order]


@splitter(app, orders, to=lines)  # wrong: gives one part, and no iterable
def w3(order: Order) -> Line:
    return order.lines[0]


@splitter(app, orders, to=lines)  # wrong: yields other parts
async def w4(order: Order) -> AsyncIterator[str]:
    yield ""


splitter(app, orders, to=lines, key=lambda line: line.nothing)  # wrong: a line has none
splitter(app, orders, to=lines, concurency=4)  # wrong: no such option

assert_type(sequenced([lines(Line("nut"))]), list[Message[Line]])
assert_type(position(lines(Line("nut"))), Position | None)


async def fetch(key: int) -> Line | None:
    return None


lookup = Lookup(fetch, ttl="5m", missing="10s", size=100)


async def looks() -> None:
    assert_type(await lookup(1), Line | None)
    await lookup("1")  # wrong: another key


normal = normalizer(app, foreign, to=lines, key=lambda line: line.sku, invalid=Topic("invalid", bytes))


@normal.translator(content_type="text/csv")
def n1(text: str) -> Iterator[Line]:
    yield Line(text)


@normal.translator(topic="partners.acme", when=lambda message: message.header("x") == "2")
async def n2(data: dict[str, Any]) -> Line | None:
    return None


@normal.translator()
def n3(message: Message[dict[str, Any]]) -> Line:
    return Line(message.data["sku"])


@normal.translator()  # wrong: gives another type
def n4(body: bytes) -> Order:
    return Order([])


normalizer(app, orders, to=lines)  # wrong: in one format already

order_schema = Schema("order", 2, topics="orders.>")


@order_schema.upcast(1, 2)
def u1(old: dict[str, Any]) -> Order:
    return Order([])


assert_type(order_schema.stamped(lines(Line("nut"))), Message[Line])

claims = ClaimCheck(FolderBlobs("blobs"), above="1MiB", keep="30d")
vault = encrypted({"2026-11": bytes(32)}, topics="orders.>")


@app.on(orders, middleware=[claims, vault, order_schema, MessageHistory()])
async def h1(order: Order) -> Message[Line]:
    return await claims.check(lines(order.lines[0]))


ClaimCheck("blobs")  # wrong: no store
