"""Records: what only PostgreSQL has of a store. What all stores promise is in ``tests/state/test_store.py``."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.servers import fresh, server
from tests.transports.consuming import nothing, settle, take, until
from tests.transports.postgres.helpers import bus, group, message, raw

from tidings.kernel.errors import BusError, Conflict, InvalidOption, NotOpen, TooLarge
from tidings.kernel.transport import Event, Failure, Retry, Settlement
from tidings.store import ABSENT, Record, Unit, Write, new_version
from tidings.testing.faults import Proxy
from tidings.transports.postgres import Postgres
from tidings.transports.postgres.connections import Unanswered

AN_EARLIER_RELEASE = """
DROP TABLE records;
DROP FUNCTION put; DROP FUNCTION unexpected; DROP FUNCTION keep; DROP FUNCTION records_of; DROP FUNCTION records_from;
DROP FUNCTION records_due; DROP FUNCTION records_info; DROP FUNCTION records_purge;
"""
"""Makes a schema as one that kept no records made it."""


def put(key: str, value: bytes, expect: int | None = None, table: str = "t", due: float | None = None) -> Write:
    return Write(table, key, value, expect, due, new_version())


async def kept(store: Any, *keys: str, table: str = "t") -> dict[str, bytes]:
    return {record.key: record.value for record in await store.records(table, keys)}


async def member(end: Any, pattern: str = "orders.>", name: str = "shop.bill") -> Any:
    return await end.subscribe(group(pattern, name))


# -- the schema


async def test_a_bus_of_an_earlier_release_gets_its_records(place: str) -> None:
    """By whoever of many comes first; what is on the bus stays, and who has it open is not disturbed."""
    async with bus(place) as old, raw(place) as con:
        consumer = await member(old)
        assert not await old.publish([message(1)])
        await con.execute(AN_EARLIER_RELEASE)
        others = [Postgres.from_url(place).transport() for _ in range(4)]
        await asyncio.gather(*(other.open(lambda event: None) for other in others))
        assert not await others[0].commit([Unit([put("k", b"v", ABSENT)])])
        assert await kept(others[1], "k") == {"k": b"v"}
        assert not await consumer.commit([Unit([put("l", b"")], (), [Settlement((await take(consumer, 1))[0])])])
        assert {record.key for record in await others[2].scan("t")} == {"k", "l"}
        for other in others:
            await other.close()


async def test_who_may_only_use_the_bus_keeps_records_too(place: str) -> None:
    """Once its owner's schema has them; until then all else works, and the error says what to do."""
    namespace, role = place.partition("=")[2], f"r{place.partition('=')[2]}"
    async with raw(place) as con, bus(place):
        await con.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {namespace} TO {role}")
        await con.execute(f"GRANT SELECT ON {namespace}.meta TO {role}")
        try:
            user = place.replace("//postgres@", f"//{role}@")
            async with bus(user) as end:
                writes = [put("k", b"v", due=1.0), put("l", b"v")]
                assert not await end.commit([Unit(writes, [message(1)])])
                assert await kept(end, "k") == {"k": b"v"}
                assert [info.records for info in await end.tables()] == [2]
                assert len(await end.scan("t")) == 2
                assert [record.key for record in await end.due("t", 2.0)] == ["k"]
                assert await end.purge("t") == 2
            await con.execute(AN_EARLIER_RELEASE)
            async with bus(user) as end:
                assert not await end.publish([message(2)])
                with pytest.raises(BusError, match="let the schema's owner open the bus once"):
                    await end.records("t", ["k"])
                (failure,) = await end.commit([Unit([put("k", b"v")])])
                assert "let the schema's owner open the bus once" in str(failure.error)
        finally:
            await con.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_bus_that_is_not_open_keeps_nothing(place: str) -> None:
    transport = Postgres.from_url(place).transport()
    for asking in (transport.records("t", ["k"]), transport.scan("t"), transport.commit([]), transport.purge("t")):
        with pytest.raises(NotOpen):
            await asking


# -- keys and values


@pytest.mark.parametrize("key", ["\0", "a\0b", "\ud800", "x" * 2001, "\u20ac" * 700])
async def test_a_key_that_cannot_be_stored_is_refused(place: str, key: str) -> None:
    """By name; its unit's neighbours are not touched."""
    async with bus(place) as end:
        with pytest.raises(InvalidOption, match="without NUL"):
            await end.records("t", ["fine", key])
        with pytest.raises(InvalidOption, match="without NUL"):
            await end.scan("t", key)
        with pytest.raises(InvalidOption, match="without NUL"):
            await end.due(key, 1.0)
        units = [Unit([put("a", b"")]), Unit([put("b", b""), put(key, b"")]), Unit([put("c", b"")])]
        (failure,) = await end.commit(units)
        assert (failure.index, failure.kind, type(failure.error)) == (1, "rejected", InvalidOption)
        assert set(await kept(end, "a", "b", "c")) == {"a", "c"}


async def test_the_longest_key_and_the_largest_value(place: str) -> None:
    key = "".join(chr(random.Random(1).randrange(0x20, 0x7F)) for _ in range(1999))
    async with bus(place) as end:
        large = random.Random(2).randbytes(16 * 1024 * 1024)
        assert not await end.commit([Unit([put(key, large, due=1.0)])])
        assert await kept(end, key) == {key: large}
        (failure,) = await end.commit([Unit([put("k", large + b"x")])])
        assert (failure.kind, type(failure.error)) == ("rejected", TooLarge)
        assert await kept(end, "k") == {}


async def test_more_than_fits_into_one_call(place: str) -> None:
    """Units are divided among several, and still follow each other; one that is too large by itself is refused."""
    value, versions = bytes(2**22), [new_version() for _ in range(12)]
    chain = [Write("t", "k", value, before, None, now) for before, now in pairwise([ABSENT, *versions])]
    large = Unit([put(f"l{n}", bytes(2**24)) for n in range(17)])
    async with bus(place) as end:
        failures = await end.commit(
            [*map(Unit, zip(chain)), large, Unit([put("k", b"", ABSENT)]), Unit([put("m", b"")])]
        )
        assert [(failure.index, type(failure.error)) for failure in failures] == [(12, TooLarge), (13, Conflict)]
        assert [record.version for record in await end.records("t", ["k", "l0"])] == [versions[-1]]
        assert await kept(end, "m") == {"m": b""}


@pytest.mark.parametrize("prefix", ["a", "\ud7ff", "\U0010ffff", "a\U0010ffff", "%_\\"])
async def test_a_prefix_ends_where_its_bytes_end(place: str, prefix: str) -> None:
    keys = [prefix, prefix + "\0".replace("\0", "\x01"), prefix + "z", prefix + "\U0010ffff" * 3]
    others = [chr(ord(prefix[0]) - 1) + "x", "a\U0010fffe", "b", "\ue000", "\U0010fffe"]
    async with bus(place) as end:
        await end.commit([Unit([put(key, b"")]) for key in {*keys, *others}])
        wanted = sorted((key for key in {*keys, *others} if key.startswith(prefix)), key=str.encode)
        assert [record.key for record in await end.scan("t", prefix)] == wanted


async def test_due_may_be_any_number(place: str) -> None:
    async with bus(place) as end:
        await end.commit(
            [Unit([put(f"k{due}", b"", due=due) for due in (float("-inf"), -1.5, 0, 10**12, float("inf"))])]
        )
        found = await end.due("t", float("inf"))
        assert [record.due for record in found] == [float("-inf"), -1.5, 0, 1e12, float("inf")]
        assert len(await end.due("t", 1e300)) == 4


# -- reading


async def test_what_is_asked_in_one_turn_is_one_query(place: str) -> None:
    """Each gets what it asked for, also when one of them does not wait any more."""
    namespace = place.partition("=")[2]
    query = f"SELECT calls FROM pg_stat_user_functions WHERE schemaname = '{namespace}' AND funcname = 'records_of'"
    async with raw(place) as con:
        await con.execute("ALTER ROLE postgres SET track_functions = 'all'")
        try:
            async with bus(place) as end:
                await end.commit(
                    [Unit([put(f"k{n}", b"t%d" % n), put(f"k{n}", b"u%d" % n, table="u")]) for n in range(16)]
                )
                asking = [
                    asyncio.ensure_future(kept(end, f"k{n}", f"k{n}", f"k{(n + 1) % 16}", "no", table="tu"[n % 2]))
                    for n in range(16)
                ]
                await asyncio.sleep(0)
                asking[5].cancel()
                found = await asyncio.gather(*asking, return_exceptions=True)
                assert isinstance(found.pop(5), asyncio.CancelledError)
                numbers = [n for n in range(16) if n != 5]
                for n, answer in zip(numbers, found, strict=True):
                    assert answer == {f"k{m}": b"%c%d" % (b"tu"[n % 2], m) for m in (n, (n + 1) % 16)}
            for _ in range(100):  # it tells when the connection has ended
                if calls := await con.fetchval(query):
                    break
                await asyncio.sleep(0.05)
            assert calls == 1
        finally:
            await con.execute("ALTER ROLE postgres RESET track_functions")


async def test_more_than_fits_into_one_query(place: str) -> None:
    async with bus(place) as end:
        keys = [f"k{n}" for n in range(12_000)]
        assert not await end.commit([Unit([put(key, key.encode()) for key in keys])])
        assert await kept(end, *keys) == {key: key.encode() for key in keys}


# -- units


async def test_units_share_a_commit_with_everything_else(place: str) -> None:
    """What is settled, published and committed at once, by whomever: one conflict concerns nobody else."""
    async with bus(place) as end:
        consumer, plain = await member(end), await member(end, "other.>", "shop.other")
        outputs = await member(end, "out.>", "shop.out")
        await end.commit([Unit([put("n", b"0")])])
        await end.publish([*(message(n) for n in range(4)), message(9, "other.x")])
        a, b, c, d = await take(consumer, 4)
        (e,) = await take(plain, 1)
        results = await asyncio.gather(
            consumer.commit([Unit([put("a", b"")], (), [Settlement(a, outgoing=(message(10, "out.a"),))])]),
            end.publish([message(11, "out.b")]),
            consumer.commit([Unit([put("n", b"1", ABSENT)], [message(12, "out.c")], [Settlement(b)])]),
            plain.settle([Settlement(e, Retry(0.0, 1), (message(13, "out.d"),))]),
            end.commit([Unit([put("n", b"2", ABSENT)]), Unit([put("m", b"")], [message(14, "out.e")])]),
            consumer.settle([Settlement(c, outgoing=(message(15, "out.f"),)), Settlement(d)]),
        )
        kinds = [[(failure.index, failure.kind) for failure in failures] for failures in results]
        assert kinds == [[], [], [(0, "unknown")], [], [(0, "rejected")], []]
        assert [delivery.message.id for delivery in await take(outputs, 5)] == ["m10", "m11", "m13", "m14", "m15"]
        assert await kept(end, "a", "n", "m") == {"a": b"", "n": b"0", "m": b""}
        (again,) = await take(plain, 1)
        assert again.failures == 1
        await settle(plain, [again])
        await settle(consumer, [b])
        for each in (consumer, plain, outputs):
            await nothing(each)
            await each.close()


async def test_what_others_took_meanwhile_fails_its_unit(place: str) -> None:
    """The database knows better than this process: the unit is fenced, its neighbours happen, and all comes again."""
    told: list[Event] = []
    async with bus(place, told) as end, raw(place) as con:
        consumer, outputs = await member(end), await member(end, "out.>", "shop.out")
        await end.publish([message(1)])
        (a,) = await take(consumer, 1)
        await end.publish([message(2)])
        (b,) = await take(consumer, 1)
        await end.publish([message(3)])
        (c,) = await take(consumer, 1)
        held: Any = a.session
        await con.execute("DELETE FROM claim WHERE id = $1", held.id)
        units = [
            Unit([put("x", b"1", ABSENT)], [message(10, "out.a")], [Settlement(a), Settlement(b)]),
            Unit([put("x", b"2", ABSENT)], (), [Settlement(c, outgoing=(message(11, "out.b"),))]),
        ]
        failures = {failure.index: failure.kind for failure in await consumer.commit(units)}
        assert failures == {0: "fenced", 1: "unknown"}
        assert not a.session.alive
        assert b.session.alive
        assert await kept(end, "x") == {"x": b"2"}
        assert [delivery.message.id for delivery in await take(outputs, 1)] == ["m11"]
        await settle(consumer, [b])
        await nothing(outputs)
    assert [event.kind for event in told].count("fenced") == 1


async def test_all_who_read_the_same_are_told(place: str) -> None:
    """Of many units of one call that read a record which somebody changed since, each learns so, in a few rounds."""
    async with bus(place) as end, bus(place) as other:
        await end.commit([Unit([put("hot", b"0")])])
        (before,) = await end.records("t", ["hot"])
        await other.commit([Unit([put("hot", b"1")])])
        units = [Unit([put("hot", b"2", before.version), put(f"k{n}", b"")]) for n in range(300)]
        failures = await end.commit([*units, Unit([put("cold", b"")])])
        assert [failure.index for failure in failures] == list(range(300))
        assert all(isinstance(failure.error, Conflict) for failure in failures)
        assert {record.key for record in await end.scan("t")} == {"hot", "cold"}


async def test_a_unit_writes_one_record_several_times(place: str) -> None:
    first = put("k", b"1", ABSENT)
    async with bus(place) as end:
        assert not await end.commit([Unit([first, Write("t", "k", None, first.version), put("k", b"2", ABSENT)])])
        assert await kept(end, "k") == {"k": b"2"}
        (failure,) = await end.commit([Unit([put("l", b""), put("l", b"", ABSENT)])])
        assert isinstance(failure.error, Conflict)
        assert await kept(end, "l") == {}


async def test_nobody_waits_for_somebody_who_waits_for_him(place: str) -> None:
    """Records that are there, that are not, and that are removed are locked in one order: there is no deadlock."""
    count = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    async with raw(place) as con:
        before = await con.fetchval(count)
        async with bus(place) as one, bus(place) as two, bus(place) as three:

            async def work(store: Any, seed: int) -> None:
                its = random.Random(seed)
                for _ in range(40):
                    keys = its.sample(range(60), 30)
                    writes = [put(f"k{n}", b"x" * n) if its.random() < 0.5 else Write("t", f"k{n}", None) for n in keys]
                    assert not await store.commit([Unit([write]) for write in writes])
                    if its.random() < 0.2:
                        await store.purge("t", limit=10)

            await asyncio.gather(*(work(store, n) for n, store in enumerate((one, two, three))))
        await asyncio.sleep(1.1)  # statistics are told once a second
        assert await con.fetchval(count) == before


async def test_what_was_purged_and_made_anew_is_kept(place: str) -> None:
    """Purging waits for who is writing, and looks again."""
    async with bus(place) as end, raw(place) as con:
        await end.commit([Unit([put(f"k{n}", b"", due=1.0) for n in range(5)])])
        async with con.transaction():
            await con.execute("UPDATE records SET due = 9 WHERE key = 'k2'")
            purging = asyncio.ensure_future(end.purge("t", until=5.0))
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
            for _ in range(500):
                if await con.fetchval(waiting):
                    break
                await asyncio.sleep(0.01)
        assert await purging == 4
        assert list(await kept(end, *(f"k{n}" for n in range(5)))) == ["k2"]


# -- through a pooler


async def test_behind_a_pooler(place: str) -> None:
    pooled = f"{server('pgbouncer').url}?{place.partition('?')[2]}"
    async with bus(pooled) as end, bus(pooled) as other:
        assert end.connections.pooled
        consumer = await member(end)
        await end.publish([message(n) for n in range(50)])
        deliveries = await take(consumer, 50)
        units = [
            Unit([put(f"k{n % 7}", b"%d" % n, due=float(n))], (), [Settlement(d)]) for n, d in enumerate(deliveries)
        ]
        assert not await consumer.commit(units)
        results = await asyncio.gather(*(end.commit([Unit([put("one", b"", ABSENT)])]) for end in (end, other)))
        assert sum(map(len, results)) == 1
        assert set(await kept(other, *(f"k{n}" for n in range(7)))) == {f"k{n}" for n in range(7)}
        assert len(await other.scan("t", "k")) == 7
        assert [record.key for record in await other.due("t", 44.0)] == ["k1", "k2"]
        assert await other.purge("t", 44.0) == 2
        await nothing(consumer)


# -- faults


async def test_an_answer_that_is_lost_is_unknown(place: str) -> None:
    at = urlsplit(place)
    async with Proxy(at.hostname or "", at.port or 0) as proxy:
        far = place.replace(f"{at.hostname}:{at.port}", proxy.address)
        async with bus(far, lease="2s") as end, bus(place) as other:
            first = put("k", b"1")
            assert not await end.commit([Unit([first])])
            proxy.partition()
            units = [Unit([put("k", b"2", first.version)]), Unit()]
            failures: list[Failure] = list(await asyncio.wait_for(end.commit(units), 30))
            assert [(failure.index, failure.kind) for failure in failures] == [(0, "unknown"), (1, "unknown")]
            assert all(isinstance(failure.error, Unanswered) for failure in failures)
            proxy.heal()
            assert not await asyncio.wait_for(end.commit([Unit([put("k", b"3")])]), 30)
            assert await kept(other, "k") == await kept(end, "k") == {"k": b"3"}


COUNTING = """
import asyncio, sys
from tests.transports.postgres.helpers import bus
from tests.transports.postgres.test_records import count
async def main():
    async with bus(sys.argv[1], lease="2s") as end:
        await count(end)
asyncio.run(main())
"""


async def count(end: Any, limit: int = 20) -> None:
    """Count messages of ten keys, telling each number, until it is stopped."""
    consumer = await member(end)
    while deliveries := await consumer.receive(limit):
        todo = list(deliveries)
        while todo:
            keys = [f"k{int(delivery.message.body) % 10}" for delivery in todo]
            records = {record.key: record for record in await end.records("counts", keys)}
            units = []
            for delivery, key in zip(todo, keys, strict=True):
                now = records.get(key)
                n = int(now.value) + 1 if now else 1
                write = Write("counts", key, b"%d" % n, now.version if now else ABSENT, float(n), new_version())
                records[key] = Record(key, b"%d" % n, write.version)
                out = message(n, f"counted.{key}")
                units.append(Unit([write], (), [Settlement(delivery, outgoing=(out,))]))
            try:
                failures = await consumer.commit(units)
            except BusError:  # as the kernel does
                await asyncio.sleep(0.1)
                continue
            todo = [todo[failure.index] for failure in failures if failure.kind != "fenced"]


async def judged(end: Any) -> None:
    """Each message that is on the bus was counted once, and each number told once."""
    total = len(await end.peek("orders.>", limit=10**6))

    async def counts() -> dict[str, int]:
        return {record.key: int(record.value) for record in await end.scan("counts")}

    for _ in range(600):
        if sum((found := await counts()).values()) >= total:
            break
        await asyncio.sleep(0.1)
    assert sum(found.values()) == total
    told = Counter((stored.message.topic, stored.message.id) for stored in await end.peek("counted.>", limit=10**6))
    assert told == {(f"counted.{key}", f"m{n}"): 1 for key, last in found.items() for n in range(1, last + 1)}


@pytest.mark.slow
@pytest.mark.parametrize("point", ["commit.before", "commit.after"])
async def test_killed_while_it_commits(place: str, point: str) -> None:
    """Again and again, with a second process at the same records: nothing is lost, nothing counts twice."""

    async def process(points: str) -> Any:
        environment = os.environ | {"TIDINGS_FAIL_POINTS": points, "PYTHONPATH": os.pathsep.join(sys.path)}
        return await asyncio.create_subprocess_exec(sys.executable, "-c", COUNTING, place, env=environment)

    async with bus(place, lease="2s") as end:
        await (await member(end)).close()
        steady = await process("")
        try:
            for passage in (2, 1, 3, 2):
                dying = await process(f"{point}=kill@{passage}")
                while dying.returncode is None:
                    assert not await end.publish([message(n) for n in range(20)])
                    await asyncio.wait({asyncio.ensure_future(dying.wait())}, timeout=0.05)
                assert dying.returncode == -signal.SIGKILL
            await judged(end)
        finally:
            steady.kill()
            await steady.wait()


@pytest.mark.slow
async def test_the_server_is_killed_while_it_commits() -> None:
    with fresh("postgres") as mine:
        place = f"{mine.url}?namespace=t"
        async with bus(place, lease="6s") as end, bus(place, lease="6s") as other:
            await (await member(end)).close()
            counting = [asyncio.ensure_future(count(each)) for each in (end, other)]
            for _ in range(3):
                for start in range(0, 200, 10):
                    await end.publish([message(n) for n in range(start, start + 10)])
                await asyncio.to_thread(mine.restart)
                await until(lambda: end.connections.up and other.connections.up, within=30)
            await judged(end)
            for task in counting:
                task.cancel()
            await asyncio.gather(*counting, return_exceptions=True)
