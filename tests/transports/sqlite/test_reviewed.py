"""Bugs of the embedded bus that a reviewer found, each with the test that would have found it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import apsw
from tests.transports.consuming import settle, take
from tests.transports.sqlite.helpers import bodies, bus, group, message

from tidings.kernel.errors import BusError
from tidings.kernel.transport import Retry, Settlement
from tidings.transports.sqlite import SQLite
from tidings.transports.sqlite.claims import Claims
from tidings.transports.sqlite.log import Log
from tidings.transports.sqlite.transport import SQLiteTransport


class BadDisk(Log):
    """A log whose first transaction after a claim cannot be begun."""

    steps: Claims | None = None
    failed = False

    def begin(self, now: float) -> None:
        if self.steps is not None and self.steps.claims and not self.failed:
            self.failed = True
            raise apsw.IOError("disk I/O error")
        super().begin(now)


class OnBadDisk(SQLiteTransport):
    def _log(self, con: apsw.Connection) -> BadDisk:
        return BadDisk(con, 2**30, 1_000_000, 2**30)


async def test_an_io_error_right_after_a_claim_does_not_lose_the_claim(tmp_path: Path) -> None:
    transport = OnBadDisk(SQLite(path=str(tmp_path / "bus.db")))
    await transport.open(lambda event: None)
    log: Any = transport.steps.log
    consumer = await transport.subscribe(group())
    log.steps = transport.steps
    await transport.publish([message(1)])
    held = await take(consumer, 1)
    with contextlib.suppress(BusError):
        await transport.publish([message(2)])
    assert log.failed
    await settle(consumer, held)
    (info,) = await transport.groups()
    assert (info.in_flight, info.parked) == (0, 0)
    await consumer.close()
    await transport.close()


async def test_a_seek_keeps_what_was_parked_under_an_earlier_pattern(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        before = await b.subscribe(group("old.x"))
        await b.publish([message(1, "old.x")])
        (parked,) = await take(before, 1)
        assert not await before.settle([Settlement(parked, Retry(3600.0, 1))])
        await before.close()
        after = await b.subscribe(group("new.x"))
        await b.publish([message(2, "new.x")])
        await settle(after, await take(after, 1))
        await after.close()
        await b.seek("shop.bill", 0.0)
        again = await b.subscribe(group("new.x"))
        got = await take(again, 2)
        assert sorted(bodies(got)) == [1, 2]
        assert [d.failures for d in got] == [0, 0]
