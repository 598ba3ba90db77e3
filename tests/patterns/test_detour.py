"""Detours: one way or the other, and what is passed on is what came."""

from __future__ import annotations

import pytest
from tests.kernel.rig import virtual

from tidings import App, Router, Topic
from tidings.kernel.errors import InvalidOption
from tidings.patterns import ControlBus, Detour, Switch, command
from tidings.testing import running

orders, straight, around = Topic("orders", int), Topic("straight", int), Topic("around", int)


@virtual
async def test_one_way_or_the_other() -> None:
    app, router = App("shop", "memory://"), Router()
    detour = Detour(router, orders, to=straight, via=around)
    app.include(router)
    async with running(app) as captured:
        for number, on in enumerate((False, True, True, False)):
            detour.turn(on)
            await app.publish(orders(number, key="k", headers={"a": "b"}, id=f"m{number}"))
            await captured.idle()
        assert await captured.payloads(straight) == [0, 3]
        assert await captured.payloads(around) == [1, 2]
        message = (await captured.messages("around"))[0]
        assert list(app.stats()) == ["shop.detour_orders"]
    assert (message.key, message.headers, message.causation_id) == ("k", (("a", "b"),), "m1")


@virtual
async def test_the_control_bus_turns_all_processes_and_those_that_start_later() -> None:
    apps, detours = [], []
    for _ in range(3):
        apps.append(App("shop", "memory://turned"))
        detours.append(Detour(apps[-1], orders, to=straight, via=around))
        ControlBus(apps[-1]).switch("inspect", detours[-1].turn)
    async with apps[0], apps[1]:
        await command(apps[0], "shop", Switch(name="inspect", on=True), answers=2)
        assert [detour.on for detour in detours] == [True, True, False]
        async with apps[2]:
            assert detours[2].on
            await command(apps[0], "shop", Switch(name="inspect", on=False), answers=3)
            assert [detour.on for detour in detours] == [False, False, False]


def test_what_cannot_be_is_refused() -> None:
    app, any_way = App("shop", "memory://"), Topic("ways.{name}", int)
    with pytest.raises(InvalidOption, match="to cannot be"):
        Detour(app, orders, to=any_way, via=around)
    with pytest.raises(InvalidOption, match="via cannot be"):
        Detour(app, orders, to=straight, via=any_way)
