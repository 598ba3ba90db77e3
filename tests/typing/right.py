"""Uses that type checkers must accept: read by ``test_typing.py``, never imported."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, TypedDict, assert_type

from tidings import App, Backoff, Client, Depends, Message, Router, Service, Topic, connect, token


@dataclass
class Order:
    id: str


@dataclass
class Refund:
    id: str


@dataclass
class Invoice:
    n: int


@dataclass
class Quote:
    s: str


@dataclass
class Price:
    p: float


class Row(TypedDict):
    a: int


class Db: ...


def get_db() -> Db:
    return Db()


app = App("shop", "sqlite:///x", devices="mqtt://")
placed = Topic("orders.placed", Order)
invoiced = Topic("billing.invoiced", Invoice)
rows = Topic("rows", Row)
either = Topic("either", Order | Refund)
raw = Topic("raw")
prices = Service("prices.quote", Quote, Price)
assert_type(placed, Topic[Order])
assert_type(either, Topic[Order | Refund])
assert_type(rows, Topic[Row])


@app.on(placed)
async def bill(order: Order) -> Message[Invoice]:
    return invoiced(Invoice(1), key=order.id)


@app.on(placed, concurrency=4)
async def inject(order: Order, message: Message[Order], app: App, db: Annotated[Db, Depends(get_db)]) -> None: ...


@app.on(placed)
async def whole(message: Message[Order]) -> list[Message[Invoice]]:
    return [invoiced(Invoice(1))]


@app.on(placed)
async def bare(message: Message[object]) -> None: ...


@app.on(placed, live=True)
def sync(order: Order) -> None: ...


@app.on(placed)
def gen(order: Order) -> Iterator[Message[Invoice]]:
    yield invoiced(Invoice(1))


@app.on(placed)
async def agen(order: Order) -> AsyncIterator[Message[Invoice]]:
    yield invoiced(Invoice(1))


@app.on(placed)
def wide(order: object) -> None: ...


@app.on(either)
async def uni(x: Order | Refund) -> None: ...


@app.on(placed, batch=500, within="50ms")
async def index(orders: list[Order]) -> None: ...


@app.on(placed, batch=500)
async def index2(orders: Sequence[Order]) -> None: ...


@app.on(placed, batch=500)
async def index3(orders: list[Message[Order]]) -> None: ...


@app.on(placed, to=invoiced)
async def conv(order: Order) -> Invoice:
    return Invoice(1)


@app.on(placed, to=invoiced)
async def conv2(order: Order) -> Invoice | None:
    return None


@app.on(placed, to=invoiced)
async def conv3(order: Order) -> AsyncIterator[Invoice]:
    yield Invoice(1)


@app.on(placed, to=invoiced)
def conv4(order: Order) -> Invoice:
    return Invoice(1)


@app.on("a.*.b", concurrency=64)
async def pat(order: Order, message: Message[Order]) -> None: ...


@app.on("a.>", live=True)
def show(order: dict[str, int]) -> None: ...


@app.on("a.>", batch=10, within="1s")
async def bulk(orders: list[Order]) -> None: ...


@app.on("a.*.b", to=invoiced)
async def pat2(order: Order) -> Invoice:
    return Invoice(1)


@app.answer(prices)
async def quote(q: Quote) -> Price:
    return Price(1)


@app.answer(prices)
async def quotes(q: Quote, db: Annotated[Db, Depends(get_db)]) -> AsyncIterator[Price]:
    yield Price(1)


@app.answer("x")
async def anyq(q: Quote) -> Price:
    return Price(1)


@app.every("5s")
async def sample() -> Message[Order]:
    return placed(Order("1"))


@app.cron("0 9 * * 1-5", tz="Europe/Rome", each=True)
def morning() -> None: ...


router = Router()


@router.on(placed, group="audit", start="first", ordered=True, backoff=Backoff(attempts=3, first="1s"), breaker=None)
async def audit(order: Order, device: str = "") -> None: ...


app.include(router)


class Handlers:
    @app.on("m.x")
    async def meth(self, order: Order) -> None: ...


async def main() -> None:
    async with app:
        await app.publish(placed, Order("1"), key="1", delay="10m")
        await app.publish(placed(Order("1"), key="k", delay="1m", priority=3))
        await app.publish_many([placed(Order("1")), invoiced(Invoice(1))])
        assert_type(await app.request(prices, Quote("x"), timeout="2s"), Price)
        assert_type(await app.request("prices.quote", Quote("x"), Price, timeout=2), Price)
        async for p in app.request_stream(prices, Quote("x")):
            assert_type(p, Price)
    assert_type(await bill(Order("1")), Message[Invoice])
    assert_type(await conv(Order("1")), Invoice)
    assert_type(await conv2(Order("1")), Invoice | None)
    assert_type(conv4(Order("1")), Invoice)
    assert_type(sync(Order("1")), None)
    assert_type(await quote(Quote("x")), Price)
    assert_type(await anyq(q=Quote("x")), Price)
    async for m in agen(Order("1")):
        assert_type(m, Message[Invoice])
    async for i in conv3(Order("1")):
        assert_type(i, Invoice)
    await app.publish(Topic("a.{device}", Order).bind(device=token("a.7")), Order("1"), id="x", expires=5)
    app.override(get_db, lambda: Db())
    async with app.connect() as connected:
        assert_type(connected, App)
    await inject(Order("1"), placed(Order("1")), app, Db())


def script() -> None:
    with connect("sqlite:///x", name="web") as bus:
        assert_type(bus, Client)
        bus.publish(placed, Order("1"), key="1", delay="10m")
        bus.publish(placed(Order("1")))
        bus.publish_many([placed(Order("1")), invoiced(Invoice(1))])
        assert_type(bus.request(prices, Quote("x"), timeout="2s"), Price)
        assert_type(bus.request("prices.quote", Quote("x"), Price), Price)
        for p in bus.request_stream(prices, Quote("x")):
            assert_type(p, Price)
    connect(app).close()
    assert_type(connect(), Client)
