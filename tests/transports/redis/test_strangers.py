"""Other programs: what they write is handled, what we write they can read, what they made is used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cloudevents.core.v1.event import CloudEvent
from tests.transports.consuming import settle, take
from tests.transports.redis.helpers import bus, group, message, namespace, raw

from tidings.kernel.errors import BusError
from tidings.kernel.transport import Retry, Settlement


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({"body": b"\xff\x00"}, b"\xff\x00"),
        ({"data": "x", "kind": "y"}, b"x"),
        ({"anything": "x"}, b"x"),
        ({"id": "7", "total": "12.5"}, b'{"id":"7","total":"12.5"}'),
        ({"ce-id": "e1", "ce-type": "t"}, b""),
        ({"ce-time": "yesterday", "ce-tdgpriority": "high", "ce-tdgfailures": "-1", "body": "x"}, b"x"),
    ],
)
async def test_a_strangers_entry(fields: dict[str, Any], body: bytes) -> None:
    async with bus() as open:
        consumer = await open.subscribe(group())
        id = raw().xadd(open.key("orders.placed"), fields)
        (delivery,) = await take(consumer, 1)
        assert (delivery.message.topic, delivery.message.body, delivery.attempt) == ("orders.placed", body, 1)
        assert delivery.message.id == fields.get("ce-id", f"orders.placed@{id.decode()}")
        first = delivery.message
        assert not await consumer.settle([Settlement(delivery, Retry(0.0, 1))])
        (again,) = await take(consumer, 1)
        assert (again.message, again.failures) == (first, 1), "the copy is the same message"


async def test_fields_beside_the_body_are_headers() -> None:
    async with bus() as open:
        consumer = await open.subscribe(group())
        raw().xadd(open.key("orders.placed"), {"body": "x", "trace": "☃"})
        (delivery,) = await take(consumer, 1)
        assert dict(delivery.message.headers or ()) == {"trace": "☃"}


async def test_a_header_with_a_name_of_ours_is_kept() -> None:
    async with bus() as open:
        consumer = await open.subscribe(group())
        headers = (("body", "no body"), ("content-type", "none"), ("ce-id", "mine"))
        await open.publish([sent := message(headers=headers)])
        (delivery,) = await take(consumer, 1)
        assert (delivery.message.headers, delivery.message.body, delivery.message.id) == (headers, b"0", sent.id)


async def test_what_we_write_is_read_by_any_client() -> None:
    async with bus() as open:
        await open.publish([message(7, key="k", headers=(("a", "☃"),), correlation_id="c")])
        ((_, entry),) = raw().xrange(open.key("orders.placed"))
        told = {field.decode(): value.decode() for field, value in entry.items()}
        assert (told["body"], told["content-type"], told["a"]) == ("7", "application/json", "☃")
        attributes: dict[str, Any] = {name[3:]: value for name, value in told.items() if name.startswith("ce-")}
        from datetime import datetime

        attributes["time"] = datetime.fromisoformat(attributes["time"])
        event = CloudEvent(attributes, json.loads(told["body"]))  # raises for what is no CloudEvent
        assert (event.get_id(), event.get_source(), event.get_type()) == ("m7", "shop", "orders.placed")
        assert event.get_extension("partitionkey") == "k"
        assert event.get_data() == 7


async def test_a_stranger_is_a_group_beside_ours() -> None:
    async with bus() as open:
        consumer = await open.subscribe(group())
        key = open.key("orders.placed")
        raw().xgroup_create(key, "theirs", "0")
        await open.publish([message(1)])
        ((_, entries),) = raw().xreadgroup("theirs", "c", {key: ">"})
        assert entries[0][1][b"body"] == b"1"
        raw().xack(key, "theirs", entries[0][0])
        await settle(consumer, await take(consumer, 1))
        assert raw().xpending(key, "shop.bill")["pending"] == 0


async def test_a_stream_that_was_there_before() -> None:
    """Under its own key, with its own group, read from where that group was; and never trimmed."""
    key = f"orders-{namespace()}"
    client = raw()
    old = [client.xadd(key, {"n": n}) for n in range(4)]
    client.xgroup_create(key, "shop.bill", old[1])
    async with bus(streams={"orders.placed": key}, retain=0.0) as open:
        consumer = await open.subscribe(group())
        came = await take(consumer, 2)
        assert [d.message.body for d in came] == [b"2", b"3"]
        await settle(consumer, came)
        every = await open.subscribe(group("orders.*", "shop.all", start=0.0))
        await settle(every, await take(every, 4))
        await open.publish([message(9)])
        assert (await take(consumer, 1))[0].message.body == b"9"
        await open.upkeep.trim()
        assert client.xlen(key) == 5
    client.delete(key)


async def test_a_key_that_is_no_stream_is_refused_and_nothing_is_stored() -> None:
    async with bus() as open:
        raw().set(open.key("orders.placed"), "mine")
        failures = await open.publish([message(1, "orders.paid"), message(2)])
        assert [failure.kind for failure in failures] == ["rejected"] * 2
        assert "is no stream but a string" in str(failures[0].error)
        assert not await open.topics()
        with pytest.raises(BusError, match="is no stream"):
            await open.subscribe(group())


async def test_the_native_client() -> None:
    async with bus() as open:
        await open.publish([message()])
        assert await open.client.xlen(open.key("orders.placed")) == 1
