"""Publishing: what is said of a message arrives with it; which bus it goes to; who listens."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import replace
from tests.kernel.rig import until, virtual

from tidings import App, Backoff, BusFull, Delivery, Message, PublishFailed, Topic
from tidings.kernel.bus import MARGIN
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import InvalidOption, TooLarge, Unsupported
from tidings.kernel.handler import One, Outgoing
from tidings.transports.memory import MAX_PAYLOAD, Memory


class Order(Struct):
    id: str


placed = Topic("orders.placed", Order)
numbers = Topic("numbers", int)
local = Topic("local.made", int)
remote = Topic("devices.made", int, bus="devices")


def app(**more: Any) -> App:
    return App("shop", "memory://", **more)


def listen(a: App, topic: Any, fn: str = "listen", **options: Any) -> list[tuple[float, Message[Any]]]:
    came: list[tuple[float, Message[Any]]] = []

    async def listener(message: Message[Any]) -> None:
        came.append((current_clock().now(), message))

    a.on(topic, group=f"shop.{fn}", **options)(listener)
    return came


@virtual
async def test_options_arrive() -> None:
    a = app()
    came = listen(a, placed)
    async with a:
        now = current_clock().now()
        headers = {"tenant": "ü", "x": ""}
        await a.publish(placed, Order("1"), key="k", headers=headers, expires="1h", priority=7, id="mine")
        await a.publish(placed(Order("2"), key=None))
        await until(lambda: len(came) == 2)
    first, second = (message for _, message in came)
    assert (first.data, first.key, first.id, first.priority) == (Order("1"), "k", "mine", 7)
    assert first.headers == (("tenant", "ü"), ("x", ""))
    assert first.expires_at == pytest.approx(now + 3600)
    assert (first.type, first.source) == ("orders.placed", "shop")
    assert first.time == pytest.approx(now)
    assert (second.key, second.headers, second.priority, second.correlation_id) == (None, None, 0, None)
    assert second.id


@virtual
async def test_delays() -> None:
    a = app()
    came = listen(a, numbers)
    async with a:
        now = current_clock().now()
        await a.publish(numbers, 3, at=datetime.fromtimestamp(now, UTC) + timedelta(hours=3))
        await a.publish(numbers, 2, delay="2h")
        await a.publish(numbers, 1, delay=timedelta(hours=1))
        await a.publish(numbers, 0, at=datetime.fromtimestamp(now - 100, UTC))
        await asyncio.sleep(4 * 3600)
    assert [(message.data, round((at - now) / 3600, 2)) for at, message in came] == [(0, 0), (1, 1), (2, 2), (3, 3)]


@virtual
async def test_priorities_of_a_backlog() -> None:
    a = app()
    came = listen(a, numbers, concurrency=1)
    async with a:
        a.pause("shop.listen")
        for priority in (0, 9, 5, 9, 0):
            await a.publish(numbers, priority, priority=priority)
        a.pause("shop.listen", False)
        await until(lambda: len(came) == 5)
    assert [message.data for _, message in came] == [9, 9, 5, 0, 0]


@virtual
async def test_what_expires_is_not_handled() -> None:
    a = app()
    came = listen(a, numbers)
    async with a:
        a.pause("shop.listen")
        await a.publish(numbers, 1, expires="5s")
        await a.publish(numbers, 2, expires="1h")
        await asyncio.sleep(10)
        a.pause("shop.listen", False)
        await until(lambda: a.stats()["shop.listen"].expired == 1)
        await until(lambda: [message.data for _, message in came] == [2])


@virtual
async def test_what_is_no_topic_is_told() -> None:
    app = App("shop", "memory://")
    async with app.connect():
        with pytest.raises(InvalidOption, match=r"'orders\.placed' is no topic") as caught:
            await app.publish("orders.placed", {"id": 1})  # type: ignore[call-overload]
    assert 'Topic("orders.placed", Order)' in caught.value.mend


async def test_many_at_once_over_several_buses() -> None:
    a = app(devices="memory://")
    near, far = listen(a, local, "near"), listen(a, remote, "far")
    async with a:
        await a.publish_many([*(local(n) for n in range(50)), *(remote(n) for n in range(50))])
        await a.publish_many([])
        await until(lambda: len(near) == len(far) == 50)
    assert [message.data for _, message in near] == list(range(50))
    assert [message.data for _, message in far] == list(range(50))


@virtual
async def test_outputs_go_to_the_bus_of_their_topic() -> None:
    """Those to another bus are published first; then the input is settled."""
    a = app(devices="memory://")

    @a.on(numbers)
    async def fan(n: int) -> list[Message[Any]]:
        return [local(n), remote(n)]

    @a.on(remote, group="shop.back")
    async def back(n: int, delivery: Delivery) -> Message[int]:
        return local(n + 1000)

    @a.on(numbers, group="shop.to", to=remote)
    async def to(n: int) -> int:
        return n + 100

    near, far = listen(a, local, "near"), listen(a, remote, "far")
    async with a:
        await a.publish(numbers, 1)
        await until(lambda: len(near) == 3 and len(far) == 2)
        await asyncio.sleep(5)
        bus: Any = a.bus()
        assert {info.name for info in await bus.topics()} == {"numbers", "local.made"}
        other: Any = a.bus("devices")
        assert {info.name for info in await other.topics()} == {"devices.made"}
    assert sorted(message.data for _, message in near) == [1, 1001, 1101]
    assert sorted(message.data for _, message in far) == [1, 101]


@virtual
async def test_outputs_to_another_bus_pass_the_middleware() -> None:
    def marking(one: One) -> One:
        async def marked(delivery: Delivery) -> Outgoing:
            return tuple(replace(message, headers=(("seen", "yes"),)) for message in await one(delivery))

        return marked

    a = app(devices="memory://")

    @a.on(numbers, middleware=[marking])
    async def fan(n: int) -> list[Message[Any]]:
        return [local(n), remote(n)]

    near, far = listen(a, local, "near"), listen(a, remote, "far")
    async with a:
        await a.publish(numbers, 1)
        await until(lambda: near and far)
    assert [message.header("seen") for _, message in (*near, *far)] == ["yes", "yes"]


@virtual
async def test_outputs_of_a_batch_go_to_the_bus_of_their_topic() -> None:
    a = App("shop", "memory://", devices=Memory(messages=2), backoff=Backoff(attempts=1))

    @a.on(numbers, batch=3, within="50ms")
    async def fan(several: list[int]) -> list[Message[Any]]:
        return [*(local(n) for n in several), *(remote(n) for n in several)]

    @a.on(remote)
    async def stuck(n: int) -> None:
        await asyncio.sleep(3600)

    near = listen(a, local, "near")
    async with a:
        await a.publish_many([numbers(1), numbers(2)])
        await until(lambda: len(near) == 2)
        await a.publish(numbers, 3)
        await until(lambda: a.stats()["shop.fan"].dead == 1)
        other: Any = a.bus("devices")
        assert [info.messages for info in await other.topics()] == [2]


@virtual
async def test_an_output_to_no_bus_of_the_app_is_not_sent_elsewhere() -> None:
    a = app(backoff=Backoff(attempts=1))

    @a.on(numbers)
    async def fan(n: int) -> Message[int]:
        return remote(n)

    async with a:
        await a.publish(numbers, 1)
        await until(lambda: a.stats()["shop.fan"].dead == 1)
        bus: Any = a.bus()
        assert {info.name for info in await bus.topics("devices.>")} == set()


@virtual
async def test_an_output_another_bus_refuses_fails_its_input() -> None:
    a = App("shop", "memory://", devices=Memory(messages=1), backoff=Backoff(attempts=2, first=0.1))

    @a.on(numbers)
    async def fan(n: int) -> Message[int] | None:
        return remote(n) if n else None

    @a.on(remote)
    async def stuck(n: int) -> None:
        await asyncio.sleep(100_000)

    async with a:
        for n in (1, 2, 0):
            await a.publish(numbers, n)
            await asyncio.sleep(5)
        stats = a.stats()["shop.fan"]
        assert (stats.handled, stats.dead) == (2, 1)
        bus: Any = a.bus()
        (letter,) = await bus.peek("_dead.shop.fan")
        assert letter.message.header("tdgerror") in ("BusFull", "PublishFailed")


@virtual
async def test_bodies_leave_room_for_a_dead_letter() -> None:
    a = app()
    blobs, big = Topic("blobs", bytes), Topic("big", int)

    @a.on(big)
    async def make(n: int) -> Message[bytes]:
        return blobs(b"x" * n)

    came = listen(a, blobs)
    most = MAX_PAYLOAD - MARGIN
    async with a:
        await a.publish(blobs, b"x" * most)
        with pytest.raises(TooLarge, match="Claim Check") as refusal:
            await a.publish(blobs, b"x" * (most + 1))
        assert refusal.value.where.startswith(__file__)
        with pytest.raises(TooLarge):
            await a.publish_many([blobs(b""), blobs(b"x" * (most + 1))])
        await until(lambda: len(came) == 1)
        await a.publish(big, most + 1)
        await until(lambda: a.stats()["shop.make"].failed >= 1)
        assert len(came) == 1


@virtual
async def test_all_or_none_where_the_bus_can() -> None:
    a = App("shop", Memory(messages=10))
    gate = asyncio.Event()

    @a.on(numbers)
    async def hold(n: int) -> None:
        await gate.wait()

    async with a:
        await a.publish_many([numbers(n) for n in range(8)])
        with pytest.raises((PublishFailed, BusFull)) as failure:
            await a.publish_many([numbers(n) for n in range(5)])
        if isinstance(failure.value, PublishFailed):
            assert (failure.value.accepted, failure.value.rejected) == ([], [0, 1, 2, 3, 4])
            assert failure.value.unknown == []
            assert "full" in failure.value.why
        await a.publish_many([numbers(n) for n in range(2)])
        with pytest.raises(BusFull):
            await a.publish(numbers, 0)
        gate.set()
        await until(lambda: a.stats()["shop.hold"].handled == 10)


@virtual
async def test_live_copies_and_no_retries() -> None:
    apps = [App(f"screen{n}", "memory://live") for n in range(2)]
    shown: list[str] = []
    for a in apps:

        async def show(order: Order, owner: App) -> None:
            shown.append(f"{owner.name} {order.id}")
            if order.id == "bad":
                raise ValueError

        a.on("orders.>", live=True)(show)
    async with apps[0], apps[1]:
        await apps[0].publish(placed, Order("1"))
        await apps[0].publish(placed, Order("bad"))
        await apps[0].publish(placed, Order("2"))
        await until(lambda: len(shown) >= 6)
        await asyncio.sleep(60)
        bus: Any = apps[0].bus()
        assert await bus.groups() == []
        assert await bus.peek("_dead.>") == []
        (stats,) = apps[0].stats().values()
        assert (stats.failed, stats.dead, stats.skipped) == (1, 0, 0)
    assert sorted(shown) == sorted(f"screen{n} {id}" for n in range(2) for id in ("1", "bad", "2"))


@virtual
async def test_fan_out_and_competition() -> None:
    shops = [App("shop", "memory://fan-out") for _ in range(2)]
    by: dict[str, list[str]] = {}
    for number, a in enumerate(shops):
        for name in ("bill", "ship"):

            async def handler(order: Order, name: str = name, number: int = number) -> None:
                by.setdefault(name, []).append(order.id)
                by.setdefault(f"{name}{number}", []).append(order.id)
                await asyncio.sleep(0.01)

            handler.__name__ = name
            a.on(placed)(handler)
    async with shops[0], shops[1]:
        await shops[0].publish_many([placed(Order(str(n))) for n in range(200)])
        await until(lambda: len(by.get("bill", ())) == len(by.get("ship", ())) == 200)
        await asyncio.sleep(10)
    for name in ("bill", "ship"):
        assert sorted(by[name], key=int) == [str(n) for n in range(200)]
        assert by[f"{name}0"], "inconclusive: one replica had no work"
        assert by[f"{name}1"], "inconclusive: one replica had no work"


@virtual
async def test_publishing_inside_a_handler_is_independent() -> None:
    a = app(backoff=Backoff(attempts=3, first=0.1))

    @a.on(placed)
    async def bill(order: Order, owner: App) -> Message[int]:
        await owner.publish(local, 1)
        raise ValueError

    came = listen(a, local)
    async with a:
        await a.publish(placed, Order("1"))
        await until(lambda: a.stats()["shop.bill"].dead == 1)
        await until(lambda: len(came) == 3)
    assert len({message.id for _, message in came}) == 3


@pytest.mark.parametrize("url", ["memory://", "sqlite"])
async def test_a_handler_gets_the_same_kind_of_message_on_every_bus(url: str, tmp_path: Path) -> None:
    app, seen = App("shop", url if ":" in url else f"sqlite:///{tmp_path / 'bus.db'}"), list[Message[Any]]()
    end = time.monotonic() + 10

    @app.on(numbers, group="one")
    async def one(message: Message[int]) -> None:
        seen.append(message)

    @app.on(numbers, group="many", batch=10)
    async def many(messages: list[Message[int]]) -> None:
        seen.extend(messages)

    async with app:
        await app.publish(numbers, 7, key="k", headers={"a": "1"})
        while len(seen) < 2:
            assert time.monotonic() < end
            await asyncio.sleep(0.005)
    for message in seen:
        assert type(message) is Message
        assert (message.data, message.key, message.headers) == (7, "k", (("a", "1"),))
        assert msgspec.to_builtins(message)["data"] == 7


async def test_a_transaction_of_ones_own_needs_a_bus_in_that_database() -> None:
    app = App("shop", "memory://")
    async with app.connect():
        with pytest.raises(Unsupported, match="postgresql"):
            await app.publish_in(object(), placed(Order("A7")))
        await app.publish_in(object())  # nothing
