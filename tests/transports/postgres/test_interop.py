"""Others on the same database: raw SQL publishes and reads, and what they made before."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.v1.event import CloudEvent
from tests.transports.consuming import nothing, settle, take
from tests.transports.postgres.helpers import bus, group, message, raw

from tidings.kernel.errors import BusCorrupt, BusTooNew, BusUnavailable
from tidings.kernel.message import Message
from tidings.kernel.transport import Retry, Settlement


async def test_raw_sql_publishes(place: str) -> None:
    async with bus(place) as end, raw(place) as con:
        consumer = await end.subscribe(group())
        await con.execute("""SELECT send('orders.placed', '{"id": 7}')""")
        query = """SELECT send('orders.paid', $1, key => 'ü', id => 'x1', content_type => 'text/plain', priority => 3,
            headers => '{"a": "1", "b": "☃"}', delay => '300 ms', expires => '1 hour', type => 't', source => 's')"""
        assert await con.fetchval(query, "☃".encode()) == "x1"
        plain, full = (delivery.message for delivery in await take(consumer, 2))
        assert (plain.topic, plain.body, plain.content_type) == ("orders.placed", b'{"id": 7}', "application/json")
        assert plain.id
        assert (full.id, full.key, full.body.decode(), full.content_type) == ("x1", "ü", "☃", "text/plain")
        assert (full.priority, full.type, full.source) == (3, "t", "s")
        assert dict(full.headers or ()) == {"a": "1", "b": "☃"}
        assert full.expires_at is not None
        assert full.deliver_at is not None
        assert 3500 < full.expires_at - full.time < 3700


async def test_raw_sql_publishes_with_its_transaction(place: str) -> None:
    async with bus(place) as end, raw(place) as con:
        consumer = await end.subscribe(group())
        transaction = con.transaction()
        await transaction.start()
        await con.execute("SELECT send('orders.placed', '1')")
        await transaction.rollback()
        async with con.transaction():
            await con.execute("SELECT send('orders.placed', '2')")
        (delivery,) = await take(consumer, 1)
        assert delivery.message.body == b"2"
        await settle(consumer, [delivery])
        await nothing(consumer)


@pytest.mark.parametrize("topic", ["_dead.x", "a..b", "", "a b", "orders.*"])
async def test_raw_sql_cannot_publish_everywhere(place: str, topic: str) -> None:
    async with bus(place), raw(place) as con:
        with pytest.raises(Exception, match="is no topic"):
            await con.execute("SELECT send($1, '1')", topic)


async def test_raw_sql_keeps_the_order_of_a_key(place: str) -> None:
    """Its hash is ours: in an ordered group it waits behind what failed."""
    async with bus(place) as end, raw(place) as con:
        consumer = await end.subscribe(group(ordered=True))
        await end.publish([message(0, key="schlüssel")])
        (first,) = await take(consumer, 1)
        assert not await consumer.settle([Settlement(first, Retry(0.7, 1))])
        await con.execute(
            "SELECT send('orders.placed', '1', key => 'schlüssel'), send('orders.placed', '2', key => 'other')"
        )
        for body in (b"2", b"0", b"1"):
            (delivery,) = await take(consumer, 1)
            assert delivery.message.body == body
            await settle(consumer, [delivery])


async def test_raw_sql_reads(place: str) -> None:
    """Body and CloudEvents attributes, as the official SDK wants them."""
    sent: Message[None] = Message(
        "orders.placed", body=b'{"id": 7}', id="m1", key="k", time=1_700_000_000.25, type="shop.Order", source="shop",
        headers=(("trace", "ü"),), priority=2, correlation_id="c", causation_id="p",
    )  # fmt: skip
    async with bus(place) as end, raw(place) as con:
        await end.publish([sent, message(2, "sensors.a")])
        await con.execute("RESET search_path")
        row, other = await con.fetch(f"SELECT * FROM {end.options.namespace}.messages ORDER BY seq")
        assert (row["data"], row["topic"], row["partitionkey"], row["priority"]) == (
            b'{"id": 7}',
            "orders.placed",
            "k",
            2,
        )
        assert (row["correlationid"], row["causationid"]) == ("c", "p")
        assert json.loads(row["headers"]) == [["trace", "ü"]]
        names = ("id", "source", "type", "time", "datacontenttype", "partitionkey")
        event: BaseCloudEvent = CloudEvent(
            {"specversion": "1.0", **{n: row[n] for n in names}}, json.loads(row["data"])
        )
        assert (event.get_id(), event.get_source(), event.get_type()) == ("m1", "shop", "shop.Order")
        time = event.get_time()
        assert time is not None
        assert time.timestamp() == sent.time
        assert event.get_data() == {"id": 7}
        assert (other["destination"], other["id"], other["headers"]) == ("sensors.a", "m2", None)


async def test_many_make_the_schema_at_once(place: str) -> None:
    """Processes on a fresh database, all at once: one makes it, all use it."""
    code = (
        "import asyncio, sys\nfrom tests.transports.postgres.helpers import bus, message\n"
        "async def main():\n    async with bus(sys.argv[1]) as end:\n"
        "        assert not await end.publish([message()])\n"
        "asyncio.run(main())"
    )
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", code, place) for _ in range(6)]
    assert [await process.wait() for process in processes] == [0] * 6
    async with raw(place) as con:
        assert await con.fetchval("SELECT count(*) FROM messages") == 6


@pytest.mark.parametrize(("version", "error", "told"), [(99, BusTooNew, "99"), (1, BusUnavailable, "older")])
async def test_another_schema_is_refused(place: str, version: int, error: type[BusUnavailable], told: str) -> None:
    async with bus(place), raw(place) as con:
        await con.execute("UPDATE meta SET version = $1", version)
        with pytest.raises(error, match=told):
            async with bus(place):
                pass


async def test_somebody_elses_schema_is_refused(place: str) -> None:
    namespace = place.partition("=")[2]
    async with raw(place) as con:
        await con.execute(f"CREATE SCHEMA {namespace}; CREATE TABLE {namespace}.log(id int)")
        with pytest.raises(BusCorrupt, match="another program"):
            async with bus(place):
                pass
        assert await con.fetchval(f"SELECT to_regclass('{namespace}.meta')") is None, "something was left in it"
        await con.execute(f"CREATE TABLE {namespace}.meta(x int)")
        with pytest.raises(BusCorrupt, match="no bus"):
            async with bus(place):
                pass


async def test_an_empty_schema_is_used(place: str) -> None:
    """As an administrator gives it to a role that may not make schemas, and other roles that may only use it."""
    namespace, role = place.partition("=")[2], f"r{place.partition('=')[2]}"
    async with raw(place) as con:
        await con.execute(f"CREATE ROLE {role} LOGIN; CREATE ROLE {role}_user LOGIN")
        try:
            mine = place.replace("//postgres@", f"//{role}@")
            with pytest.raises(BusUnavailable, match="cannot be written"):
                async with bus(mine):
                    pass
            await con.execute(f"CREATE SCHEMA {namespace} AUTHORIZATION {role}")
            async with bus(mine) as end:
                consumer = await end.subscribe(group())
                user = place.replace("//postgres@", f"//{role}_user@")
                with pytest.raises(BusUnavailable, match="cannot be written"):
                    async with bus(user):
                        pass
                await con.execute(f"GRANT USAGE ON SCHEMA {namespace} TO {role}_user")
                await con.execute(f"GRANT SELECT ON {namespace}.meta TO {role}_user")
                async with bus(user) as other:
                    assert not await other.publish([message(1)])
                    await settle(consumer, await take(consumer, 1))
                    shared = await other.subscribe(group(name="shop.ship"))
                    assert not await end.publish([message(2)])
                    await settle(shared, await take(shared, 1))
                    await shared.close()
        finally:
            await con.execute(f"DROP SCHEMA IF EXISTS {namespace} CASCADE; DROP ROLE {role}; DROP ROLE {role}_user")
