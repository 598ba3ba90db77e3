"""What is particular to ``memory://``: options, sharing, limits."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tidings.kernel.errors import BusFull, BusUnavailable, InvalidURL
from tidings.kernel.message import Message, new_id
from tidings.kernel.transport import Event, Inspectable, Manageable, Settlement, Subscription
from tidings.schedule import Ticking
from tidings.testing import run_virtual
from tidings.transports.memory import Memory, MemoryTransport


def ignore(event: Event) -> None: ...


def message(topic: str = "a.b", body: bytes = b"x", **fields: Any) -> Message[Any]:
    return Message(topic, body=body, id=new_id(), **fields)


async def opened(**options: Any) -> MemoryTransport:
    transport = Memory(**options).transport()
    await transport.open(ignore)
    return transport


async def joined(transport: MemoryTransport, group: str = "app.g", pattern: str = "a.>", **more: Any) -> Any:
    return await transport.subscribe(Subscription(app="app", pattern=pattern, group=group, **more))


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("memory://", Memory()),
        ("memory://shop", Memory(name="shop")),
        ("memory://shop?lease=1s&messages=10&size=2KiB", Memory("shop", 1.0, 10, 2048)),
        ("memory://?size=1000", Memory(size=1000)),
    ],
)
def test_urls(url: str, options: Memory) -> None:
    assert Memory.from_url(url) == options


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("memory://?leese=1s", "did you mean 'lease'"),
        ("memory://?name=x", "no option 'name'"),
        ("memory://?lease=soon", "lease cannot be 'soon'"),
        ("memory://?size=0", "size cannot be '0'"),
        ("memory://?messages=", "messages cannot be ''"),
    ],
)
def test_wrong_urls(url: str, complaint: str) -> None:
    with pytest.raises(InvalidURL, match=complaint):
        Memory.from_url(url)


def test_protocols() -> None:
    transport = Memory().transport()
    assert isinstance(transport, Inspectable)
    assert isinstance(transport, Manageable)
    assert isinstance(transport, Ticking)


def test_named_buses_are_shared_until_the_last_one_closes() -> None:
    async def main() -> None:
        one, two, private = await opened(name="x"), await opened(name="x"), await opened()
        await one.publish([message()])
        assert len(await two.topics()) == 1
        assert not await private.topics()
        await one.close()
        await one.close()
        assert len(await two.topics()) == 1
        await two.close()
        assert not await (await opened(name="x")).topics()
        with pytest.raises(BusUnavailable):
            await one.publish([message()])

    run_virtual(main())


def test_another_thread_is_refused() -> None:
    async def main() -> None:
        held = await opened(name="threads")
        refused: list[BaseException] = []

        def elsewhere() -> None:
            try:
                asyncio.run(Memory(name="threads").transport().open(ignore))
            except BusUnavailable as error:
                refused.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert refused
        await held.close()

    asyncio.run(main())


@pytest.mark.parametrize("limit", [{"messages": 10}, {"size": 1000}])
def test_backlog_at_the_limit_refuses_and_consuming_makes_room(limit: dict[str, int]) -> None:
    async def main() -> None:
        bus = await opened(**limit)
        consumer = await joined(bus)
        for _ in range(10):
            assert not await bus.publish([message(body=b"x" * 100)])
        (failure,) = await bus.publish([message(body=b"x" * 100)])
        assert (failure.kind, type(failure.error)) == ("rejected", BusFull)
        assert not await bus.publish([message(address="_dead.app.g")]), "dead letters always find room"
        held = await consumer.receive(4)
        assert await bus.publish([message()]), "what is in hand still counts"
        assert not await consumer.settle([Settlement(delivery) for delivery in held])
        for _ in range(4):
            assert not await bus.publish([message(body=b"x" * 100)])
        assert await bus.publish([message()])
        assert len(await consumer.receive(100)) == 10

    run_virtual(main())


def test_without_groups_the_oldest_go() -> None:
    async def main() -> None:
        bus = await opened(messages=10)
        for n in range(50):
            assert not await bus.publish([message(body=b"%d" % n)])
        assert [stored.message.body for stored in await bus.peek("a.b")] == [b"%d" % n for n in range(40, 50)]
        late = await joined(bus, start=0.0)
        assert len(await late.receive(100)) == 10

    run_virtual(main())


def test_a_parked_message_outlives_retention() -> None:
    async def main() -> None:
        from tidings.kernel.transport import Retry

        bus = await opened(messages=10)
        consumer = await joined(bus)
        await bus.publish([message(body=b"first")])
        (delivery,) = await consumer.receive(1)
        await consumer.settle([Settlement(delivery, Retry(60.0, 1))])
        for _ in range(5):
            assert not await bus.publish([message() for _ in range(10)])
            await consumer.settle([Settlement(held) for held in await consumer.receive(10)])
        (again,) = await consumer.receive(10)
        assert (again.message.body, again.failures) == (b"first", 1)

    run_virtual(main())


def test_ordered_can_be_changed_at_rest() -> None:
    async def main() -> None:
        bus = await opened()
        consumer = await joined(bus)
        await bus.publish([message(body=b"%d" % n, key="k") for n in range(6)])
        held = await consumer.receive(3)
        assert len(held) == 3
        await consumer.close()
        consumer = await joined(bus, ordered=True)
        bodies: list[bytes] = []
        while len(bodies) < 6:
            came = await consumer.receive(10)
            bodies += [delivery.message.body for delivery in came]
            assert not await consumer.settle([Settlement(delivery) for delivery in came])
        assert bodies == [b"%d" % n for n in range(6)]

    run_virtual(main())


def test_seek_keeps_what_a_removed_pattern_still_drains() -> None:
    async def main() -> None:
        bus = await opened()
        await (await joined(bus, pattern="a.*")).close()
        await bus.publish([message("a.b"), message("c.d")])
        await (await joined(bus, pattern="c.*")).close()
        await bus.seek("app.g", 0.0)
        consumer = await joined(bus, pattern="c.*")
        assert [delivery.message.topic for delivery in await consumer.receive(10)] == ["a.b", "c.d"]

    run_virtual(main())


def test_idle_members_take_turns() -> None:
    async def main() -> None:
        bus = await opened()
        consumers = [await joined(bus) for _ in range(3)]
        taken = [0, 0, 0]

        async def work(index: int) -> None:
            while held := await consumers[index].receive(1):
                taken[index] += 1
                await consumers[index].settle([Settlement(delivery) for delivery in held])

        working = [asyncio.ensure_future(work(index)) for index in range(3)]
        for _ in range(30):
            await asyncio.sleep(0.01)
            await bus.publish([message()])
        await asyncio.sleep(0.01)
        await bus.close()
        await asyncio.gather(*working)
        assert taken == [10, 10, 10]

    run_virtual(main())


def test_renamed_group_answers_to_its_old_private_address() -> None:
    """Dead letters from before the rename are replayed there."""

    async def main() -> None:
        bus = await opened()
        await (await joined(bus)).close()
        await bus.publish([message(address="_dead.app.g")])
        await bus.rename("app.g", "app.h")
        consumer = await joined(bus, "app.h")
        await bus.publish([message(address="_group.app.g"), message(address="_group.app.h")])
        assert len(await consumer.receive(10)) == 2
        (info,) = await bus.groups()
        assert (info.name, info.dead) == ("app.h", 1)

    run_virtual(main())
