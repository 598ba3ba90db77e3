"""Message History: what a message has passed travels with what follows from it, and circles end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.transports.consuming import until

from tidings import App, Message, Topic
from tidings.kernel.errors import InvalidOption
from tidings.kernel.transport import Inspectable
from tidings.middleware import instrument
from tidings.patterns import MessageHistory, history

placed, billed, shipped, done = (Topic(f"orders.{name}", int) for name in ("placed", "billed", "shipped", "done"))

each_bus = pytest.mark.parametrize("scheme", ["memory", "sqlite"])


def url(scheme: str, folder: Path) -> str:
    return "memory://" if scheme == "memory" else f"sqlite:///{folder / 'bus.db'}"


@each_bus
@pytest.mark.parametrize("batch", [False, True])
async def test_groups_passed_travel_along(scheme: str, batch: bool, tmp_path: Path) -> None:
    app = App("shop", url(scheme, tmp_path))
    came: asyncio.Queue[Message[int]] = asyncio.Queue()

    @app.on(placed, to=billed)
    def bill(n: int) -> int:
        return n

    if batch:

        @app.on(billed, batch=5)
        async def ship(ns: list[int]) -> list[Message[int]]:
            return [shipped(n, headers={"carrier": "snail"}) for n in ns]

    else:

        @app.on(billed, group="shop.ship")
        async def ship_one(n: int) -> Message[int]:
            return shipped(n, headers={"carrier": "snail"})

    @app.on(shipped)
    async def see(message: Message[int]) -> None:
        came.put_nowait(message)

    instrument(app, MessageHistory())
    async with app:
        await app.publish(placed, 1)
        message = await asyncio.wait_for(came.get(), 20)
    assert history(message) == ["shop.bill", "shop.ship"]
    assert message.header("carrier") == "snail"
    assert history(placed(1)) == []


@each_bus
@pytest.mark.parametrize("batch", [False, True])
async def test_circles_end_in_the_dead_letters(scheme: str, batch: bool, tmp_path: Path) -> None:
    app = App("shop", url(scheme, tmp_path))
    rounds: list[int] = []

    @app.on(placed, to=billed)
    async def bill(n: int) -> int:
        rounds.append(n)
        return n

    if batch:

        @app.on(billed, batch=5, group="shop.again")
        async def again_many(ns: list[int]) -> list[Message[int]]:
            return [placed(n) for n in ns]

    else:

        @app.on(billed, to=placed)
        async def again(n: int) -> int:
            return n

    instrument(app, MessageHistory(loops=3))
    async with app:
        await app.publish(placed, 7)
        bus = app.bus()
        assert isinstance(bus, Inspectable)
        async with asyncio.timeout(20):
            while not (letters := await bus.peek("_dead.shop.bill")):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert rounds == [7, 7, 7]
    letter = letters[0].message
    assert letter.header("tdgreason") == "rejected"
    assert letter.header("tdgdetail") == "it goes in circles: " + "shop.bill > shop.again > " * 3 + "shop.bill"


async def test_in_a_batch_only_what_goes_in_circles_is_rejected() -> None:
    app = App("shop", "memory://")
    seen: list[int] = []

    @app.on(placed, batch=10)
    async def bill(ns: list[int]) -> None:
        seen.extend(ns)

    instrument(app, MessageHistory(loops=1))
    async with app:
        around = {"message-history": "shop.bill"}
        await app.publish_many([placed(1), placed(2, headers=around), placed(3)])
        await app.publish(placed(4, headers=around))
        await until(lambda: app.stats()["shop.bill"].dead == 2)
        await until(lambda: len(seen) == 2)
    assert seen == [1, 3]


async def test_only_the_latest_are_kept() -> None:
    app = App("shop", "memory://")
    came: asyncio.Queue[Message[int]] = asyncio.Queue()

    @app.on(placed, to=done)
    async def bill(n: int) -> int:
        return n

    @app.on(done)
    async def see(message: Message[int]) -> None:
        came.put_nowait(message)

    instrument(app, MessageHistory(limit=3, loops=None))
    async with app:
        await app.publish(placed, 1, headers={"message-history": ", ".join(["shop.bill"] * 1000)})
        message = await asyncio.wait_for(came.get(), 20)
    assert history(message) == ["shop.bill"] * 3


@pytest.mark.parametrize("options", [{"limit": 0}, {"loops": 0}, {"limit": 5, "loops": 6}])
def test_what_means_nothing_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidOption, match="means nothing"):
        MessageHistory(**options)  # type: ignore[arg-type]
