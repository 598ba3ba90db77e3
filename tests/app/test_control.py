"""Orders to the processes of an app: obeyed, answered, recorded; also by those that were not there."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from tests.app import executor_handlers as handlers
from tests.app.test_executors import delivery, recipe
from tests.conformance.engines import engine_bus
from tests.kernel.rig import until, virtual
from tests.servers import server

from tidings import App, Message, Topic
from tidings.control import CONTROL, HOST, Answer, Order, Standing, draft, said, standing
from tidings.executors import Processes
from tidings.kernel.codec import seal
from tidings.kernel.errors import BusFull, NotFound
from tidings.kernel.transport import Inspectable, Subscription, Transport
from tidings.testing.clock import run_virtual
from tidings.testing.faults.proxy import Proxy
from tidings.transports.memory import Memory

placed = Topic("orders.placed", int)

PAUSE, RESUME = Order(group="shop.bill", paused=True, by="ann@desk"), Order(group="shop.bill", paused=False, by="bob")


def shop(bus: Any, seen: list[int], **more: Any) -> App:
    app = App("shop", bus, **more)

    @app.on(placed, concurrency=3)
    async def bill(n: int) -> None:
        seen.append(n)

    return app


@asynccontextmanager
async def desk(bus: Any) -> AsyncIterator[App]:
    """Somebody else on the bus."""
    async with App("desk", bus).connect() as app:
        yield app


async def told(app: App, *orders: Order, answers: int = 1) -> list[Answer]:
    """Give orders to the shop, and wait for so many answers."""
    consumer = await app.bus().subscribe(Subscription(app="desk", pattern=CONTROL + "shop"))
    drafts, came = [draft("shop", order) for order in orders], list[Answer]()
    await app.publish_many(drafts)
    while len(came) < answers:
        for each in await consumer.receive(100):
            ours = each.message.correlation_id in {order.id for order in drafts}
            if isinstance(answer := said(each.message), Answer) and ours:
                came.append(answer)
    consumer.stop()
    await consumer.close()
    return came


async def orders(bus: Transport) -> list[Order]:
    assert isinstance(bus, Inspectable)
    found = [said(stored.message) for stored in await bus.peek(CONTROL + "shop", limit=100_000)]
    return [each for each in found if isinstance(each, Order)]


@virtual
async def test_every_process_obeys_and_answers() -> None:
    bus, seen = Memory(name="obeyed"), list[int]()
    async with desk(bus) as ann, shop(bus, seen), shop(bus, seen):
        answers = await told(ann, PAUSE, answers=2)
        paused = Answer(group="shop.bill", host=HOST, pid=os.getpid(), paused=True, concurrency=3)
        assert answers == [paused, paused]
        await ann.publish(placed, 1)
        await asyncio.sleep(3600)
        assert seen == []
        answers = await told(ann, Order(group="shop.bill", concurrency=7), RESUME, answers=4)
        assert sorted((a.paused, a.concurrency) for a in answers) == [(False, 7), (False, 7), (True, 7), (True, 7)]
        await until(lambda: seen == [1])
        answers = await told(ann, Order(group="shop.bill", concurrency=0), answers=2)
        assert [a.concurrency for a in answers] == [3, 3]


@virtual
async def test_what_is_no_order_is_not_obeyed() -> None:
    bus, seen = Memory(name="junk"), list[int]()
    async with desk(bus) as ann, shop(bus, seen):
        for junk in (1_000_000, "many", -1):
            body = msgspec.json.encode({"kind": "order", "group": "shop.bill", "concurrency": junk})
            order = seal(draft("shop", PAUSE), now=0.0, source="ann")
            assert not await ann.bus().publish([msgspec.structs.replace(order, body=body)])
        await ann.publish(placed, 1)
        await until(lambda: seen == [1])
        assert [answer.concurrency for answer in await told(ann, Order(group="shop.bill", concurrency=2))] == [2]


@virtual
async def test_all_orders_are_obeyed_though_the_first_cannot_be_answered() -> None:
    bus, seen = Memory(name="unanswered", messages=5), list[int]()
    async with desk(bus) as ann, shop(bus, seen) as app:
        app.pause("shop.bill")
        await ann.publish(placed, 1)  # it is not settled, so what comes after it stays, too
        await ann.publish_many([draft("shop", Order(group="shop.bill", concurrency=n)) for n in range(5, 9)])
        with pytest.raises(BusFull):
            await ann.publish(placed, 2)
        await until(lambda: app._workers["shop.bill"].concurrency == 8)


@virtual
async def test_an_order_and_the_apps_own_pause_do_not_undo_one_another() -> None:
    bus, seen = Memory(name="both"), list[int]()
    async with desk(bus) as ann, shop(bus, seen) as app:
        app.pause("shop.bill")
        (answer,) = await told(ann, RESUME)
        assert answer.paused
        assert answer.why == "the app itself has paused it"
        await told(ann, PAUSE)
        app.pause("shop.bill", False)
        await ann.publish(placed, 1)
        await asyncio.sleep(3600)
        assert seen == []
        (answer,) = await told(ann, RESUME)
        assert (answer.paused, answer.why) == (False, "")
        await until(lambda: seen == [1])
        with pytest.raises(NotFound):
            app.pause("shop.bil")


@virtual
async def test_the_latest_order_holds_for_one_that_starts_later(caplog: pytest.LogCaptureFixture) -> None:
    bus, seen = Memory(name="later"), list[int]()
    async with desk(bus) as ann:
        async with shop(bus, seen):
            await told(ann, PAUSE, RESUME, PAUSE, Order(group="shop.bill", concurrency=5, by="bob"), answers=4)
        await ann.publish(placed, 1)
        holds = await standing(ann.bus(), "shop")
        assert holds == {"shop.bill": Standing(True, 5, "bob", holds["shop.bill"].at)}
        caplog.clear()
        async with shop(bus, seen) as app:
            assert "shop.bill is paused until `tidings resume shop.bill`, as bob ordered" in caplog.text
            assert app._workers["shop.bill"].concurrency == 5
            await asyncio.sleep(3600)
            assert seen == []
            await told(ann, RESUME)
            await until(lambda: seen == [1])


@virtual
async def test_what_is_no_order_for_this_process() -> None:
    """Junk, another group, another app's topic: no answer, and nothing is paused."""
    bus, seen = Memory(name="junk"), list[int]()
    async with desk(bus) as ann, shop(bus, seen):
        topic, junk = CONTROL + "shop", ({"kind": "orders"}, b"\xff", "", {"kind": "order"}, [PAUSE], None)
        await ann.publish_many(Message(topic, data=data, type=topic) for data in junk)
        await ann.publish_many([draft("shop", Order(group="shop.bil", paused=True)), draft("shopper", PAUSE)])
        (answer,) = await told(ann, Order(group="shop.bill", concurrency=2))
        assert not answer.paused
        await ann.publish(placed, 1)
        await until(lambda: seen == [1])
    async with desk(bus) as ann, shop(bus, seen):  # nor does it prevent a start
        assert not (await told(ann, Order(group="shop.bill", concurrency=2)))[0].paused


def test_an_order_that_holds_is_said_again_before_retention_forgets_it() -> None:
    """Once a day; not one that no longer holds."""

    async def main() -> None:
        bus, seen = Memory(name="again"), list[int]()
        async with desk(bus) as ann, shop(bus, seen), shop(bus, seen):
            await told(ann, PAUSE, answers=2)
            await asyncio.sleep(3 * 86400)
            again = [order for order in await orders(ann.bus()) if order.again]
            assert 2 <= len(again) <= 6
            assert {(order.paused, order.by) for order in again} == {(True, "ann@desk")}
            await told(ann, RESUME, answers=2)
            before = len(await orders(ann.bus()))
            await asyncio.sleep(3 * 86400)
            assert len(await orders(ann.bus())) == before

    run_virtual(main())


@virtual
async def test_each_bus_has_its_own_orders_and_only_apps_with_groups_listen() -> None:
    here, there, seen = Memory(name="here"), Memory(name="there"), list[int]()
    app = App("shop", here, other=there)

    @app.on(Topic("orders.placed", int, bus="other"))
    async def bill(n: int) -> None:
        seen.append(n)

    @app.on("orders.>", live=True)
    async def show(n: int) -> None: ...

    async with desk(here) as ann, desk(there) as bob, app:
        await ann.publish(draft("shop", PAUSE))
        await told(bob, Order(group="shop.bill", concurrency=2))
        await bob.publish(placed, 1)
        await until(lambda: seen == [1])
        assert (await told(bob, PAUSE))[0].paused
        assert [control.consumer is None for control in app._controls] == [True, False]


async def test_more_threads_than_the_code_says() -> None:
    bus, app = Memory(name="threads"), App("shop", "memory://threads")
    all_there, running = threading.Barrier(6), list[int]()

    @app.on(placed, run="thread", concurrency=2)
    def bill(n: int) -> None:
        running.append(n)
        all_there.wait(20)

    async with asyncio.timeout(30), desk(bus) as ann, app:
        await ann.publish_many([placed(n) for n in range(6)])
        await until(lambda: len(running) == 2)
        await told(ann, Order(group="shop.bill", concurrency=6))
        await until(lambda: app.stats()["shop.bill"].handled == 6)


async def test_more_children_than_the_code_says() -> None:
    executor = Processes(recipe(handlers.who), 1, 60.0)
    try:
        executor.resize(2)
        both = await asyncio.gather(executor([delivery(1)]), executor([delivery(2)]))
        assert len(executor._children) == 2
        assert all(len(outcomes) == 1 for outcomes in both)
        executor.resize(1)
        assert len(await executor([delivery(3)])) == 1
    finally:
        await executor.close()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["nats", "redis", "postgres"])
async def test_an_order_given_while_a_process_was_cut_off(engine: str) -> None:
    """It reads what holds as soon as it is back."""
    direct: Any = engine_bus(engine).url
    url, at, seen = direct(30.0), urlsplit(server(engine).url), list[int]()
    front = Proxy(str(at.hostname), int(at.port or 0))
    async with asyncio.timeout(120), desk(url) as ann, front as proxy:  # noqa: SIM117  # the address is known then
        async with shop(url.replace(f"{at.hostname}:{at.port}", proxy.address), seen) as app:
            worker = app._workers["shop.bill"]
            proxy.partition(refuse=True)
            proxy.reset()
            await ann.publish(draft("shop", PAUSE))
            assert not worker.paused
            proxy.heal()
            await until(lambda: bool(worker.paused), within=60)
            assert proxy.connections > 1
            (answer,) = await told(ann, RESUME)
            assert not answer.paused


def test_who_gives_orders_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a container, whose user has none."""
    from tidings.cli.control import _user

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert _user().endswith(f"@{HOST}")
