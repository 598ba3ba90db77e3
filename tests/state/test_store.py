"""What a store promises, on every bus that is one: versions, order, due times, and units that are whole or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.state.stores import STORES, consumer_of, message, opened, url_of
from tests.transports.consuming import nothing, take

from tidings.kernel.errors import Conflict
from tidings.kernel.transport import Delivery, Release, Settlement
from tidings.store import ABSENT, Atomic, Record, Store, Unit, Write, new_version

pytestmark = pytest.mark.parametrize("kind", STORES)


def put(key: str, value: bytes, expect: int | None = None, table: str = "t", due: float | None = None) -> Write:
    return Write(table, key, value, expect, due, new_version())


def gone(key: str, expect: int | None = None, table: str = "t") -> Write:
    return Write(table, key, None, expect)


async def kept(store: Store, *keys: str, table: str = "t") -> dict[str, bytes]:
    return {record.key: record.value for record in await store.records(table, keys)}


async def commit(store: Store, *writes: Write) -> Sequence[Any]:
    return await store.commit([Unit(writes)])


async def one(store: Store, key: str) -> Record:
    (record,) = await store.records("t", [key])
    return record


async def test_a_bus_is_a_store_and_its_consumers_are_atomic(kind: str, tmp_path: Path) -> None:
    async with opened(url_of(kind, tmp_path)) as bus:
        consumer = await consumer_of(bus)
        assert isinstance(bus, Store)
        assert isinstance(consumer, Atomic)
        await consumer.close()


async def test_records_are_written_read_and_removed(kind: str, tmp_path: Path) -> None:
    async with opened(url_of(kind, tmp_path)) as bus:
        assert await kept(bus, "a", "b") == {}
        assert not await commit(bus, put("a", b"1"), put("b", b"2"), put("a", b"other", table="u"))
        assert await kept(bus, "a", "b", "c") == {"a": b"1", "b": b"2"}
        assert await kept(bus, "a", table="u") == {"a": b"other"}
        assert not await commit(bus, put("a", b"3"), gone("b"), gone("never there"))
        assert await kept(bus, "a", "b") == {"a": b"3"}


async def test_any_text_is_a_key_and_any_bytes_a_value(kind: str, tmp_path: Path) -> None:
    keys = ["", " ", "ä/ö", "Ω", "\U0001f600", "a'b\"c", "x" * 1000]
    async with opened(url_of(kind, tmp_path)) as bus:
        assert not await commit(bus, *(put(key, key.encode() + b"\0\xff") for key in keys))
        assert await kept(bus, *keys) == {key: key.encode() + b"\0\xff" for key in keys}


@pytest.mark.parametrize("there", [False, True])
async def test_a_version_that_is_not_there_fails_the_whole_unit(kind: str, tmp_path: Path, there: bool) -> None:
    async with opened(url_of(kind, tmp_path)) as bus:
        if there:
            await commit(bus, put("k", b"old"))
        expect = ABSENT if there else new_version()
        (failure,) = await commit(bus, put("other", b"x"), put("k", b"new", expect))
        assert (failure.index, failure.kind) == (0, "rejected")
        assert isinstance(failure.error, Conflict)
        assert (failure.error.table, failure.error.key) == ("t", "k")
        assert await kept(bus, "k", "other") == ({"k": b"old"} if there else {})


async def test_a_version_that_is_there_lets_it_pass(kind: str, tmp_path: Path) -> None:
    async with opened(url_of(kind, tmp_path)) as bus:
        assert not await commit(bus, put("k", b"1", ABSENT))
        assert not await commit(bus, put("k", b"2", (await one(bus, "k")).version))
        assert not await commit(bus, gone("k", (await one(bus, "k")).version))
        assert not await commit(bus, put("k", b"3", ABSENT))
        assert await kept(bus, "k") == {"k": b"3"}


async def test_a_record_made_anew_is_not_the_old_one(kind: str, tmp_path: Path) -> None:
    async with opened(url_of(kind, tmp_path)) as bus:
        await commit(bus, put("k", b"1"))
        stale = (await one(bus, "k")).version
        await commit(bus, gone("k"))
        await commit(bus, put("k", b"1"))
        assert len(await commit(bus, put("k", b"2", stale))) == 1


async def test_units_of_one_call_follow_each_other(kind: str, tmp_path: Path) -> None:
    first, second = put("k", b"1", ABSENT), put("k", b"2")
    chained = Write("t", "k", b"3", second.version, None, new_version())
    async with opened(url_of(kind, tmp_path)) as bus:
        units = [Unit([first]), Unit([put("k", b"no", ABSENT)]), Unit([second]), Unit([chained]), Unit([put("l", b"")])]
        assert [failure.index for failure in await bus.commit(units)] == [1]
        assert await kept(bus, "k", "l") == {"k": b"3", "l": b""}
        after_removal = [Unit([gone("k", chained.version)]), Unit([put("k", b"4", ABSENT)])]
        assert not await bus.commit(after_removal)
        assert await kept(bus, "k") == {"k": b"4"}


async def test_one_of_many_who_read_the_same_wins(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path)
    async with opened(url) as bus, opened(url) as other:
        await commit(bus, put("k", b"0"))
        for _ in range(10):
            before = await one(bus, "k")
            writes = [put("k", b"%d" % n, before.version) for n in range(10)]
            results = await asyncio.gather(*(commit((bus, other)[n % 2], write) for n, write in enumerate(writes)))
            (winner,) = [n for n, failures in enumerate(results) if not failures]
            assert (await one(bus, "k")).value == b"%d" % winner
            assert (await one(other, "k")).version == writes[winner].version


async def test_two_who_make_the_same_record_are_not_both_first(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path)
    async with opened(url) as bus, opened(url) as other:
        for turn in range(20):
            writes = [put(f"k{turn}", b"%d" % n, ABSENT) for n in range(4)]
            results = await asyncio.gather(*(commit((bus, other)[n % 2], write) for n, write in enumerate(writes)))
            assert sum(not failures for failures in results) == 1


async def test_many_keys_in_different_orders_do_not_lock_each_other_out(kind: str, tmp_path: Path) -> None:
    url, keys = url_of(kind, tmp_path), [f"k{n}" for n in range(40)]
    async with opened(url) as bus, opened(url) as other:

        async def write(store: Store, order: list[str], tag: bytes) -> None:
            for n in range(10):
                assert not await store.commit([Unit([put(key, b"%s%d" % (tag, n))]) for key in order])

        async with asyncio.timeout(30):
            await asyncio.gather(write(bus, keys, b"a"), write(other, keys[::-1], b"b"))
        assert set((await kept(bus, *keys)).values()) <= {b"a9", b"b9"}


async def test_scan_goes_by_key_in_the_order_of_its_bytes(kind: str, tmp_path: Path) -> None:
    keys = ["a/1", "a/10", "a/2", "a/Z", "a/a", "a/\u00e4", "a/\uffee", "a/\U0001f600", "a", "b/1", "A/1"]
    async with opened(url_of(kind, tmp_path)) as bus:
        await commit(bus, *(put(key, b"") for key in keys))
        await commit(bus, put("a/3", b"", table="u"), put("", b"", table="v"), put("x", b"", table="v"))
        assert [record.key for record in await bus.scan("v")] == ["", "x"]
        mine = sorted((key for key in keys if key.startswith("a/")), key=str.encode)
        assert [record.key for record in await bus.scan("t", "a/")] == mine
        assert [record.key for record in await bus.scan("t", "a/", mine[2], 3)] == mine[3:6]
        assert [record.key for record in await bus.scan("t")] == sorted(keys, key=str.encode)


async def test_due_records_come_earliest_first_and_only_those(kind: str, tmp_path: Path) -> None:
    async with opened(url_of(kind, tmp_path)) as bus:
        due = [5.0, 1.5, 3.0, 3.0, 9.0]
        await commit(bus, put("timeless", b""), *(put(f"k{n}", b"", due=at) for n, at in enumerate(due)))
        await commit(bus, put("k", b"", table="u", due=1.0))
        assert [record.key for record in await bus.due("t", 5.0)] == ["k1", "k2", "k3", "k0"]
        assert [record.due for record in await bus.due("t", 5.0, 2)] == [1.5, 3.0]
        await commit(bus, put("k1", b"", due=7.0), put("k2", b""))
        assert [record.key for record in await bus.due("t", 5.0)] == ["k3", "k0"]


async def test_size_is_told_and_purging_ends(kind: str, tmp_path: Path) -> None:
    async with opened(url_of(kind, tmp_path)) as bus:
        await commit(bus, *(put(f"k{n}", b"12345", due=float(n)) for n in range(10)), put("timeless", b""))
        await commit(bus, put("\u00e4", b"1", table="a"))
        assert [(t.name, t.records, t.size) for t in await bus.tables()] == [("a", 1, 3), ("t", 11, 78)]
        assert await bus.purge("t", until=4.0, limit=3) == 3
        assert await bus.purge("t", until=4.0) == 2
        assert await bus.purge("t", until=4.0) == 0
        assert len(await bus.scan("t")) == 6
        assert await bus.purge("t") == 6
        assert [t.name for t in await bus.tables()] == ["a"]


async def test_messages_of_a_unit_are_published_with_it(kind: str, tmp_path: Path) -> None:
    async with opened(url_of(kind, tmp_path)) as bus:
        consumer = await consumer_of(bus)
        units = [
            Unit([put("a", b"", ABSENT)], [message("things", 1), message("things", 2)]),
            Unit([put("a", b"", ABSENT)], [message("things", 3)]),
            Unit([put("b", b"", ABSENT)], [message("things", 4)]),
        ]
        assert [failure.index for failure in await bus.commit(units)] == [1]
        assert [d.message.id for d in await take(consumer, 3)] == [f"id-things-{n}" for n in (1, 2, 4)]
        await nothing(consumer)
        await consumer.close()


async def handed(bus: Any, count: int) -> tuple[Any, list[Delivery]]:
    consumer = await consumer_of(bus)
    await bus.publish([message("things", n) for n in range(count)])
    return consumer, await take(consumer, count)


async def test_settling_and_writing_are_one(kind: str, tmp_path: Path) -> None:
    async with opened(url_of(kind, tmp_path)) as bus:
        consumer, (a, b, c) = await handed(bus, 3)
        outputs = await consumer_of(bus, "out", "app.out")
        units = [
            Unit([put("n", b"1", ABSENT)], (), [Settlement(a, outgoing=(message("out", 1),))]),
            Unit([put("n", b"2", ABSENT)], [message("out", 2)], [Settlement(b, outgoing=(message("out", 3),))]),
            Unit([put("m", b"3", ABSENT)], [message("out", 4)], [Settlement(c)]),
        ]
        (failure,) = await consumer.commit(units)
        assert (failure.index, failure.kind) == (1, "unknown")
        assert isinstance(failure.error, Conflict)
        assert await kept(bus, "n", "m") == {"n": b"1", "m": b"3"}
        assert sorted(d.message.id for d in await take(outputs, 2)) == ["id-out-1", "id-out-4"]
        assert not await consumer.settle([Settlement(b, Release())])  # it is still held
        (again,) = await take(consumer, 1)
        assert (again.message.id, again.failures, again.crashes) == ("id-things-1", 0, 0)
        await nothing(outputs)
        for end in (consumer, outputs):
            await end.close()


async def test_units_without_writes_settle_as_ever(kind: str, tmp_path: Path) -> None:
    async with opened(url_of(kind, tmp_path)) as bus:
        consumer, deliveries = await handed(bus, 50)
        assert not await consumer.commit([Unit(settlements=[Settlement(d)]) for d in deliveries])
        await nothing(consumer)
        await consumer.close()
        (group,) = await bus.groups()
        assert (group.lag, group.in_flight, group.parked) == (0, 0, 0)


async def test_a_fenced_settlement_fails_its_unit_and_no_other(kind: str, tmp_path: Path) -> None:
    async with opened(url_of(kind, tmp_path)) as bus:
        consumer, (a, b, c) = await handed(bus, 3)
        outputs = await consumer_of(bus, "out", "app.out")
        assert not await consumer.settle([Settlement(b)])
        units = [
            Unit([put("n", b"")], [message("out", 1)], [Settlement(a), Settlement(b, outgoing=(message("out", 2),))]),
            Unit([put("m", b"")], (), [Settlement(c, outgoing=(message("out", 3),))]),
        ]
        failures = {failure.index: failure.kind for failure in await consumer.commit(units)}
        assert failures == {0: "unknown", 1: "fenced"}
        assert await kept(bus, "n", "m") == {"m": b""}
        assert [d.message.id for d in await take(outputs, 1)] == ["id-out-3"]
        assert not await consumer.settle([Settlement(a)])
        await nothing(outputs)
        await nothing(consumer)
        for end in (consumer, outputs):
            await end.close()


async def test_an_output_that_is_refused_fails_its_unit(kind: str, tmp_path: Path) -> None:
    async with opened(url_of(kind, tmp_path)) as bus:
        consumer, (a, b) = await handed(bus, 2)
        asking = message("_request.nobody", 1, reply_to="_reply.me")
        units = [Unit([put("n", b"")], (), [Settlement(a), Settlement(b, outgoing=(asking,))])]
        failures = {failure.index: failure.kind for failure in await consumer.commit(units)}
        assert failures == {0: "unknown", 1: "rejected"}
        assert await kept(bus, "n") == {}
        assert not await consumer.settle([Settlement(a), Settlement(b)])
        await consumer.close()


async def test_what_a_unit_retries_comes_again(kind: str, tmp_path: Path) -> None:
    async with opened(url_of(kind, tmp_path)) as bus:
        consumer, (a, b) = await handed(bus, 2)
        unit = Unit([put("n", b"")], (), [Settlement(a), Settlement(b, Release())])
        assert not await consumer.commit([unit])
        (again,) = await take(consumer, 1)
        assert again.message.id == "id-things-1"
        await consumer.close()


async def test_records_outlive_those_who_wrote_them(kind: str, tmp_path: Path) -> None:
    if kind == "memory":
        pytest.skip("memory lasts as long as somebody has it open")
    url = url_of(kind, tmp_path)
    async with opened(url) as bus:
        await commit(bus, put("k", b"v", due=2.0))
        before = await one(bus, "k")
    async with opened(url) as bus:
        assert await one(bus, "k") == before
