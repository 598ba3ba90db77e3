"""Uses that type checkers accept and, marked so, uses that they refuse: read by ``test_endpoints_typing.py``."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol, assert_type

from msgspec import Struct

from tidings import App, Service, Topic
from tidings.patterns import (
    PollingConsumer,
    bridge,
    feed_process,
    gateway,
    poll_http,
    poll_sql,
    polling_consumer,
    purge,
    run_process,
    watch_files,
    write_files,
)


class Order(Struct):
    id: str


class Price(Struct):
    cents: int


class Shop(Protocol):
    async def price(self, order: Order, /) -> Price: ...

    async def place(self, order: Order, /, *, key: str | None = None) -> None: ...

    def follow(self, order: Order, /) -> AsyncIterator[Price]: ...


app = App("shop", far="memory://")
placed = Topic("orders.placed", Order)
prices = Service("prices.quote", Order, Price)
texts = Topic("texts", str)
files = Topic("files", bytes)

bridge(app, "orders.>", to="far")
bridge(app, placed, to="far", both=True, ordered=True, group="shop.bridge", start="first")
bridge(app, "orders.>", to="far", rename=lambda topic: f"edge.{topic}")
bridge(app, "orders.>")  # wrong
bridge(app, "orders.>", to="far", rename=lambda topic: len(topic))  # wrong
bridge(app, "orders.>", to="far", grup="x")  # wrong

shop = gateway(app, Shop, price=prices, place=placed, follow=prices)
assert_type(shop, Shop)
gateway(app, Shop, price="prices")  # wrong

desk = polling_consumer(app, placed, group="shop.desk", concurrency=2)
assert_type(desk, PollingConsumer[Order])
polling_consumer(app, "orders.>", group="shop.desk")  # wrong


async def use() -> None:
    assert_type(await shop.price(Order("1")), Price)
    await shop.place(Order("1"), key="k")
    await shop.place(Price(1))  # wrong
    await shop.place(Order("1"), kye="k")  # wrong
    async for price in shop.follow(Order("1")):
        assert_type(price, Price)
    async with desk.receive("5s") as message:
        if message is not None:
            assert_type(message.data, Order)
    async with desk.receive([5]) as _:  # wrong
        pass
    assert_type(await purge(app, "shop.desk"), int)


def parsed(path: Path) -> Order:
    return Order(path.name)


watch_files(app, "in", files)
watch_files(app, Path("in"), texts, pattern="*.txt", settle="5s")
watch_files(app, "in", placed, read=parsed, marker=".ok")
watch_files(app, "in", placed)  # wrong
watch_files(app, "in", texts, read=parsed)  # wrong

write_files(app, placed, "out", name=lambda message: f"{message.key}.json")
write_files(app, "orders.>", "out", name=lambda message: message.data)  # wrong

poll_sql(app, placed, connect=lambda: sqlite3.connect("shop.db"), query="SELECT id FROM orders WHERE id > ?")
poll_sql(app, placed, connect=lambda: None, query="", row=lambda row: placed(Order(row["id"]), key="k"))
poll_sql(app, placed, connect=lambda: None, query="", row=lambda row: texts(row["id"]))  # wrong
poll_sql(app, placed, connect="shop.db", query="")  # wrong

poll_http(app, placed, "https://example.com/order", made=lambda order: placed(order, key=order.id), every="5m")
poll_http(app, placed, "https://example.com/order", made=lambda order: placed(order, key=order.sku))  # wrong

run_process(app, ["vmstat", "1"], texts)
run_process(app, ["vmstat", "1"], placed, read=lambda line: Order(line))
run_process(app, ["vmstat", "1"], placed)  # wrong
run_process(app, ["vmstat", "1"], placed, read=len)  # wrong
feed_process(app, placed, ["logger"])
feed_process(app, placed, 3)  # wrong
