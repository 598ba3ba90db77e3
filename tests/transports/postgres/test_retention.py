"""Whole partitions are dropped, the oldest first; never one that a group still needs."""

from __future__ import annotations

import asyncio
import time

from msgspec.structs import replace
from tests.transports.consuming import settle, take
from tests.transports.postgres.helpers import STORE, bus, group, message, raw

from tidings.kernel.topics import DEAD
from tidings.kernel.transport import Event, Retry, Settlement

SMALL = {"segment_rows": 100, "retain": "0s"}


async def sweep(end: object, times: int = 12) -> None:
    for _ in range(times):
        await end.keeper._retain()  # type: ignore[attr-defined]


async def test_what_nobody_needs_is_dropped(place: str) -> None:
    async with bus(place, **SMALL) as end, raw(place) as con:
        consumer = await end.subscribe(group())
        for start in range(0, 500, 50):
            await end.publish([message(n) for n in range(start, start + 50)])
        await sweep(end)
        assert await con.fetchval("SELECT count(*) FROM messages") == 500, "a group has not read it"
        assert await con.fetchval("SELECT count(*) FROM segment") >= 5
        held = await take(consumer, 500)
        await sweep(end)
        assert await con.fetchval("SELECT count(*) FROM messages") >= 400, "it is still in hand"
        await settle(consumer, held)
        await sweep(end)
        assert await con.fetchval("SELECT count(*) FROM messages") == 0
        assert await con.fetchval("SELECT count(*) FROM segment") <= 2
        newest = await con.fetchval("SELECT last_value FROM seq")
        await end.publish([message(1)])
        (again,) = await take(consumer, 1)
        assert again.token > newest >= 500, "numbers are never used again"


async def test_what_is_parked_is_kept(place: str) -> None:
    """Also for others that come after its partition was dropped; and dead letters stay."""
    async with bus(place, **SMALL) as end, raw(place) as con:
        consumer = await end.subscribe(group(ordered=True))
        letter = replace(message(), id="d", address=DEAD + "shop.bill")
        await end.publish([letter, *(message(n, key=f"k{n % 7}") for n in range(300))])
        held = await take(consumer, 300)
        assert not await consumer.settle([Settlement(held[0], Retry(1.5, 2)), *map(Settlement, held[1:])])
        await sweep(end)
        assert await con.fetchval("SELECT count(*) FROM log") == 0
        assert await con.fetchval("SELECT count(*) FROM kept") == 1
        assert [stored.message.id for stored in await end.peek(DEAD + "shop.bill")] == ["d"]
        (info,) = await end.groups()
        assert (info.parked, info.dead) == (1, 1)
        assert info.oldest is not None
        (again,) = await take(consumer, 1)
        assert (again.message.id, again.failures) == (held[0].message.id, 2)
        await settle(consumer, [again])


async def test_time_decides(place: str) -> None:
    """A partition is begun in time, so that small buses forget, too."""
    async with bus(place, retain="2s") as end, raw(place) as con:
        await end.publish([message(1)])
        await asyncio.sleep(1.1)
        await sweep(end)
        await end.publish([message(2)])
        assert await con.fetchval("SELECT count(*) FROM messages") == 2
        await asyncio.sleep(1.2)
        await sweep(end)
        assert [stored.message.id for stored in await end.peek(">")] == ["m2"]


async def test_an_abandoned_group_holds_nothing_back(place: str) -> None:
    told: list[Event] = []
    async with bus(place, told, **SMALL) as end, raw(place) as con:
        await (await end.subscribe(group())).close()
        await end.publish([message(n) for n in range(300)])
        await sweep(end)
        assert await con.fetchval("SELECT count(*) FROM messages") == 300
        await con.execute("UPDATE grp SET seen = seen - 8 * 86400")
        await sweep(end)
        assert await con.fetchval("SELECT count(*) FROM messages") == 0
        assert any(event.kind == "retention" and "shop.bill" in event.detail for event in told)
        consumer = await end.subscribe(group())  # revived
        await end.publish([message(7)])
        await settle(consumer, await take(consumer, 1))


async def test_a_long_reader_stops_nobody(place: str) -> None:
    """Dropping needs the log for a moment: where it cannot have it, it gives up at once and comes back later."""
    async with bus(place, **SMALL) as end, raw(place) as con:
        await end.publish([message(n) for n in range(300)])
        async with con.transaction():
            await con.fetch("SELECT * FROM log")  # pg_dump, or a curious operator
            dropping = asyncio.ensure_future(sweep(end, 1))
            worst = 0.0
            for n in range(50):
                began = time.monotonic()
                failures = await end.publish([message(n)])
                assert not failures, failures[0].error
                worst = max(worst, time.monotonic() - began)
                await asyncio.sleep(0.005)
            assert worst < 1.5, f"publishing waited {worst:.2f} s"
        await asyncio.wait_for(dropping, 60)
        async with asyncio.timeout(30):  # others lock a partition for a moment, too: autovacuum
            while await con.fetchval("SELECT count(*) FROM log") >= 100:
                await sweep(end, 1)


async def test_a_partition_that_is_begun_twice(place: str) -> None:
    """While one process wants to, others publish beyond it: no number is handed out again."""
    async with bus(place, **SMALL) as end, raw(place) as con:
        await end.publish([message(n) for n in range(50)])
        channel, record = await con.fetchrow("SELECT channel, record FROM log LIMIT 1")
        transaction = con.transaction()
        await transaction.start()
        await con.execute(STORE, channel, record, 120)
        beginning = asyncio.ensure_future(sweep(end, 1))
        await asyncio.sleep(0.3)
        await transaction.commit()
        await beginning
        for n in range(300):
            failures = await end.publish([message(n)])
            assert not failures, failures[0].error


async def test_a_new_group_reads_what_is_left(place: str) -> None:
    async with bus(place, segment_rows=100) as end:
        for start in range(0, 350, 50):
            await end.publish([message(n) for n in range(start, start + 50)])
        consumer = await end.subscribe(group(start=0.0))
        came = await take(consumer, 350)
        assert [delivery.message.id for delivery in came] == [f"m{n}" for n in range(350)]
        await settle(consumer, came)
        await consumer.close()
        await end.seek("shop.bill", 0.0)
        assert len(await take(await end.subscribe(group()), 350)) == 350
