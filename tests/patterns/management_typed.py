"""Uses that type checkers accept and, marked so, uses that they refuse: read by ``test_management_typing.py``."""

from __future__ import annotations

from typing import assert_type

from msgspec import Struct

from tidings import App, Message, Service, Topic
from tidings.control import Order
from tidings.patterns import ControlBus, Exchange, Probe, Process, ProcessManager, Rate, SmartProxy, command
from tidings.topology import Topology, mermaid, topology


class Shipping(Struct):
    paid: float = 0.0


app = App("shop")
placed, paid = Topic("orders.placed", str), Topic("orders.paid", float)
prices, pricing, words = Service("prices", str, float), Service("pricing", str, float), Service("words", str, str)

orders = ProcessManager(app, "orders", Shipping)
assert_type(orders, ProcessManager[Shipping])


@orders.on(placed, by=lambda id: id, begins=True, group="shop.begin")
async def begin(id: str, process: Process[Shipping]) -> Message[float]:
    assert_type(process.state, Shipping)
    return paid(1.0, key=id)


@orders.on(paid, by=str)
async def pay(message: Message[float], process: Process[Shipping], other: int = 1) -> list[Message[str]]:
    process.state.paid += message.data
    return []


@orders.timeout
async def late(process: Process[Shipping]) -> None: ...


@orders.on(placed, by=lambda id: id)  # wrong: another payload
async def number(id: int, process: Process[Shipping]) -> None: ...


@orders.on(placed, by=lambda id: id)  # wrong: another state
async def other(id: str, process: Process[int]) -> None: ...


@orders.on(placed, by=lambda id: id)  # wrong: no message
async def result(id: str, process: Process[Shipping]) -> int:
    return 1


@orders.timeout  # wrong: another state
async def later(process: Process[int]) -> None: ...


orders.on(paid, by=lambda total: total)  # wrong: no id
orders.on(placed, by=lambda id: id, bacth=3)  # wrong: no such option


def note(exchange: Exchange[str, float]) -> None:
    assert_type(exchange.replies, list[float])


proxy = SmartProxy(app, prices, to=pricing, report=note)
assert_type(proxy, SmartProxy[str, float])
SmartProxy(app, prices, to=words)  # wrong: another reply

Probe(app, "orders", at=placed, make=lambda: "probe", to=paid)
Probe(app, "orders", at=placed, make=lambda: 1, to=paid)  # wrong: another payload

ControlBus(app).switch("detour", lambda on: print(on))
ControlBus(app).switch("detour", len)  # wrong: takes no bool


async def steer() -> None:
    await command(app, "shop", Rate(group="shop.begin", per_second=9.5), Order(group="shop.begin", paused=True))
    await command(app, "shop", "pause")  # wrong: no command


assert_type(topology(app), Topology)
assert_type(mermaid(topology(app)), str)
