"""Commands as messages: obeyed in every process, answered, recorded; also by those that start later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.engines import ENGINES, engine_bus
from tests.kernel.rig import until, virtual
from tests.transports.consuming import until as eventually

from tidings import App, Message, NoAnswerer, Topic
from tidings.control import Answer, Order
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import InvalidOption
from tidings.patterns import ControlBus, Level, Rate, Switch, audit, command
from tidings.patterns._commands import Done
from tidings.topology import topology
from tidings.transports.memory import Memory

placed = Topic("orders.placed", int)


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    logger = logging.getLogger("shop.sql")
    yield
    logger.setLevel(logging.NOTSET)


class Shop:
    """An app with a control bus: what it handled when, and which way it went."""

    def __init__(self, bus: Any) -> None:
        self.app = App("shop", bus)
        self.control = ControlBus(self.app)
        self.times, self.batches, self.turned = list[float](), list[float](), list[bool]()

        @self.app.on(placed)
        async def bill(n: int) -> None:
            self.times.append(current_clock().monotonic())

        @self.app.on(placed, batch=10, within="1s")
        async def index(ns: list[int]) -> None:
            self.batches.append(current_clock().monotonic())

        self.control.switch("detour", self.turned.append)


@virtual
async def test_a_rate_is_kept_and_lifted() -> None:
    bus = Memory(name="rate")
    shop = Shop(bus)
    async with App("desk", bus).connect() as desk, shop.app:
        (done,) = await command(desk, "shop", Rate(group="shop.bill", per_second=2.0))
        assert isinstance(done, Done)
        assert (done.of, done.why) == ("rate shop.bill", "")
        await desk.publish_many([placed(n) for n in range(21)])
        await until(lambda: len(shop.times) == 21)
        assert shop.times[-1] - shop.times[0] == pytest.approx(10.0, abs=0.1)
        await command(desk, "shop", Rate(group="shop.index", per_second=1.0))
        await desk.publish_many([placed(n) for n in range(30)])
        await until(lambda: len(shop.batches) >= 3 + 3)
        assert shop.batches[-1] - shop.batches[-2] == pytest.approx(10.0, abs=0.1)
        await until(lambda: len(shop.times) == 51)
        await command(desk, "shop", Rate(group="shop.bill", per_second=0.001))
        await desk.publish_many([placed(n) for n in range(5)])
        await until(lambda: len(shop.times) == 52)  # the others wait for their turn, some of them on the bus
        await asyncio.sleep(10)
        await command(desk, "shop", Rate(group="shop.bill"))
        await until(lambda: len(shop.times) == 56, within=5_000)
        assert not await desk.bus().peek("_dead.>")  # type: ignore[attr-defined]


@virtual
async def test_levels_and_switches_in_every_process() -> None:
    bus, logger = Memory(name="levels"), logging.getLogger("shop.sql")
    one, other = Shop(bus), Shop(bus)
    async with App("desk", bus).connect() as desk, one.app, other.app:
        before = logger.level
        answers = await command(desk, "shop", Level(level="DEBUG", logger="shop.sql"), answers=2)
        assert [getattr(answer, "of", "") for answer in answers] == ["level shop.sql"] * 2
        assert logger.level == logging.DEBUG
        await command(desk, "shop", Level(logger="shop.sql"), answers=2)
        assert logger.level == before
        await command(desk, "shop", Switch(name="detour", on=True), answers=2)
        await command(desk, "shop", Switch(name="detour", on=True), answers=2)
        await command(desk, "shop", Switch(name="detour", on=False), answers=2)
        assert one.turned == other.turned == [True, False]


@virtual
async def test_orders_that_every_app_obeys() -> None:
    bus = Memory(name="orders")
    shop = Shop(bus)
    async with App("desk", bus).connect() as desk, shop.app:
        pause, more = Order(group="shop.bill", paused=True), Order(group="shop.bill", concurrency=5)
        answers = await command(desk, "shop", pause, more)
        assert [(a.paused, a.concurrency) for a in answers if isinstance(a, Answer)] == [(True, 16), (True, 5)]


@virtual
async def test_what_cannot_be_done_is_said() -> None:
    bus = Memory(name="wrong")
    shop = Shop(bus)

    def broken(on: bool) -> None:
        raise OSError("no way")

    shop.control.switch("broken", broken)
    with pytest.raises(InvalidOption, match="already"):
        shop.control.switch("detour", print)
    async with App("desk", bus).connect() as desk, shop.app:
        rate, typo = Rate(group="shop.bil", per_second=1), Switch(name="detuor", on=True)
        fails = Switch(name="broken", on=True)
        for _ in range(2):  # what failed is tried again, and fails again
            told = await command(desk, "shop", rate, typo, fails)
            answers = [answer for answer in told if isinstance(answer, Done)]
            assert [answer.why for answer in answers] == [
                "it has no group 'shop.bil' did you mean 'shop.bill'?",
                "it has no switch 'detuor' did you mean 'detour'?",
                "OSError: no way",
            ]
        with pytest.raises(InvalidOption, match="means nothing"):
            await command(desk, "shop", Rate(group="shop.bill", per_second=-1.0))
        with pytest.raises(NoAnswerer):
            await command(desk, "nowhere", Level(level="DEBUG"))
        await desk.publish(Message("_tidings.control.shop", data={"kind": "riddle"}, type="riddle"))
        await command(desk, "shop", Switch(name="detour", on=True))


async def test_the_latest_command_holds_for_one_that_starts_later(tmp_path: Path) -> None:
    bus = f"sqlite:///{tmp_path}/shop.db"
    async with App("desk", bus).connect() as desk:
        async with Shop(bus).app:
            for on in (True, False, True):
                await command(desk, "shop", Switch(name="detour", on=on, by="ann"))
            await command(desk, "shop", Rate(group="shop.bill", per_second=9.0))
        late = Shop(bus)
        async with late.app:
            assert late.turned == [True]
            assert late.control.paces.known["shop.bill"].throttle is not None
        record = await audit(desk, "shop")
        said = [(entry.said.by, entry.said.on) for entry in record if isinstance(entry.said, Switch)]
        assert said == [("ann", True), ("ann", False), ("ann", True)]
        asked = {entry.id for entry in record if not isinstance(entry.said, Done)}
        assert [entry.answers in asked for entry in record if isinstance(entry.said, Done)] == [True] * 4


@virtual
async def test_what_holds_is_said_again_lest_it_be_forgotten() -> None:
    bus = Memory(name="again")
    async with App("desk", bus).connect() as desk, Shop(bus).app:
        await command(desk, "shop", Switch(name="detour", on=True, by="ann"))
        await asyncio.sleep(130_000)  # a day and a half
        said = [entry.said for entry in await audit(desk, "shop")]
        again = [each for each in said if isinstance(each, Switch) and each.again]
        assert again == [Switch(name="detour", on=True, by="ann", again=True)]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
async def test_on_servers_too_who_starts_later_obeys(engine: str) -> None:
    options = engine_bus(engine).options(3.0)
    first, late = Shop(options), Shop(options)
    async with App("desk", options).connect() as desk, first.app:
        (done,) = await command(desk, "shop", Switch(name="detour", on=True), timeout="30s")
        assert getattr(done, "why", None) == ""
        async with late.app:
            await eventually(lambda: late.turned == [True], "it was told, or asked")
            if engine != "rabbitmq":  # which shows no record
                said = [entry.said for entry in await audit(desk, "shop")]
                assert [each.on for each in said if isinstance(each, Switch)][:1] == [True]
    assert first.turned == [True]


def test_it_is_shown_as_what_it_is() -> None:
    shop = Shop("memory://")
    roles = {node.name: node.role for node in topology(shop.app).nodes.values() if node.kind == "handler"}
    assert roles == {"bill": "", "index": "", "control": "control bus", "record": "control bus"}
