"""EIP Channel Purger: a group skips what waits for it, and only that; dead letters are given up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.servers import server
from tests.transports.consuming import until

from tidings import App, BusError, Message, Reject, Topic
from tidings.kernel.errors import NotFound, Unsupported
from tidings.kernel.message import new_id
from tidings.kernel.transport import Inspectable
from tidings.letters import fold
from tidings.patterns import purge, purge_dead

placed = Topic("orders.placed", int)


BUSES = ["sqlite", "postgres", "nats"]


def url_of(kind: str, folder: Path) -> str:
    if kind == "sqlite":
        return f"sqlite:///{folder}/bus.db"
    url = server(kind).url
    return f"{url}{'&' if '?' in url else '?'}namespace=p{new_id().replace('-', '')}"


def shop(url: str, bus: str = "") -> tuple[App, list[int]]:
    app, seen = App("shop", url, far=url), list[int]()

    @app.on("orders.>", bus=bus, concurrency=1)
    async def bill(order: int) -> None:
        if order < 0:
            raise Reject("negative")
        seen.append(order)

    @app.on("orders.>", bus=bus, group="shop.other")
    async def other(order: int) -> None: ...

    return app, seen


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_what_waits_is_skipped_by_one_group(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path)
    async with shop(url)[0]:
        pass
    async with (app := shop(url)[0]).connect():
        await app.publish_many([placed(n) for n in range(700)])
        assert await purge(app, "shop.bill") == 700
        assert await purge(app, "shop.bill") == 0
    app, seen = shop(url)
    async with app:
        await app.publish(placed, 1000)
        await until(lambda: seen, "it goes on")
        await until(lambda: app.stats()["shop.other"].handled == 701, "the other group got all")
    assert seen == [1000]


@pytest.mark.parametrize("kind", BUSES)
async def test_dead_letters_are_given_up(kind: str, tmp_path: Path) -> None:
    app, _ = shop(url_of(kind, tmp_path), bus="far")
    async with app:
        await app.publish_many([Message("orders.placed", data=-1 - n, bus="far") for n in range(1200)])
        await until(lambda: app.stats()["shop.bill"].dead == 1200, "all are dead")
        await until(lambda: app.stats()["shop.other"].handled == 1200, "all were handled")
    async with app.connect():
        assert await purge_dead(app, "shop.bill", bus="far") == 1200
        assert await purge_dead(app, "shop.bill", bus="far") == 0
        bus: Any = app.bus("far")
        assert isinstance(bus, Inspectable)
        assert fold(await bus.peek("_dead.shop.bill", limit=10_000)) == []


async def test_a_bus_that_skips_nothing_says_so(tmp_path: Path) -> None:
    app, _ = shop(url_of("nats", tmp_path))
    async with app:
        pass
    async with app.connect():
        await app.publish(placed, 1)
        with pytest.raises(Unsupported, match="NATS does not let"):
            await purge(app, "shop.bill")


async def test_not_while_it_runs_and_not_what_is_not_there(tmp_path: Path) -> None:
    app, _ = shop(f"sqlite:///{tmp_path}/bus.db")
    async with app:
        with pytest.raises(BusError):
            await purge(app, "shop.bill")
        for one in (purge, purge_dead):
            with pytest.raises(NotFound, match=r"shop\.bil") as caught:
                await one(app, "shop.bil")
            assert "did you mean 'shop.bill'?" in caught.value.mend
