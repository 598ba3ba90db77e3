"""Records and readers that are not as they should be: their neighbours are not touched."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import apsw
import pytest
from msgspec.structs import replace
from tests.transports.consuming import settle, take, until
from tests.transports.sqlite.helpers import bodies, bus, group, message

from tidings.kernel.errors import BusUnavailable, TooLarge
from tidings.kernel.message import Message
from tidings.kernel.transport import Event

STRANGE: list[dict[str, Any]] = [{"priority": True}, {"id": 5}, {"headers": (("a", 1),)}, {"time": None}, {"type": 5}]


@pytest.mark.parametrize("fields", STRANGE, ids=lambda fields: next(iter(fields)))
async def test_a_field_of_a_strange_type_jams_nobody(tmp_path: Path, fields: dict[str, Any]) -> None:
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        strange = replace(message(2), **fields)
        await b.publish([message(1), strange, message(3)])
        got = await take(consumer, 3)
        assert sorted(bodies(got)) == [1, 2, 3]
        assert strange in [delivery.message for delivery in got]
        await settle(consumer, got)


async def test_a_live_subscription_that_cannot_read_keeps_nobody_from_waking(tmp_path: Path) -> None:
    told: list[Event] = []
    async with bus(tmp_path, told) as b:
        await b.subscribe(group(">", None))  # type: ignore[arg-type]
        consumer = await b.subscribe(group("orders.>"))
        waiting = asyncio.ensure_future(take(consumer, 1))
        damage = apsw.Connection(str(tmp_path / "bus.db"))
        await b.publish([message(0, "broken.x")])
        damage.set_busy_timeout(5000)
        damage.execute("UPDATE log_1 SET record = x'c1' WHERE seq = 1")
        damage.close()
        await b.publish([message(0, "broken.x"), message(1)])
        (delivery,) = await asyncio.wait_for(waiting, 10)
        assert delivery.message.body == b"1"


async def test_large_and_small_ones_are_read_together_little_by_little(tmp_path: Path) -> None:
    """The average tells nothing of what a stretch weighs."""
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        await b.publish([message(n) for n in range(2000)])
        large = b"x" * (15 * 2**20)
        for n in range(6):
            await b.publish([replace(message(n), body=large), message(n)])
        sizes = [len(d.message.body) for d in await take(consumer, 2012, limit=1000)]
        assert sizes.count(len(large)) == 6
        letters = [replace(message(n), body=large, address="_dead.shop.bill") for n in range(6)]
        for letter in letters:
            await b.publish([letter])
        reader = await b.subscribe(group("_dead.>", "ops.letters", start=0.0))
        assert len(await take(reader, 6, limit=1000)) == 6
        assert len(await b.peek("_dead.>")) == 6


async def test_headers_count_too(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        (failure,) = await b.publish([replace(message(1), headers=(("a", "x" * (18 * 2**20)),))])
        assert isinstance(failure.error, TooLarge)


async def test_a_file_that_was_replaced_is_not_written_to_any_more(tmp_path: Path) -> None:
    """Not even when it comes back: what was refused must not be there twice when it is published again."""
    told: list[Event] = []
    path = tmp_path / "bus.db"
    async with bus(tmp_path, told) as b:
        await b.publish([message(0)])
        os.rename(path, tmp_path / "away")
        for n in range(3):
            with pytest.raises(BusUnavailable, match="not the file that was opened"):
                await b.publish([message(n + 1)])
        os.rename(tmp_path / "away", path)
        with pytest.raises(BusUnavailable, match="not the file that was opened"):
            await b.publish([message(4)])
        await until(lambda: any("not the file" in event.detail for event in told))
        assert sum("not the file" in event.detail for event in told) == 1
    async with bus(tmp_path) as b:
        assert len(await b.peek("orders.>")) <= 2, "at most the first of those that were refused"


async def test_no_false_alarm_of_a_reader(tmp_path: Path) -> None:
    told: list[Event] = []
    async with bus(tmp_path, told) as b:
        for _ in range(3):
            await b.publish([Message("orders.placed", body=b"x" * (10 * 2**20)) for _ in range(8)])
    assert [event for event in told if event.kind == "wal"] == []
