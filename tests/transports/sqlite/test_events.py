"""What the bus tells of itself when something goes on that nobody would notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.transports.consuming import until
from tests.transports.sqlite.helpers import Bench, bus, group, message

from tidings.kernel.errors import BusUnavailable
from tidings.kernel.message import Message
from tidings.kernel.transport import Event
from tidings.transports._records import freeze

MIB = b"x" * 2**20


async def test_a_reader_that_stays_is_reported(tmp_path: Path) -> None:
    """It holds up the copying of the write-ahead log, which then grows without bound; without it, it does not."""
    told: list[Event] = []
    async with bus(tmp_path, told, max_size="1GiB") as b:
        for _ in range(80):
            await b.publish([Message("orders.placed", body=MIB)])
        assert not [event for event in told if event.kind == "wal"]
        reader = apsw.Connection(str(tmp_path / "bus.db"), flags=apsw.SQLITE_OPEN_READONLY)
        reader.execute("BEGIN; SELECT seq FROM meta").fetchall()
        for _ in range(80):
            await b.publish([Message("orders.placed", body=MIB)])
        await until(lambda: any(event.kind == "wal" for event in told))
        (event,) = [event for event in told if event.kind == "wal"]
        assert "long transaction" in event.detail
        grown = (tmp_path / "bus.db-wal").stat().st_size
        reader.close()
        for n in range(100):
            await b.publish([message(n)])
        assert (tmp_path / "bus.db-wal").stat().st_size < grown + len(MIB), "reused from its beginning"
    assert not (tmp_path / "bus.db-wal").exists()


@pytest.mark.parametrize("away", [0, 6, 8])
def test_what_retention_takes_from_a_group_without_members_is_reported(tmp_path: Path, away: int) -> None:
    story: Any = Bench(tmp_path / "bus.db", segment_rows=10)
    me = story.member()
    id = story.do(me, me.register, group())
    for n in range(25):
        story.do(me, me.log.append, *freeze([Message("orders.x", body=b"%d" % n)], story.now))
    story.do(me, me.leave, id)
    story.now += away * 86400 + 7200
    events: list[Event] = []
    for _ in range(2):
        story.do(me, me.retain)
        events += me.events
    left = story.do(me, me.claim, id, 100).found.numbers
    if away < 7:
        assert (len(left), events) == (25, [])
    else:
        assert (len(left), {event.kind for event in events}) == (0, {"retention"})
        assert "shop.bill has had no member for 7 days" in events[0].detail
    story.con.close()


async def test_a_file_of_an_older_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with bus(tmp_path):
        pass
    con = apsw.Connection(str(tmp_path / "bus.db"))
    con.execute("PRAGMA user_version = 1")
    con.close()
    before = (tmp_path / "bus.db").read_bytes()
    with pytest.raises(BusUnavailable, match="older Tidings"):
        async with bus(tmp_path):
            pass
    assert (tmp_path / "bus.db").read_bytes() == before
