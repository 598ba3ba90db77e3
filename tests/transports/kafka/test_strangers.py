"""Other programs: raw clients, the CloudEvents SDK, topics that somebody made before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event
from confluent_kafka import Consumer, Producer
from confluent_kafka.cimpl import NewTopic
from tests.transports.consuming import settle, take
from tests.transports.kafka.helpers import bus, member, message

from tidings.kernel.transport import Retry, Settlement

pytestmark = pytest.mark.timeout(60)


def read(servers: str, topic: str) -> Any:
    """One record, with the raw client."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": f"{topic}.raw", "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    try:
        found = consumer.consume(1, 20)
        assert found
        return found[0]
    finally:
        consumer.close()


def test_what_we_publish_is_read_by_others() -> None:
    async def main() -> None:
        async with bus() as kafka:
            sent = message(body=b'{"id":1}', key="schlüssel", headers=(("a", "ünïcode"),), correlation_id="c")
            assert not await kafka.publish([sent])
            raw = await asyncio.to_thread(read, kafka.options.servers, kafka.names.topic("orders.placed"))
            headers = dict(raw.headers())
            assert (raw.value(), raw.key().decode(), headers["a"].decode()) == (b'{"id":1}', "schlüssel", "ünïcode")
            event = from_binary_event(KafkaMessage(headers, raw.key(), raw.value()))
            assert (event.get_id(), event.get_type(), event.get_source()) == (sent.id, "orders.placed", "tests")
            assert event.get_attributes()["partitionkey"] == "schlüssel"
            assert event.get_attributes()["correlationid"] == "c"
            assert event.get_data() == {"id": 1}

    asyncio.run(main())


def test_strange_records_are_handled() -> None:
    """Without headers, with a binary key, without a body; retried, they keep id and key."""

    async def main() -> None:
        async with bus(partitions=1) as kafka:
            consumer = await member(kafka)
            producer, topic = Producer({"bootstrap.servers": kafka.options.servers}), kafka.names.topic("orders.placed")
            producer.produce(topic, b"<plain/>", b"\xff\x00", headers=[("content-type", b"text/xml"), ("n", None)])
            producer.produce(topic, None, None, headers=[("ce_time", b"junk"), ("ce_id", b"\xff"), ("x", b"\xfe")])
            producer.flush(10)
            first, second = await take(consumer, 2)
            m = first.message
            assert (m.body, m.key, m.content_type, m.header("n")) == (b"<plain/>", "ff00", "text/xml", "")
            assert m.id == f"{topic}/0/0"
            assert (second.message.body, second.message.content_type, second.message.key) == (b"", "", None)
            await settle(consumer, [second])
            assert not await consumer.settle([Settlement(first, Retry(1.2, 1))])
            (again,) = await take(consumer, 1)
            assert (again.message.id, again.message.key, again.failures) == (m.id, "ff00", 1)
            await consumer.close()

    asyncio.run(main())


def test_an_existing_topic_is_used_as_it_is() -> None:
    async def main() -> None:
        async with bus() as kafka:
            topic = kafka.names.topic("orders.placed")
            kafka.admin.create_topics([NewTopic(topic, 2, 1, config={"cleanup.policy": "compact"})])[topic].result(10)
            consumer = await member(kafka)
            assert kafka.partitions[topic] == 2
            sent = [message(key=f"k{n % 3}") for n in range(30)]
            assert not await kafka.publish(sent)
            assert {d.message.id for d in await take(consumer, 30)} == {m.id for m in sent}
            await consumer.close()

    asyncio.run(main())


def test_a_users_header_may_be_named_as_ours() -> None:
    async def main() -> None:
        async with bus() as kafka:
            consumer = await member(kafka)
            sent = message(headers=(("content-type", "mine"), ("id", "7")), content_type="text/plain")
            assert not await kafka.publish([sent])
            (delivery,) = await take(consumer, 1)
            assert delivery.message.headers == sent.headers
            assert delivery.message.content_type == "text/plain"
            await consumer.close()

    asyncio.run(main())
