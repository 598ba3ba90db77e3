"""Opening and closing, pausing, stopping; middleware; what an app says of itself."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import pytest
from msgspec import Struct
from msgspec.structs import replace
from tests.kernel.rig import until, virtual

from tidings import App, Backoff, Delivery, Message, Reject, Router, Topic
from tidings.kernel.errors import BusUnavailable, InvalidHandler, NotOpen, Unsupported
from tidings.kernel.handler import Many, One
from tidings.kernel.transport import Event
from tidings.transports.memory import Memory, MemoryTransport, _shared

QUICK = Backoff(attempts=2, first=0.05, jitter=0)


class Order(Struct):
    id: str


placed = Topic("orders.placed", Order)


def app(url: Any = "memory://", **more: Any) -> App:
    return App("shop", url, **{"backoff": QUICK, **more})


def warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


class Keeper:
    """A shared memory bus that outlives the apps of a test."""

    def __init__(self, name: str) -> None:
        self.transport: MemoryTransport = Memory(name=name).transport()

    async def __aenter__(self) -> MemoryTransport:
        await self.transport.open(lambda event: None)
        return self.transport

    async def __aexit__(self, *exc: object) -> None:
        await self.transport.close()


@virtual
async def test_connected_only_nothing_runs() -> None:
    ran: list[str] = []

    def shop() -> App:
        a = app("memory://connected")

        @a.on(placed)
        async def bill(order: Order) -> None:
            ran.append(order.id)

        return a

    async with Keeper("connected"):
        async with shop():
            pass  # the group exists
        async with shop().connect() as a:
            await a.publish(placed, Order("1"))
            await asyncio.sleep(60)
            assert ran == []
            assert a.stats() == {}
        async with shop():
            await until(lambda: ran == ["1"])


@virtual
async def test_what_ran_may_finish_and_nothing_is_lost() -> None:
    ran: list[str] = []

    def shop() -> App:
        a = app("memory://finishing")

        @a.on(placed, concurrency=2)
        async def bill(order: Order) -> None:
            await asyncio.sleep(5)
            ran.append(order.id)

        return a

    async with Keeper("finishing") as bus:
        async with shop() as a:
            await a.publish_many([placed(Order(str(n))) for n in range(6)])
            await asyncio.sleep(2)
        assert sorted(ran) == ["0", "1"]
        (info,) = await bus.groups()
        assert (info.in_flight, info.dead, info.lag + info.parked) == (0, 0, 4)
        async with shop():
            await until(lambda: len(ran) == 6)
    assert sorted(ran) == [str(n) for n in range(6)]


@virtual
async def test_stop_in_a_handler_ends_serve() -> None:
    a, ran = app(), list[str]()

    @a.on(placed, concurrency=1)
    async def bill(order: Order, owner: App) -> None:
        owner.stop()
        await asyncio.sleep(1)
        ran.append(order.id)

    @a.every("10s", each=True)
    async def feed(owner: App) -> None:
        await owner.publish_many([placed(Order("1")), placed(Order("2"))])

    async with asyncio.timeout(100):
        await a.serve()
    assert ran == ["1"]


async def test_sigterm_drains() -> None:
    a, ran = app(), list[str]()

    @a.on(placed)
    async def bill(order: Order) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        ran.append(order.id)

    @a.every("20ms", each=True)
    async def feed(owner: App) -> None:
        await owner.publish(placed, Order("1"))

    opened = asyncio.Event()
    async with asyncio.timeout(10):
        await a.serve(opened.set)
    assert opened.is_set()
    assert ran
    assert set(ran) == {"1"}
    left = [
        number for number in (signal.SIGTERM, signal.SIGINT) if asyncio.get_running_loop().remove_signal_handler(number)
    ]
    assert left == [], "a loop that goes on would ignore Ctrl-C"


@virtual
async def test_pause_and_resume_one_group() -> None:
    a, ran = app(), list[str]()

    @a.on(placed)
    async def bill(order: Order) -> None:
        ran.append("bill " + order.id)

    @a.on(placed)
    async def ship(order: Order) -> None:
        ran.append("ship " + order.id)

    async with a:
        a.pause("shop.bill")
        await a.publish(placed, Order("1"))
        await asyncio.sleep(300)
        assert ran == ["ship 1"]
        a.pause("shop.bill", False)
        await until(lambda: sorted(ran) == ["bill 1", "ship 1"])


@virtual
async def test_stats_and_events() -> None:
    a = app()

    @a.on(placed)
    async def bill(order: Order) -> None:
        if order.id == "bad":
            raise Reject("no")
        if order.id == "odd":
            raise ValueError

    async with a:
        await a.publish_many([placed(Order(id)) for id in ("1", "2", "bad", "odd")])
        await a.publish(Topic("nobody.listens"), {})
        await until(lambda: a.stats()["shop.bill"].dead == 2)
        await until(lambda: a.stats()["shop.bill"].handled == 2)
        assert a.stats()["shop.bill"].failed == 2
        assert a.events["connected"] == 1
        assert a.events["unrouted"] == 1


@virtual
async def test_a_renamed_handler_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    async with Keeper("renamed"):
        old = app("memory://renamed")

        @old.on(placed)
        async def bill(order: Order) -> None: ...

        other = App("other", "memory://renamed")

        @other.on(placed)
        async def look(order: Order) -> None: ...

        async with old, other:
            pass
        async with other:
            await other.publish(placed, Order("1"))
        assert "has no handler" not in warnings(caplog)
        new = app("memory://renamed")

        @new.on(placed)
        async def invoice(order: Order) -> None: ...

        async with new:
            pass
    told = warnings(caplog)
    assert "group shop.bill has no handler" in told
    assert "1 messages wait" in told
    assert "tidings groups rename shop.bill" in told
    assert "other.look" not in told


@virtual
async def test_a_new_group_says_what_it_skips(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def shop(**options: Any) -> App:
        a: Any = app("memory://skipping")

        @a.on("orders.>", **options)  # type: ignore[untyped-decorator]
        async def late(order: Order) -> None:
            seen.append(order.id)

        return cast(App, a)

    async with Keeper("skipping") as bus:
        async with app("memory://skipping").connect() as a:
            await a.publish_many([placed(Order("1")), placed(Order("2"))])
        async with shop():
            await asyncio.sleep(1)
        assert seen == []
        assert "new group shop.late skips 2 retained messages: start='first' would read them" in warnings(caplog)
        caplog.clear()
        async with shop():
            pass
        assert "skips" not in warnings(caplog), "only when it is new"
        await bus.drop("shop.late")
        async with shop(start="first"):
            await until(lambda: seen == ["1", "2"])
        assert "skips" not in warnings(caplog)


class Given(Struct, frozen=True):
    """Options of a transport that is there already."""

    made: Any

    def transport(self) -> Any:
        return self.made


@pytest.mark.parametrize(
    ("feature", "pattern", "options"),
    [
        ("ordered", "orders.placed", {"ordered": True}),
        ("start", "orders.placed", {"start": "first"}),
        ("wildcards", "orders.>", {}),
    ],
)
@virtual
async def test_what_a_bus_cannot_do_is_refused_at_start_up(feature: str, pattern: str, options: Any) -> None:
    async def bill(order: Order) -> None: ...

    less: Any = Memory().transport()
    less.capabilities = replace(less.capabilities, **{feature: "unavailable"})
    a = app(Given(less))
    a.on(pattern, **options)(bill)
    with pytest.raises(Unsupported, match=feature) as refusal:
        async with a:
            pass
    assert refusal.value.where == f"{__file__}:{bill.__code__.co_firstlineno}"
    assert refusal.value.mend
    with pytest.raises(NotOpen):
        a.bus()


@pytest.mark.parametrize("meta", [{"priority": 1}, {"delay": 1}, {"expires": 1}], ids=str)
@virtual
async def test_what_a_bus_cannot_do_is_refused_when_published(meta: Any) -> None:
    less: Any = Memory().transport()
    less.capabilities = replace(less.capabilities, priority="unavailable", delay="unavailable", expiry="unavailable")
    async with app(Given(less)).connect() as a:
        await a.publish(placed, Order("1"))
        with pytest.raises(Unsupported) as refusal:
            await a.publish(placed, Order("1"), **meta)
        assert refusal.value.where.startswith(__file__)


class Dying(MemoryTransport):
    """A bus with a bug: its consumers raise what they must not."""

    async def subscribe(self, subscription: Any) -> Any:
        consumer = await super().subscribe(subscription)

        async def receive(limit: int) -> Sequence[Delivery]:
            raise ZeroDivisionError("a bug of the transport")

        consumer.receive = receive  # type: ignore[method-assign]
        return consumer


@virtual
async def test_a_worker_that_dies_is_not_silent(caplog: pytest.LogCaptureFixture) -> None:
    a = app(Given(Dying(Memory())))

    @a.on(placed)
    async def bill(order: Order) -> None: ...

    told = ""
    try:
        async with a:
            await asyncio.sleep(10)
    except Exception as error:
        told = repr(error)
    told += caplog.text
    assert "a bug of the transport" in told
    b = app(Given(Dying(Memory())))
    b.on(placed)(bill)
    with pytest.raises(ZeroDivisionError):
        await b.serve()


class Unreachable(MemoryTransport):
    async def open(self, notify: Callable[[Event], None]) -> None:
        raise BusUnavailable("no route")


@virtual
async def test_opening_that_fails_leaves_nothing_open() -> None:
    a = app(Memory(name="half-open"), devices=Given(Unreachable(Memory())))
    with pytest.raises(BusUnavailable):
        async with a:
            pass
    assert "half-open" not in _shared
    a.use("memory://", "devices")
    async with a:
        pass


# -- middleware


def noting(book: list[str], name: str) -> Callable[[One], One]:
    def layer(one: One) -> One:
        async def noted(delivery: Delivery) -> Any:
            book.append(f"{name} before")
            try:
                return await one(delivery)
            finally:
                book.append(f"{name} after")

        return noted

    return layer


class ForBoth:
    """A middleware that declares ``many``."""

    def __init__(self, book: list[str]) -> None:
        self.book = book

    def __call__(self, one: One) -> One:
        return noting(self.book, "one")(one)

    def many(self, many: Many) -> Many:
        async def noted(deliveries: Sequence[Delivery]) -> Any:
            self.book.append(f"many {len(deliveries)}")
            return await many(deliveries)

        return noted


@virtual
async def test_middleware_wraps_the_first_outermost() -> None:
    book: list[str] = []
    a = app(middleware=[noting(book, "app1"), noting(book, "app2")])

    @a.on(placed, middleware=[noting(book, "own1"), noting(book, "own2")])
    async def bill(order: Order) -> None:
        book.append("handler")

    async with a:
        await a.publish(placed, Order("1"))
        await until(lambda: len(book) == 9)
    names = ["app1", "app2", "own1", "own2"]
    assert book == [*(f"{n} before" for n in names), "handler", *(f"{n} after" for n in reversed(names))]


@virtual
async def test_middleware_may_refuse_replace_and_see_failures() -> None:
    book: list[str] = []

    def guard(one: One) -> One:
        async def guarded(delivery: Delivery) -> Any:
            if delivery.message.key == "blocked":
                raise Reject("blocked")
            try:
                return await one(delivery)
            except ValueError:
                book.append("saw")
                raise

        return guarded

    a = app(middleware=[guard])

    @a.on(placed)
    async def bill(order: Order) -> Message[int]:
        book.append(order.id)
        raise ValueError

    async with a:
        await a.publish(placed, Order("1"), key="blocked")
        await a.publish(placed, Order("2"))
        await until(lambda: a.stats()["shop.bill"].dead == 2)
    assert book == ["2", "saw", "2", "saw"]


@virtual
async def test_batches_take_only_middleware_for_many() -> None:
    book: list[str] = []

    async def index(orders: list[Order]) -> None:
        book.append("handler")

    a = app(middleware=[noting(book, "single")])
    a.on(placed, batch=5)(index)
    with pytest.raises(InvalidHandler, match="takes batches") as refusal:
        async with a:
            pass
    assert "many" in refusal.value.mend
    assert refusal.value.where.startswith(__file__)
    b = app(middleware=[ForBoth(book)])
    b.on(placed, batch=5, within="50ms")(index)
    async with b:
        await b.publish_many([placed(Order(str(n))) for n in range(3)])
        await until(lambda: b.stats()["shop.index"].handled == 3)
    assert book == ["many 3", "handler"]


async def test_middleware_around_threads() -> None:
    book: list[str] = []
    a, r = app(middleware=[noting(book, "app")]), Router()

    @r.on(placed)
    def bill(order: Order) -> None:
        book.append("handler")
        if order.id == "bad":
            raise Reject("no")

    a.include(r)
    async with asyncio.timeout(10), a:
        await a.publish(placed, Order("1"))
        await until(lambda: a.stats()["shop.bill"].handled == 1)
        await a.publish(placed, Order("bad"))
        await until(lambda: a.stats()["shop.bill"].dead == 1)
    assert book == ["app before", "handler", "app after"] * 2


@virtual
async def test_middleware_around_ticks_and_answers() -> None:
    book: list[str] = []
    a = app(middleware=[noting(book, "app")])

    @a.every("1s", each=True)
    async def tick() -> None: ...

    @a.answer("prices")
    async def answer(n: int) -> int:
        return n

    async with a:
        assert await a.request("prices", 1, int) == 1
        assert book == ["app before", "app after"]
        await asyncio.sleep(1.5)
        assert book == ["app before", "app after"] * 2


@virtual
async def test_handlers_keep_their_own_policy() -> None:
    a, runs = app(), dict[str, int]()
    wait: Callable[[float], Awaitable[None]] = asyncio.sleep

    @a.on(placed)
    async def default(order: Order) -> None:
        runs["default"] = runs.get("default", 0) + 1
        raise ValueError

    @a.on(placed, backoff=Backoff(attempts=5, first=0.01), breaker=None)
    async def own(order: Order) -> None:
        runs["own"] = runs.get("own", 0) + 1
        raise ValueError

    @a.on(placed, timeout="2s", backoff=Backoff(attempts=1))
    async def hung(order: Order) -> None:
        runs["hung"] = runs.get("hung", 0) + 1
        await wait(1000)

    async with a:
        await a.publish(placed, Order("1"))
        await until(lambda: all(s.dead == 1 for s in a.stats().values()))
    assert runs == {"default": 2, "own": 5, "hung": 1}
