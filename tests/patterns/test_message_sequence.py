"""Message Sequence: what is written is read again, on every bus, and what makes no sense is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings import App, Message, Topic
from tidings.kernel.errors import Undecodable
from tidings.patterns import Position, position, sequenced

lines = Topic("orders.lines", int)


def test_parts_are_numbered() -> None:
    parts = sequenced([lines(7), lines(8, key="k", headers={"tenant": "a"}), lines(9)], "order-1")
    assert [position(part) for part in parts] == [Position("order-1", number, 3) for number in range(3)]
    assert [part.data for part in parts] == [7, 8, 9]
    assert (parts[1].key, parts[1].header("tenant")) == ("k", "a")
    last = position(parts[2])
    assert last is not None
    assert last.last
    assert not Position("order-1", 1, 3).last


def test_without_an_id_each_sequence_gets_its_own() -> None:
    (first,), (second,) = sequenced([lines(1)]), sequenced([lines(1)])
    assert first.header("sequence-id") != second.header("sequence-id") != ""


def test_nothing_is_a_sequence_too() -> None:
    assert sequenced([]) == []


def test_a_part_of_a_part_says_the_new_sequence_only() -> None:
    (part,) = sequenced(sequenced([lines(1)], "outer"), "inner")
    assert position(part) == Position("inner", 0, 1)
    assert len(part.headers or ()) == 3


def test_no_part_of_anything() -> None:
    assert position(lines(1)) is None
    assert position(lines(1, headers={"tenant": "a"})) is None


@pytest.mark.parametrize(
    "said",
    [
        {"sequence-id": "a"},
        {"sequence-number": "0", "sequence-size": "1"},
        {"sequence-id": "", "sequence-number": "0", "sequence-size": "1"},
        {"sequence-id": "a", "sequence-number": "1", "sequence-size": "1"},
        {"sequence-id": "a", "sequence-number": "-1", "sequence-size": "1"},
        {"sequence-id": "a", "sequence-number": "x", "sequence-size": "1"},
        {"sequence-id": "a", "sequence-number": "²", "sequence-size": "3"},
        {"sequence-id": "a", "sequence-number": "0", "sequence-size": "9" * 5000},
    ],
)
def test_what_makes_no_sense_is_refused(said: dict[str, str]) -> None:
    with pytest.raises(Undecodable, match="is no place in a sequence"):
        position(lines(1, headers=said))


@given(st.lists(st.integers()), st.text(min_size=1).filter(lambda text: text.isprintable()))
def test_written_and_read(data: list[int], id: str) -> None:
    parts = sequenced(map(lines, data), id)
    assert [position(part) for part in parts] == [Position(id, number, len(data)) for number in range(len(data))]


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
async def test_positions_travel(scheme: str, tmp_path: Path) -> None:
    app = App("shop", "memory://" if scheme == "memory" else f"sqlite:///{tmp_path / 'bus.db'}")
    came: asyncio.Queue[Position | None] = asyncio.Queue()

    @app.on(lines)
    async def pick(message: Message[int]) -> None:
        came.put_nowait(position(message))

    async with app:
        await app.publish_many(sequenced([lines(1, key="k"), lines(2, key="k")], "order-1"))
        found = [await came.get(), await came.get()]
    assert found == [Position("order-1", 0, 2), Position("order-1", 1, 2)]
