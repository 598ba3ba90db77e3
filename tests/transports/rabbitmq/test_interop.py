"""Others on the same server: the plain client, and what was there before us."""

from __future__ import annotations

from typing import Any

import pytest
from cloudevents.core.bindings.amqp import AMQPMessage, from_binary
from cloudevents.core.formats.json import JSONFormat
from pamqp.commands import Basic
from tests.servers import server
from tests.transports.rabbitmq.helpers import bus_at, cleared, got, opened, raw

from tidings.kernel.errors import InvalidOption, NotFound, Unsupported
from tidings.kernel.topics import GROUP
from tidings.testing.conformance import Bus, Rig, scenario


class TestInterop:
    @scenario
    async def test_what_we_publish_is_a_cloud_event(self, rig: Rig) -> None:
        """Read by the plain client, and by the official SDK as the AMQP binding says."""
        bus: Any = await rig.open()
        async with raw(bus.options) as channel:
            queue = (await channel.queue_declare(exclusive=True)).queue
            await channel.queue_bind(queue, bus.exchange, "orders.#")
            sent = rig.message(body=b'{"total": 3}', key="schlüssel", headers=(("a", "ü"),), source="shop", type="t")
            await rig.publish(bus, sent)
            came = await got(channel, queue)
        properties = came.header.properties
        assert (came.body, properties.content_type, properties.delivery_mode) == (sent.body, "application/json", 2)
        assert properties.headers["a"] == "ü"
        message = AMQPMessage({"content-type": properties.content_type}, properties.headers, came.body)
        event = from_binary(message, JSONFormat())
        assert (event.get_id(), event.get_source(), event.get_type()) == (sent.id, "shop", "t")
        assert event.get_data() == {"total": 3}
        assert event.get_attributes()["partitionkey"] == "schlüssel"
        assert abs(event.get_time().timestamp() - sent.time) < 0.001

    @scenario
    async def test_what_a_stranger_publishes_is_handled(self, rig: Rig) -> None:
        """With headers of any type, an id and a time of AMQP's own, or none; and with the SDK's other prefix."""
        bus: Any = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        async with raw(bus.options) as channel:
            headers: Any = {"n": 7, "list": [1], "text": "x", "ce-partitionkey": "k", "cloudEvents_type": "t"}
            properties = Basic.Properties(headers=headers, message_id="m7", content_type="text/plain")
            send: Any = {"exchange": bus.exchange, "routing_key": "orders.placed"}
            await channel.basic_publish(b"hello", properties=properties, **send)
            await channel.basic_publish(b"bare", **send)
        first, second = await tap.take(2)
        assert (first.message.id, first.message.key, first.message.type) == ("m7", "k", "t")
        assert dict(first.message.headers or ()) == {"n": "7", "text": "x"}
        assert (first.message.content_type, first.message.body) == ("text/plain", b"hello")
        assert second.message.id
        assert second.message.time > 0
        await tap.retry(first, failures=2)  # a copy keeps all of it
        (again,) = await tap.take()
        assert (again.failures, again.message.id, again.message.headers) == (2, "m7", first.message.headers)

    @scenario
    async def test_an_existing_queue_is_used_as_it_is(self, rig: Rig) -> None:
        """A classic queue with a length limit, filled through the default exchange."""
        bus: Any = await rig.open()
        name = f"{bus.prefix}legacy"
        async with raw(bus.options) as channel:
            await channel.queue_declare(name, durable=True, arguments={"x-max-length": 100})
            theirs = bus_at(server("rabbitmq").url, queues=f"shop.bill:{name}")
            mine = await opened(theirs)
            tap = await rig.tap(mine, "orders.placed", "shop.bill")
            await channel.basic_publish(b"{}", routing_key=name)
            (delivery,) = await tap.take()
            assert delivery.message.topic == "orders.placed", "not the name of the queue"
            await tap.retry(delivery, failures=1)
            (again,) = await tap.take()
            assert (again.failures, again.message.topic) == (1, "orders.placed")
            assert (await channel.queue_declare(name, passive=True)).message_count == 0, "bound to nothing of ours"
            await tap.ack(again)
            await tap.close()
            await mine.close()
            await cleared(theirs)
            await channel.queue_delete(name)

    @scenario
    async def test_a_queue_that_should_be_there_is_missed(self, rig: Rig) -> None:
        theirs = bus_at(server("rabbitmq").url, queues="shop.bill:nowhere")
        mine = await opened(theirs)
        with pytest.raises(NotFound, match="nowhere"):
            await rig.tap(mine, "orders.placed", "shop.bill")
        await mine.close()
        await cleared(theirs)

    @scenario
    async def test_a_queue_with_other_settings_is_refused(self, rig: Rig) -> None:
        """The one that would be ours is there, and different: said at once, with what to do."""
        bus: Any = await rig.open()
        async with raw(bus.options) as channel:
            await channel.queue_declare(bus.queue_of("shop.bill"), durable=True)
            with pytest.raises(InvalidOption) as refusal:
                await rig.tap(bus, "orders.placed", "shop.bill")
            await channel.queue_delete(bus.queue_of("shop.bill"))
        assert "x-queue-type" in str(refusal.value)
        assert "queues=" in str(refusal.value)
        await rig.tap(bus, "orders.placed", "shop.bill")  # the bus goes on

    @scenario
    async def test_an_existing_exchange_is_used(self, rig: Rig) -> None:
        """A direct one has no wildcards, and says so; one that is no topic exchange at all is refused."""
        bus: Any = await rig.open()
        async with raw(bus.options) as channel:
            for kind in ("direct", "fanout"):
                await channel.exchange_declare(bus.prefix + kind, exchange_type=kind, durable=True)
            theirs = bus_at(server("rabbitmq").url, exchange=bus.prefix + "direct")
            mine = await opened(theirs)
            assert mine.capabilities.wildcards == "unavailable"
            tap = await rig.tap(mine, "orders.placed", "shop.bill")
            await channel.basic_publish(b"{}", exchange=bus.prefix + "direct", routing_key="orders.placed")
            (delivery,) = await tap.take()
            await tap.ack(delivery)
            await tap.close()
            await mine.close()
            await cleared(theirs)
            with pytest.raises(InvalidOption, match="fanout"):
                await opened(bus_at(server("rabbitmq").url, exchange=bus.prefix + "fanout"))
            await channel.exchange_delete(bus.prefix + "fanout")

    @scenario
    async def test_an_exchange_of_another_type_in_our_place_is_refused(self, rig: Rig) -> None:
        bus: Any = await rig.open()
        fresh = bus_at(server("rabbitmq").url)
        options: Any = fresh.options(30.0)
        async with raw(bus.options) as channel:
            await channel.exchange_declare(options.namespace, exchange_type="direct", durable=True)
            with pytest.raises(InvalidOption, match="type"):
                await opened(fresh)
            await channel.exchange_delete(options.namespace)

    @scenario
    async def test_the_private_address_is_for_others_too(self, rig: Rig) -> None:
        """An operator can send a message to one group with any tool."""
        bus: Any = await rig.open()
        bill, ship = [await rig.tap(bus, "orders.placed", group) for group in ("shop.bill", "shop.ship")]
        async with raw(bus.options) as channel:
            await channel.basic_publish(b"{}", exchange=bus.reserved, routing_key=GROUP + "shop.bill")
        (delivery,) = await bill.take()
        await bill.ack(delivery)
        await ship.quiet()

    @scenario
    async def test_what_is_retained_is_dead_letters_only(self, rig: Rig) -> None:
        bus: Any = await rig.open()
        with pytest.raises(Unsupported, match="queues are read by consuming them"):
            await bus.peek("orders.>")


@pytest.fixture(autouse=True)
def _fresh(bus: Bus) -> None:
    """Each has a namespace of its own."""
