"""Splitter: every part once, numbered, in order, with the settlement of what was split."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from tests.transports.consuming import until

from tidings import App, Backoff, Message, Router, Topic
from tidings.kernel.errors import InvalidHandler, InvalidOption
from tidings.kernel.transport import Inspectable
from tidings.patterns import Position, position, splitter


class Line(Struct):
    sku: str
    count: int = 1


class Order(Struct):
    id: str
    lines: list[Line]


orders = Topic("orders.placed", Order)
lines = Topic("orders.lines", Line)
ORDER = Order("o1", [Line("nut", 3), Line("bolt"), Line("nut")])

each_bus = pytest.mark.parametrize("scheme", ["memory", "sqlite"])


def url(scheme: str, folder: Path) -> str:
    return "memory://" if scheme == "memory" else f"sqlite:///{folder / 'bus.db'}"


def as_list(order: Order) -> list[Line]:
    return order.lines


async def awaited(order: Order) -> list[Line]:
    return order.lines


def yielding(order: Order) -> Iterator[Line]:
    yield from order.lines


async def streaming(message: Message[Order]) -> AsyncIterator[Line]:
    for line in message.data.lines:
        yield line


def listen(app: App, topic: Any = lines) -> list[Message[Line]]:
    came: list[Message[Line]] = []

    async def heard(message: Message[Line]) -> None:
        came.append(message)

    app.on(topic, concurrency=1)(heard)
    return came


@each_bus
@pytest.mark.parametrize("fn", [as_list, awaited, yielding, streaming])
async def test_every_part_once_and_numbered(scheme: str, fn: Any, tmp_path: Path) -> None:
    app = App("shop", url(scheme, tmp_path))
    came = listen(app)
    assert splitter(app, orders, to=lines)(fn) is fn
    async with app:
        await app.publish(orders, ORDER, key="customer", id="m1")
        await until(lambda: len(came) == 3)
        assert f"shop.{fn.__name__}" in app.stats()
    assert [message.data for message in came] == ORDER.lines
    assert [position(message) for message in came] == [Position("m1", number, 3) for number in range(3)]
    assert {message.key for message in came} == {"customer"}
    assert {(message.causation_id, message.correlation_id) for message in came} == {("m1", "m1")}


async def test_a_key_of_each_part() -> None:
    app = App("shop", "memory://")
    came = listen(app)
    splitter(app, orders, to=lines, key=lambda line: line.sku)(as_list)
    async with app:
        await app.publish(orders, ORDER, key="customer")
        await until(lambda: len(came) == 3)
    assert [message.key for message in came] == ["nut", "bolt", "nut"]


@each_bus
async def test_no_part_at_all(scheme: str, tmp_path: Path) -> None:
    app = App("shop", url(scheme, tmp_path))
    came = listen(app)
    splitter(app, orders, to=lines)(as_list)

    @splitter(app, orders, to=lines)
    def nothing(order: Order) -> list[Line]:
        return None  # type: ignore[return-value]

    async with app:
        await app.publish(orders, Order("empty", []))
        await until(lambda: all(app.stats()[f"shop.{name}"].handled == 1 for name in ("as_list", "nothing")))
    assert came == []


async def test_other_parameters_and_options_are_those_of_a_handler() -> None:
    app = App("shop", "memory://")
    regional = Topic("orders.{region}", Order)
    came = listen(app)

    @splitter(app, regional, to=lines, group="mine", concurrency=1)  # type: ignore[arg-type]  # mypy, of **more
    async def parts(order: Order, region: str, message: Message[Order], app: App, **more: Any) -> list[Line]:
        return [Line(f"{app.name} {region} {message.key} {more}")]

    async with app:
        await app.publish(regional.bind(region="north"), ORDER, key="k")
        await until(lambda: len(came) == 1)
        assert list(app.stats()) == ["shop.heard", "mine"]
    assert came[0].data == Line("shop north k {}")


async def test_what_fails_half_way_publishes_nothing_and_is_tried_again(tmp_path: Path) -> None:
    app = App("shop", url("sqlite", tmp_path), backoff=Backoff(first=0.001, jitter=0))
    came, runs = listen(app), iter((False, True))

    @splitter(app, orders, to=lines)
    async def fragile(order: Order) -> AsyncIterator[Line]:
        whole = next(runs)
        for line in order.lines:
            yield line
            if not whole:
                raise ConnectionError

    async with app:
        await app.publish(orders, ORDER)
        await until(lambda: len(came) == 3)
    assert [message.data for message in came] == ORDER.lines


async def test_the_same_parts_have_the_same_ids() -> None:
    """Whoever sees a part twice can tell: by its id, and by its place."""
    found = []
    for _ in range(2):
        app = App("shop", "memory://")
        came = listen(app)
        splitter(app, orders, to=lines)(yielding)
        async with app:
            await app.publish(orders, ORDER, id="m1")
            await until(lambda: len(came) == 3)  # noqa: B023
        found.append([(message.id, position(message)) for message in came])
    assert found[0] == found[1]
    assert len({id for id, _ in found[0]}) == 3


async def test_parts_go_to_another_bus_too() -> None:
    app = App("shop", "memory://", floor="memory://")
    far = Topic("orders.lines", Line, bus="floor")
    came = listen(app, far)
    splitter(app, orders, to=far)(as_list)
    async with app:
        await app.publish(orders, ORDER, id="m1")
        await until(lambda: len(came) == 3)
    assert [position(message) for message in came] == [Position("m1", number, 3) for number in range(3)]


@pytest.mark.parametrize(
    "result", ["nut", b"nut", {"nut": 1}, {"nut"}, frozenset("nut"), 7, Line("nut"), lines(Line("nut"))]
)
async def test_what_is_no_sequence_of_parts_is_a_dead_letter(result: Any) -> None:
    app = App("shop", "memory://")

    @splitter(app, orders, to=lines)
    def wrong(order: Order) -> Any:
        return result

    async with app:
        await app.publish(orders, ORDER)
        await until(lambda: app.stats()["shop.wrong"].dead == 1)
        bus = app.bus()
        assert isinstance(bus, Inspectable)
        (letter,) = await bus.peek("_dead.shop.wrong")
    assert letter.message.header("tdgreason") == "wrong return type"
    assert f"returned {type(result).__name__}, which is no sequence of parts" in letter.message.header("tdgdetail")
    assert __file__ in letter.message.header("tdgdetail")


def test_what_cannot_be_is_refused_where_it_is_written() -> None:
    app = Router()
    with pytest.raises(InvalidOption, match="to cannot be"):
        splitter(app, orders, to="orders.lines")  # type: ignore[call-overload]
    with pytest.raises(InvalidOption, match="to cannot be"):
        splitter(app, orders, to=Topic("orders.{id}", Line))
    with pytest.raises(InvalidOption, match="key cannot be"):
        splitter(app, orders, to=lines, key="sku")  # type: ignore[call-overload]
    for options in ({"batch": 10}, {"run": "process"}):
        with pytest.raises(InvalidOption, match="one message at a time"):
            splitter(app, orders, to=lines, **options)
    with pytest.raises(InvalidOption, match="has no option 'concurency'"):
        splitter(app, orders, to=lines, concurency=3)(as_list)  # type: ignore[call-overload]
    with pytest.raises(InvalidHandler, match="takes no payload") as caught:

        @splitter(app, orders, to=lines)  # type: ignore[arg-type]
        def none() -> list[Line]:
            return []

    assert caught.value.where.startswith(__file__)
    assert app.registrations == []


def test_the_function_is_meant_whatever_was_imported_before() -> None:
    code = "import tidings.patterns.splitter; from tidings.patterns import splitter; print(callable(splitter))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


async def test_20_000_parts(tmp_path: Path) -> None:
    app, counts, numbers = App("shop", url("sqlite", tmp_path)), Topic("counts", int), Topic("numbers", int)
    seen: list[int] = []

    @splitter(app, counts, to=numbers)
    def count(to: int) -> Iterator[int]:
        yield from range(to)

    @app.on(numbers, batch=1000)
    async def take(batch: list[int]) -> None:
        seen.extend(batch)

    async with app:
        await app.publish(counts, 20_000)
        await until(lambda: len(seen) >= 20_000, within=60)
    assert sorted(seen) == list(range(20_000))
