"""Other programs on the same server: they publish, read, ask, answer, and have streams and consumers of their own."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_binary_event
from cloudevents.core.formats.json import JSONFormat
from tests.transports.consuming import settle, take
from tests.transports.nats.helpers import bus, fresh_namespace, group, in_flight, message, raw

from tidings import App
from tidings.kernel.errors import BusError, BusUnavailable, NotFound
from tidings.kernel.transport import Delivery, Retry
from tidings.transports.nats import NATS


async def test_what_a_stranger_publishes_is_handled() -> None:
    async with bus() as b, raw() as client:
        consumer = await b.subscribe(group())
        js = client.jetstream()
        plain = await js.publish(f"{b.prefix}orders.placed", b"1")
        await js.publish(f"{b.prefix}orders.placed", b"2", headers={"Content-Type": "text/plain", "a": "b"})
        await client.publish(
            f"{b.prefix}orders.placed", b"3", headers={"ce-id": "%C0", "ce-time": "now", "ce-tdgpriority": "x"}
        )
        one, two, three = await take(consumer, 3)
        assert (one.message.topic, one.message.body, one.message.id) == ("orders.placed", b"1", str(plain.seq))
        assert abs(one.message.time - time.time()) < 60
        assert (two.message.content_type, two.message.header("a")) == ("text/plain", "b")
        assert three.message.body == b"3"
        await settle(consumer, [one], action=Retry(0.0, 3))
        (again,) = await take(consumer, 1)
        assert (again.failures, again.message.id, again.message.topic) == (3, str(plain.seq), "orders.placed")


async def test_what_we_publish_is_a_cloudevent_to_others() -> None:
    """The SDK has no binding for NATS, which is HTTP's but for the content type's name."""
    async with bus() as b, raw() as client:
        sent = message(7, key="schlüssel 1", correlation_id="c", headers=(("own", "☃ as it is"),), source="shop")
        assert not await b.publish([sent])
        sub = await client.jetstream().pull_subscribe(f"{b.prefix}orders.placed", stream=b.name)
        (msg,) = await sub.fetch(1)
        assert msg.data == b"7"
        assert msg.headers["own"] == "☃ as it is"
        attributes = {name: value for name, value in msg.headers.items() if name.startswith("ce-")}
        content_type = {"content-type": attributes.pop("ce-datacontenttype")}
        event: Any = from_binary_event(HTTPMessage(attributes | content_type, b"7"), JSONFormat())
        assert event.get_id() == sent.id
        assert (event.get_type(), event.get_source()) == ("orders.placed", "shop")
        assert event.get_time().timestamp() == pytest.approx(sent.time, abs=1e-3)
        assert event.get_extension("partitionkey") == "schlüssel 1"
        assert event.get_extension("correlationid") == "c"


async def test_a_stranger_asks_and_a_stranger_answers() -> None:
    name = fresh_namespace()
    async with bus(namespace=name) as b, raw() as client:
        url = NATS(servers=b.options.servers, namespace=name)
        app, asking = App("shop", url), App("web", url)

        @app.answer("prices.quote")
        async def quote(question: dict[str, int]) -> dict[str, int]:
            return {"price": question["n"] * 2}

        async with app:
            reply = await client.request(f"{name}._request.prices.quote", b'{"n": 21}', timeout=5)
            assert json.loads(reply.data) == {"price": 42}

        async def stranger(msg: Any) -> None:
            await msg.respond(b'{"temperature": 3}')

        await client.subscribe(f"{name}._request.weather", cb=stranger)
        await client.flush()
        async with asking.connect():
            assert await asking.request("weather", {}, timeout=5) == {"temperature": 3}


async def test_a_stream_made_by_somebody_else() -> None:
    """It keeps its name, limits and subjects; what groups need is added."""
    name = fresh_namespace()
    async with raw() as client:
        js = client.jetstream()
        await js.add_stream(
            name=name, subjects=[f"{name}.events.eu.>"], max_age=3600, max_msgs=500, description="theirs"
        )
        await js.publish(f"{name}.events.eu.x", b"0")
        async with bus(namespace=name, stream=name) as b:
            consumer = await b.subscribe(group("events.>", start=0.0))
            assert not await b.publish(
                [message(1, "events.eu.x"), message(2, "events.us.x"), message(3, "orders.placed")]
            )
            came = await take(consumer, 3)
            assert [d.message.body for d in came] == [b"0", b"1", b"2"]
            await settle(consumer, came, action=Retry(0.1, 1))
            await settle(consumer, await take(consumer, 3))
            config = (await js.stream_info(name)).config
            assert (config.max_age, config.max_msgs, config.description) == (3600, 500, "theirs")
            with pytest.raises(BusError, match=r"orders|returns"):
                async with bus(namespace=name, stream=name, provision="false", keep=True) as strict:
                    await strict.subscribe(group("returns.>"))
            async with bus(namespace=name, stream=name, provision="false", keep=True) as strict:
                assert strict.capabilities.provision == "unavailable"
                (failure, *_) = await strict.publish([message(1, "returns.late"), message(2, "events.eu.y")])
                assert (failure.index, failure.kind) == (0, "rejected")


@pytest.mark.parametrize("settings", [{"retention": "workqueue"}, {"no_ack": True}])
async def test_a_stream_that_cannot_be_a_bus_is_refused(settings: dict[str, Any]) -> None:
    name = fresh_namespace()
    async with raw() as client:
        await client.jetstream().add_stream(name=name, subjects=[f"{name}.x"], **settings)
        with pytest.raises(BusUnavailable, match=name):
            async with bus(namespace=name, stream=name, keep=True):
                pass
        await client.jetstream().delete_stream(name)


async def test_without_provisioning_nothing_is_made() -> None:
    with pytest.raises(NotFound):
        async with bus(provision="false", keep=True):
            pass
    name = fresh_namespace()
    async with raw() as client:
        await client.jetstream().add_stream(name=name, subjects=[f"{name}.orders.>"])
        with pytest.raises(BusUnavailable, match="allow_msg_schedules"):
            async with bus(namespace=name, provision="false", keep=True):
                pass
        await client.jetstream().delete_stream(name)


async def test_a_consumer_made_by_somebody_else_is_a_group() -> None:
    """With its position, its patience and its filter; its retries have a consumer beside it."""
    async with bus() as b, raw() as client:
        assert not await b.publish([message(0)])
        js = client.jetstream()
        await js.add_consumer(b.name, durable_name="billing", filter_subject=f"{b.prefix}orders.>", ack_wait=10)
        consumer = await b.subscribe(group("orders.>", "billing"))
        assert consumer.lease == pytest.approx(8.0)
        (old,) = await take(consumer, 1)
        await settle(consumer, [old], action=Retry(0.0, 1))
        (again,) = await take(consumer, 1)
        assert (again.message.body, again.failures) == (b"0", 1)
        await settle(consumer, [again])
        info = await js.consumer_info(b.name, "billing")
        assert info.config.filter_subject == f"{b.prefix}orders.>"
        info = await js.consumer_info(b.name, "billing@again")
        assert info.config.ack_wait == 10
        await consumer.close()
        await b.rename("billing", "bills")
        info = await js.consumer_info(b.name, "billing")
        assert (info.config.filter_subject, info.config.ack_wait) == (f"{b.prefix}orders.>", 10)
        await js.add_consumer(b.name, durable_name="lax", filter_subject=f"{b.prefix}orders.>", ack_policy="all")
        with pytest.raises(BusError, match="lax"):
            await b.subscribe(group("orders.>", "lax"))
        await js.add_consumer(b.name, durable_name="other", filter_subject=f"{b.prefix}returns.>")
        with pytest.raises(BusError, match="other"):
            await b.subscribe(group("orders.>", "other"))


async def test_another_language_joins_a_group() -> None:
    """It pulls from the same durable, and acknowledges as anybody does."""
    async with bus() as b, raw() as client:
        consumer = await b.subscribe(group())
        assert not await b.publish([message(n) for n in range(10)])
        sub = await client.jetstream().pull_subscribe_bind("shop~bill", b.name)
        theirs = await sub.fetch(4)
        ours: list[Delivery] = await take(consumer, 6)
        assert sorted(int(m.data) for m in theirs) + sorted(int(d.message.body) for d in ours) == list(range(10))
        for msg in theirs:
            await msg.ack()
        await settle(consumer, ours)
        await client.flush()
        await asyncio.sleep(0.1)
        assert await in_flight(b) == 0
