"""What a handler is given, and what it gives back."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from msgspec import Struct
from tests.kernel.rig import until, virtual

from tidings import App, Backoff, Delivery, Depends, Message, Partial, Router, Topic
from tidings.kernel.errors import InvalidHandler
from tidings.letters import DeadLetter


class Order(Struct):
    id: str


class Invoice(Struct):
    order: str
    n: int = 0


placed = Topic("orders.placed", Order)
invoiced = Topic("billing.invoiced", Invoice)
readings = Topic("sensors.{device}.{kind}", float)

QUICK = Backoff(attempts=2, first=0.05, jitter=0)


def app(**more: Any) -> App:
    return App("shop", "memory://", **{"backoff": QUICK, **more})


def sink(a: App, topic: Any = invoiced) -> list[Message[Any]]:
    """What arrives at a topic."""
    came: list[Message[Any]] = []

    async def collect(message: Message[Any]) -> None:
        came.append(message)

    a.on(topic, group="shop.sink")(collect)
    return came


async def letters(a: App, group: str) -> list[DeadLetter]:
    bus: Any = a.bus()
    return [DeadLetter(stored.position, stored.message) for stored in await bus.peek("_dead." + group)]


@virtual
async def test_payload_message_delivery_app_and_captures() -> None:
    a, seen = app(), dict[str, Any]()

    @a.on(readings)
    async def watch(
        reading: float, message: Message[float], delivery: Delivery, owner: App, kind: str, device: str, more: int = 7
    ) -> None:
        seen.update(locals())

    async with a:
        await a.publish(readings.bind(device="a7", kind="t"), 1.5, key="k")
        await until(lambda: bool(seen))
    assert (seen["reading"], seen["device"], seen["kind"], seen["more"]) == (1.5, "a7", "t", 7)
    assert seen["owner"] is a
    message, delivery = seen["message"], seen["delivery"]
    assert (message.data, message.topic, message.key, message.source) == (1.5, "sensors.a7.t", "k", "shop")
    assert message.type == "sensors.{device}.{kind}"
    assert (delivery.attempt, delivery.session.alive) == (1, True)


@virtual
async def test_the_message_instead_of_the_payload() -> None:
    a, seen = app(), list[Any]()

    @a.on(placed)
    async def typed(message: Message[Order]) -> None:
        seen.append(message.data)

    @a.on("orders.*")
    async def patterned(message: Message[Order]) -> None:
        seen.append(message.data)

    @a.on("orders.>")
    async def untyped(message: Message) -> None:  # type: ignore[type-arg]
        seen.append(message.data)

    @a.on("orders.>")
    async def bare(order) -> None:  # type: ignore[no-untyped-def]
        seen.append(order)

    async with a:
        await a.publish(placed, Order("1"))
        await until(lambda: len(seen) == 4)
    assert sorted(map(repr, seen)) == sorted(map(repr, [Order("1"), Order("1"), {"id": "1"}, {"id": "1"}]))


@virtual
async def test_dependencies_nest_are_called_once_and_cleaned_up_in_reverse() -> None:
    a, book = app(), list[str]()

    async def settings() -> str:
        book.append("settings")
        return "dsn"

    async def pool(dsn: Annotated[str, Depends(settings, scope="app")]) -> AsyncIterator[str]:
        book.append("pool opens")
        yield f"pool of {dsn}"
        book.append("pool closes")

    def session(pool: Annotated[str, Depends(pool, scope="app")], message: Message[Any]) -> Iterator[str]:
        book.append("session begins")
        try:
            yield f"session of {pool}"
        except ValueError:
            book.append("session rolls back")
            raise
        finally:
            book.append("session ends")

    async def unit(session: Annotated[str, Depends(session)]) -> AsyncIterator[str]:
        book.append("unit begins")
        yield f"unit in {session}"
        book.append("unit ends")

    @a.on(placed)
    async def bill(
        order: Order, unit: Annotated[str, Depends(unit)], session: Annotated[str, Depends(session)]
    ) -> None:
        book.append(f"handled {order.id} {unit}, {session}")
        if order.id == "bad":
            raise ValueError

    async with a:
        await a.publish(placed, Order("good"))
        await until(lambda: "unit ends" in book)
        opened, book[:] = book[:], []
        await a.publish(placed, Order("bad"))
        await until(lambda: book.count("session ends") == 2)
        assert len(await letters(a, "shop.bill")) == 1
    whole = "session of pool of dsn"
    assert opened == [
        *("settings", "pool opens", "session begins", "unit begins"),
        f"handled good unit in {whole}, {whole}",
        *("unit ends", "session ends"),
    ]
    run = ["session begins", "unit begins", f"handled bad unit in {whole}, {whole}"]
    assert book == [
        *run,
        "session rolls back",
        "session ends",
        *run,
        "session rolls back",
        "session ends",
        "pool closes",
    ]


@virtual
async def test_app_dependencies_are_made_at_each_opening_for_all_handlers() -> None:
    a, made = app(), list[str]()

    def pool() -> Iterator[int]:
        made.append("open")
        yield len(made)
        made.append("close")

    seen: list[int] = []

    @a.on(placed)
    async def one(order: Order, pool: Annotated[int, Depends(pool, scope="app")]) -> None:
        seen.append(pool)

    @a.on(placed)
    async def two(order: Order, pool: Annotated[int, Depends(pool, scope="app")]) -> None:
        seen.append(pool)

    for _ in range(2):
        async with a:
            await a.publish(placed, Order("1"))
            await until(lambda: len(seen) >= 2)
        assert len(set(seen)) == 1
        seen.clear()
    assert made == ["open", "close"] * 2


@virtual
async def test_overriding_a_dependency() -> None:
    a, seen = app(), list[str]()

    def token() -> str:
        return "real"

    async def fake(message: Message[Any]) -> str:
        return "fake " + message.topic

    @a.on(placed)
    async def bill(order: Order, token: Annotated[str, Depends(token)]) -> None:
        seen.append(token)

    async with a:
        await a.publish(placed, Order("1"))
        await until(lambda: len(seen) == 1)
    a.override(token, fake)
    async with a:
        await a.publish(placed, Order("1"))
        await until(lambda: len(seen) == 2)
    assert seen == ["real", "fake orders.placed"]


@virtual
async def test_a_dependency_cannot_swallow_its_handlers_failure() -> None:
    """One that forgets to raise again would turn every failure into a success, and lose the message."""
    a = app()

    def forgetful() -> Iterator[None]:
        with contextlib.suppress(Exception):
            yield

    @a.on(placed)
    async def bill(order: Order, nothing: Annotated[None, Depends(forgetful)]) -> None:
        raise ValueError("lost?")

    async with a:
        await a.publish(placed, Order("1"))
        await until(lambda: a.stats()["shop.bill"].dead + a.stats()["shop.bill"].handled > 0)
        (letter,) = await letters(a, "shop.bill")
        assert letter.error == "ValueError"


@pytest.mark.parametrize("order", ["dependency", "cleanup"])
@virtual
async def test_a_failing_dependency_is_a_failure(order: str) -> None:
    a = app()

    def broken() -> Iterator[int]:
        if order == "dependency":
            raise KeyError("broken")
        yield 1
        raise KeyError("broken")

    @a.on(placed)
    async def bill(order: Order, broken: Annotated[int, Depends(broken)]) -> Message[Invoice]:
        return invoiced(Invoice(order.id))

    came = sink(a)
    async with a:
        await a.publish(placed, Order("1"))
        await until(lambda: a.stats()["shop.bill"].dead == 1)
        await asyncio.sleep(1)
    assert came == []


# -- outputs


@virtual
async def test_what_a_handler_may_return() -> None:
    a = app()

    @a.on(placed)
    async def nothing(order: Order) -> None: ...

    @a.on(placed)
    async def one(order: Order) -> Message[Invoice]:
        return invoiced(Invoice("one"), key="k", headers={"h": "v"})

    @a.on(placed)
    async def several(order: Order) -> list[Message[Invoice]]:
        return [invoiced(Invoice("several", n)) for n in range(2)]

    @a.on(placed)
    async def generated(order: Order) -> AsyncIterator[Message[Invoice]]:
        for n in range(2):
            yield invoiced(Invoice("generated", n))

    @a.on(placed, run="loop")
    def plain(order: Order) -> Iterator[Message[Invoice]]:
        yield invoiced(Invoice("plain"))

    @a.on(placed, to=invoiced)
    async def payload(order: Order) -> Invoice | None:
        return Invoice("payload") if order.id == "1" else None

    @a.on(placed, to=invoiced)
    async def payloads(order: Order) -> AsyncIterator[Invoice]:
        for n in range(2):
            yield Invoice("payloads", n)

    came = sink(a)
    async with a:
        await a.publish(placed, Order("1"))
        await a.publish(placed, Order("2"))
        await until(lambda: len(came) >= 17)
        await asyncio.sleep(1)
    made = sorted((m.data.order, m.data.n) for m in came)
    twice = [("one", 0), ("several", 0), ("several", 1), ("generated", 0), ("generated", 1), ("plain", 0)]
    twice += [("payloads", 0), ("payloads", 1)]
    assert made == sorted([*twice, *twice, ("payload", 0)])
    output = next(m for m in came if m.data.order == "one")
    assert (output.key, output.header("h"), output.source, output.type) == ("k", "v", "shop", "billing.invoiced")
    assert output.causation_id
    assert output.correlation_id == output.causation_id


@pytest.mark.parametrize("result", [7, "text", b"bytes", {"a": 1}, [1], [None], Order("1")], ids=repr)
@virtual
async def test_a_wrong_return_is_dead_at_once(result: Any) -> None:
    a, runs = app(), list[str]()

    @a.on(placed)
    async def bill(order: Order) -> Any:
        runs.append(order.id)
        return result

    async with a:
        await a.publish(placed, Order("1"))
        await until(lambda: a.stats()["shop.bill"].dead == 1)
        (letter,) = await letters(a, "shop.bill")
        assert (letter.reason, letter.error) == ("wrong return type", "WrongReturn")
        assert "which is no message" in letter.message.header("tdgtraceback")
    assert runs == ["1"]


@virtual
async def test_outputs_have_the_same_ids_when_the_handler_runs_again() -> None:
    a, made = app(), list[list[str]]()

    def twice(one: Any) -> Any:
        async def run(delivery: Delivery) -> Any:
            for _ in range(2):
                outgoing = await one(delivery)
                made.append([message.id for message in outgoing])
            return outgoing

        return run

    @a.on(placed, middleware=[twice])
    async def bill(order: Order) -> list[Message[Invoice]]:
        return [invoiced(Invoice(order.id, n)) for n in range(3)]

    came = sink(a)
    async with a:
        await a.publish(placed, Order("1"), id="fixed")
        await until(lambda: len(came) == 3)
    assert made[0] == made[1]
    assert len(set(made[0])) == 3
    assert sorted(m.id for m in came) == sorted(made[0])
    assert {m.causation_id for m in came} == {"fixed"}


@virtual
async def test_undecodable_is_dead_at_once_and_its_neighbours_are_not() -> None:
    a, seen = app(), list[str]()

    @a.on(placed, batch=10, within="100ms")
    async def bill(orders: list[Order]) -> None:
        seen.extend(order.id for order in orders)

    @a.on("orders.placed")
    async def single(order: Order) -> None:
        seen.append("single " + order.id)

    async with a:
        await a.publish_many([placed(Order("1")), Topic("orders.placed")({"no": "id"}), placed(Order("2"))])
        await until(lambda: len(seen) == 4)
        assert sorted(seen) == ["1", "2", "single 1", "single 2"]
        for group in ("shop.bill", "shop.single"):
            (letter,) = await letters(a, group)
            assert (letter.reason, letter.error) == ("undecodable", "Undecodable")
            assert letter.message.body == b'{"no":"id"}'


@virtual
async def test_a_batch_of_messages_and_its_outputs() -> None:
    a, sizes = app(), list[int]()

    @a.on(placed, batch=10, within="100ms")
    async def index(orders: list[Message[Order]]) -> list[Message[Invoice]]:
        sizes.append(len(orders))
        return [invoiced(Invoice(message.data.id)) for message in orders]

    came = sink(a)
    async with a:
        await a.publish_many([placed(Order(str(n)), key="k") for n in range(5)])
        await until(lambda: len(came) == 5)
    assert sizes == [5]
    assert [m.data.order for m in came] == [str(n) for n in range(5)]


@virtual
async def test_a_batch_says_which_of_it_failed() -> None:
    """By their places in the list it was given, where an undecodable one is missing."""
    a, calls = app(), list[list[str]]()

    @a.on(placed, batch=10, within="100ms")
    async def index(orders: list[Order]) -> None:
        calls.append([order.id for order in orders])
        if bad := {n: ValueError(order.id) for n, order in enumerate(orders) if order.id in ("b", "d")}:
            raise Partial(bad)

    async with a:
        sent = [placed(Order(id)) for id in "abcd"]
        await a.publish_many([sent[0], Topic("orders.placed")({"no": "id"}), *sent[1:]])
        await until(lambda: a.stats()["shop.index"].dead == 3)
        assert calls[0] == ["a", "b", "c", "d"]
        assert sorted(id for call in calls[1:] for id in call) == ["b", "d"]
        assert a.stats()["shop.index"].handled == 2
        found = {(letter.error, letter.message.header("tdgdetail")) for letter in await letters(a, "shop.index")}
        assert {error for error, _ in found} == {"ValueError", "Undecodable"}
        assert {detail[-1] for error, detail in found if error == "ValueError"} == {"b", "d"}


async def test_a_handler_called_in_a_test() -> None:
    a = app()

    @a.on(placed)
    async def bill(order: Order) -> Message[Invoice]:
        return invoiced(Invoice(order.id), key=order.id)

    assert await bill(Order("1")) == invoiced(Invoice("1"), key="1")
    assert await bill(Order("1")) != invoiced(Invoice("2"), key="1")


# -- threads


async def test_plain_functions_run_in_threads_with_all_that_is_injected() -> None:
    a, seen = app(), list[Any]()

    async def pool() -> AsyncIterator[str]:
        yield "pool"

    def session(pool: Annotated[str, Depends(pool, scope="app")]) -> Iterator[str]:
        yield f"session of {pool}"
        seen.append("closed")

    @a.on(readings)
    def watch(
        reading: float, message: Message[float], device: str, owner: App, session: Annotated[str, Depends(session)]
    ) -> Iterator[Message[Invoice]]:
        seen.append((threading.current_thread() is threading.main_thread(), reading, device, session, owner is a))
        yield invoiced(Invoice(device))

    @a.on(readings, run="loop")
    def tiny(reading: float) -> None:
        seen.append(threading.current_thread() is threading.main_thread())

    came = sink(a)
    async with asyncio.timeout(20), a:
        await a.publish(readings.bind(device="a7", kind="t"), 1.5)
        await until(lambda: bool(came) and len(seen) == 3)
    assert (False, 1.5, "a7", "session of pool", True) in seen
    assert True in seen
    assert "closed" in seen
    assert came[0].data == Invoice("a7")


async def test_threads_fail_retry_and_keep_their_keys_order() -> None:
    a, done = app(backoff=Backoff(attempts=50, first=0.001, factor=1)), list[int]()
    failed: set[int] = set()

    @a.on(Topic("n", int), concurrency=4)
    def work(n: int, message: Message[int]) -> None:
        if n % 7 == 0 and n not in failed:
            failed.add(n)
            raise ValueError
        done.append(n)

    async with asyncio.timeout(30), a:
        await a.publish_many([Topic("n", int)(n, key=str(n % 5)) for n in range(500)])
        await until(lambda: len(done) == 500)
    assert sorted(done) == list(range(500))
    assert len(failed) == 72
    for key in range(5):
        assert [n for n in done if n % 5 == key] == list(range(key, 500, 5))


@virtual
async def test_routers_bring_their_handlers() -> None:
    a, r, inner, seen = app(), Router(), Router(), list[str]()

    @inner.on(placed)
    async def bill(order: Order) -> None:
        seen.append("bill")

    @r.on(placed, group="shop.other")
    async def ship(order: Order) -> None:
        seen.append("ship")

    r.include(inner)
    a.include(r)
    async with a:
        assert sorted(a.stats()) == ["shop.bill", "shop.other"]
        await a.publish(placed, Order("1"))
        await until(lambda: len(seen) == 2)
    assert sorted(seen) == ["bill", "ship"]


def test_an_async_override_in_a_thread_is_refused() -> None:
    """As an async dependency is: its coroutine would be injected."""
    a = app()

    def token() -> str:
        return "real"

    async def fake() -> str:
        return "fake"

    @a.on(placed)
    def bill(order: Order, token: Annotated[str, Depends(token)]) -> None: ...

    a.override(token, fake)

    async def main() -> None:
        async with a:
            pass

    with pytest.raises(InvalidHandler, match="async"):
        asyncio.run(main())
