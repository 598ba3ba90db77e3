"""Uses of patterns and of state that type checkers must refuse: each line that is marked so."""

from __future__ import annotations

from msgspec import Struct

from tidings import App, Message, Service, State, Table, Topic
from tidings.patterns import (
    Detour,
    Lookup,
    Probe,
    Process,
    ProcessManager,
    RoutingSlip,
    Rule,
    SmartProxy,
    Tumbling,
    Window,
    aggregator,
    composed_message_processor,
    debounce,
    dynamic_router,
    load_balancer,
    multicast,
    normalizer,
    polling_consumer,
    recipient_list,
    resequencer,
    scatter_gather,
    splitter,
    windowed,
)


class Order(Struct):
    id: str


class Line(Struct):
    order: str


class Invoice(Struct):
    n: int


app = App("shop", "memory://")
orders, lines, invoices = Topic("orders", Order), Topic("lines", Line), Topic("invoices", Invoice)
prices, costs = Service("prices", Order, int), Service("costs", Order, str)
balances = Table("balances", int)
rules = Topic("rules", Rule[int])


@splitter(app, orders, to=lines)  # wrong: it takes another payload
def s1(order: Invoice) -> list[Line]:
    return []


@splitter(app, orders, to=lines)  # wrong: its parts are of another type
def s2(order: Order) -> list[Invoice]:
    return []


@splitter(app, orders, to=lines, key=lambda line: line.ordr)  # wrong: a part has no such attribute
def s3(order: Order) -> list[Line]:
    return []


@recipient_list(app, orders)  # wrong: it takes another payload
def r1(order: Invoice) -> list[Topic[Order]]:
    return []


@recipient_list(app, orders)  # wrong: topics of another type
def r2(order: Order) -> list[Topic[Line]]:
    return []


@aggregator(app, lines, by=lambda line: line.order, size=3, to=orders)  # wrong: a list of another type
def a1(parts: list[Invoice]) -> Order:
    return Order("")


@aggregator(app, lines, by=lambda line: line.order, size=3, to=orders)  # wrong: it makes another type
def a2(parts: list[Line]) -> Invoice:
    return Invoice(1)


@aggregator(app, lines, by=lambda line: line.order, fold=lambda n, line: (n or 0) + 1, to=orders)  # wrong: of a total
def a3(total: str) -> Order:
    return Order("")


@aggregator(app, lines, sise=3, to=orders)  # wrong: misspelt option
def a4(parts: list[Line]) -> Order:
    return Order("")


trips = RoutingSlip(app, "trips", Order)


@trips.step("hotel")  # wrong: it takes another payload
async def t1(trip: Line) -> Order:
    return Order("")


@trips.step("car")  # wrong: it returns another payload
async def t2(trip: Order) -> Line:
    return Line("")


purchases = ProcessManager(app, "purchases", Invoice)


@purchases.on(orders, by=lambda order: order.id)  # wrong: it takes another payload
async def p1(order: Line, process: Process[Invoice]) -> None: ...


@purchases.on(orders, by=lambda order: order.id)  # wrong: a process of another state
async def p2(order: Order, process: Process[Line]) -> None: ...


@purchases.timeout  # wrong: a process of another state
async def p3(process: Process[Line]) -> None: ...


@dynamic_router(app, orders, rules=rules)  # wrong: it takes another payload
def d1(order: Line, most: int) -> bool:
    return True


@dynamic_router(app, orders, rules=rules)  # wrong: rules of another type
def d2(order: Order, most: str) -> bool:
    return True


normal = normalizer(app, "partners.>", to=orders)


@normal.translator(content_type="text/csv")  # wrong: not what it is to become
def n1(text: str) -> Line:
    return Line("")


def count(total: int | None, line: Line) -> int:
    return (total or 0) + 1


@windowed(app, lines, Tumbling("5m"), fold=count, to=invoices)  # wrong: a window of another total
def w1(total: str, window: Window) -> Invoice:
    return Invoice(1)


@windowed(app, lines, Tumbling("5m"), fold=count, to=invoices)  # wrong: it makes another type
def w2(total: int, window: Window) -> Order:
    return Order("")


windowed(app, orders, Tumbling("5m"), fold=count, to=invoices)  # wrong: it folds another payload


@scatter_gather(app, orders, recipients=[orders], replies=invoices, to=lines)  # wrong: answers of another type
def g1(found: list[Line]) -> Line:
    return found[0]


@scatter_gather(app, orders, recipients=[orders], replies=invoices, to=lines)  # wrong: another outcome
def g2(found: list[Invoice]) -> Order:
    return Order("")


@composed_message_processor(app, orders, split=lambda order: [Line("")], parts=lines, results=invoices, to=orders)
def c1(found: list[Invoice]) -> Order:
    return Order("")


@composed_message_processor(app, orders, split=lambda o: [Line("")], parts=lines, results=invoices, to=orders)  # wrong
def c2(found: list[Line]) -> Order:
    return Order("")


resequencer(app, orders, to=lines)  # wrong: a topic of another type
resequencer(app, lines, to=lines, by=lambda line: line.ordr)  # wrong: a payload has no such attribute
multicast(app, orders, orders, lines)  # wrong: a topic of another type
load_balancer(app, orders, {lines: 1})  # wrong: a topic of another type
debounce(app, orders, to=lines, quiet="1s")  # wrong: a topic of another type
Detour(app, orders, to=orders, via=lines)  # wrong: a topic of another type
SmartProxy(app, prices, to=costs)  # wrong: a service of other replies
Probe(app, "p", at=orders, make=lambda: Line(""), to=invoices)  # wrong: it makes another payload


async def fetch(name: str) -> int:
    return 1


async def keep(state: State) -> Message[Line]:
    async with polling_consumer(app, orders, group="g").receive() as message:
        _order: Message[Line] | None = message  # wrong: it takes orders
    state.put(balances, "a", "1")  # wrong: the table keeps ints
    _text: str | None = await state.get(balances, "a")  # wrong: it is an int
    _name: str = await Lookup(fetch)("a")  # wrong: it fetches ints
    await Lookup(fetch)(1)  # wrong: it is asked by str
    return trips.start(Order(""))  # wrong: a message of orders
