"""``transact``: what it returns leaves for any bus of the app, or it is refused; never does it wait for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.state.stores import url_of
from tests.state.test_handlers import receiving
from tests.transports.consuming import until

from tidings import App, Message, State, Table, Topic, transact
from tidings.kernel.errors import InvalidName, NotOpen, WrongReturn

here, there = Topic("here", int), Topic("there", int, bus="second")
numbers = Table("numbers", int)


def two(folder: Path) -> App:
    """An app of two buses that both keep records, without a handler that does."""
    return App("shop", url_of("sqlite", folder), second=url_of("memory", folder))


async def keys(app: App, bus: str = "") -> list[str]:
    store: Any = app.bus(bus)
    return [record.key for record in await store.scan("numbers")]


def giving(result: Any) -> Any:
    async def give(state: State) -> Any:
        state.put(numbers, "a", 1)
        return result

    return give


async def test_a_message_to_another_bus_leaves_though_no_handler_keeps_records(tmp_path: Path) -> None:
    app = two(tmp_path)
    async with receiving(app, there) as arrived:
        await transact(app, giving([there(n, key="k") for n in range(3)]))
        await until(lambda: len(arrived) == 3)
        assert [message.data for message in arrived] == [0, 1, 2]
        assert await keys(app) == ["a"]


async def test_the_bus_that_keeps_the_records_can_be_chosen(tmp_path: Path) -> None:
    app = two(tmp_path)
    async with receiving(app, here) as arrived:
        await transact(app, giving(here(1)), bus="second")
        await until(lambda: arrived)
        assert (await keys(app), await keys(app, "second")) == ([], ["a"])
        with pytest.raises(InvalidName, match="no bus 'secnd'"):
            await transact(app, giving(None), bus="secnd")


async def test_an_app_that_is_only_connected_refuses_what_nobody_would_relay(tmp_path: Path) -> None:
    app = two(tmp_path)
    async with app.connect():
        with pytest.raises(NotOpen, match="only connected"):
            await transact(app, giving(there(1)))
        assert await keys(app) == []
        await transact(app, giving(here(1)))
        assert await keys(app) == ["a"]


@pytest.mark.parametrize(
    ("result", "what"),
    [
        (Topic("typo", int, bus="secnd")(1), "no bus 'secnd'"),
        (5, "returned int"),
        ("text", "returned str"),
        ({"a": 1}, "returned dict"),
        ([here(1), 1], "returned int"),
    ],
    ids=["bus", "int", "str", "dict", "list"],
)
async def test_what_is_no_message_to_a_bus_of_the_app_is_refused_at_its_line(
    result: Message[Any], what: str, tmp_path: Path
) -> None:
    app = two(tmp_path)
    async with app.connect():
        with pytest.raises(WrongReturn, match=what) as told:
            await transact(app, giving(result))
        assert f"{__file__}:{giving.__code__.co_firstlineno + 1}" in str(told.value)
        assert told.value.mend
        assert await keys(app) == []
