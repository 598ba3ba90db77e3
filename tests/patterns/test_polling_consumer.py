"""EIP Polling Consumer: a message when asked for one, settled when the block ends, given back when it does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.kernel.rig import virtual
from tests.transports.consuming import until

from tidings import App, Backoff, Message, Topic
from tidings.kernel.errors import InvalidOption, NotFound
from tidings.patterns import polling_consumer
from tidings.transports.memory import MemoryTransport

placed = Topic("orders.placed", int)
GROUP = "shop.desk"


async def left(app: App) -> int:
    """What the group has not settled."""
    bus = app.bus()
    assert isinstance(bus, MemoryTransport)
    (group,) = await bus.groups(GROUP)
    return group.lag + group.in_flight + group.parked


@virtual
async def test_one_by_one_when_asked() -> None:
    app = App("shop", "memory://")
    desk = polling_consumer(app, placed, group=GROUP)
    async with app:
        await app.publish_many([placed(n) for n in range(5)])
        await asyncio.sleep(60)
        assert await left(app) == 5
        for n in range(5):
            async with desk.receive() as message:
                assert message is not None
                assert message.data == n
                await asyncio.sleep(60)
                assert await left(app) == 5 - n
            await asyncio.sleep(1)
        async with desk.receive("5s") as message:
            assert message is None
        assert app.stats()[GROUP].failed == 0
        assert await left(app) == 0


@virtual
async def test_what_comes_while_one_waits() -> None:
    app = App("shop", "memory://")
    desk = polling_consumer(app, placed, group=GROUP)
    async with app:
        asyncio.get_running_loop().call_later(30, lambda: asyncio.ensure_future(app.publish(placed, 7)))
        async with desk.receive("1m") as message:
            assert message is not None
            assert message.data == 7


@virtual
async def test_an_exception_is_a_failure_of_the_message() -> None:
    app = App("shop", "memory://", backoff=Backoff(attempts=3, first="1ms"))
    desk = polling_consumer(app, placed, group=GROUP)
    async with app:
        await app.publish(placed, 1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                async with desk.receive("1m") as message:
                    assert message is not None
                    _ = message.data / 0
        async with desk.receive("1m") as message:
            assert message is None
        assert app.stats()[GROUP].dead == 1


@virtual
async def test_a_cancelled_block_gives_it_back_uncounted() -> None:
    app = App("shop", "memory://", backoff=Backoff(attempts=1))
    desk = polling_consumer(app, placed, group=GROUP)
    started = asyncio.Event()

    async def work() -> None:
        async with desk.receive():
            started.set()
            await asyncio.Event().wait()

    async with app:
        await app.publish(placed, 1)
        for _ in range(3):
            started.clear()
            task = asyncio.create_task(work())
            await started.wait()
            task.cancel()
            await asyncio.wait({task})
        waiting = asyncio.create_task(desk.receive().__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        async with desk.receive("1m") as message:
            assert message is not None
        assert (app.stats()[GROUP].failed, app.stats()[GROUP].dead) == (0, 0)


@virtual
async def test_an_old_message_is_not_dead_because_nobody_asked() -> None:
    app = App("shop", "memory://")
    desk = polling_consumer(app, placed, group=GROUP)
    async with app:
        await app.publish(Message("orders.placed", data=1, time=1.0))
        await asyncio.sleep(3600)
        async with desk.receive("1m") as message:
            assert message is not None
        await asyncio.sleep(1)
        assert app.stats()[GROUP].dead == 0
        assert await left(app) == 0


@virtual
async def test_past_its_deadline_a_block_has_lost_its_message() -> None:
    app = App("shop", "memory://")
    desk = polling_consumer(app, placed, group=GROUP, timeout="10s")
    async with app:
        await app.publish(placed, 1)
        async with desk.receive() as message:
            await asyncio.sleep(60)
        async with desk.receive("10m") as again:
            assert again == message
        assert app.stats()[GROUP].failed == 1


async def test_processes_share_a_group(tmp_path: Path) -> None:
    url, seen = f"sqlite:///{tmp_path}/bus.db", list[int]()
    apps = [App("shop", url) for _ in range(3)]
    desks = [polling_consumer(app, placed, group=GROUP, concurrency=2) for app in apps]

    async def work(n: int) -> None:
        while True:
            async with desks[n].receive() as message:
                assert message is not None
                seen.append(message.data)
                await asyncio.sleep(0)

    async with apps[0], apps[1], apps[2]:
        tasks = [asyncio.create_task(work(n % 3)) for n in range(6)]
        await apps[0].publish_many([placed(n) for n in range(60)])
        await until(lambda: len(seen) >= 60, "all came")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert sorted(seen) == list(range(60))


async def test_refused() -> None:
    app = App("shop", "memory://")
    with pytest.raises(InvalidOption, match="needs a group"):
        polling_consumer(app, placed)
    desk = polling_consumer(app, placed, group=GROUP)
    with pytest.raises(NotFound):
        async with desk.receive():
            pass
    with pytest.raises(InvalidOption, match="timeout cannot be 'soon'"):
        async with desk.receive("soon"):
            pass
