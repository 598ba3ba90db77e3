"""What is known beside the messages, in a compacted topic: who wins, what compaction leaves; and strange records."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from confluent_kafka import Producer
from msgspec.structs import replace
from tests.transports.consuming import settle, take, until
from tests.transports.kafka.helpers import bus, member, message

from tidings.kernel.errors import BusError
from tidings.kernel.transport import Event
from tidings.transports.kafka.consumers import GroupConsumer
from tidings.transports.kafka.groups import Tick
from tidings.transports.kafka.records import Record
from tidings.transports.kafka.transport import KafkaTransport

pytestmark = pytest.mark.timeout(60)


async def last(kafka: KafkaTransport, key: str) -> Any:
    """What compaction keeps of a key."""
    stored = await kafka.peek("_tidings.state")
    return json.loads([each.message.body for each in stored if each.message.key == key][-1])["data"]


def test_the_last_record_of_a_key_is_the_entry() -> None:
    """Several writers at once: what the losers wrote comes later in the log."""

    async def main() -> None:
        async with bus() as first, bus(namespace=first.options.namespace) as second:
            logs = [(kafka.state, float(n)) for n in range(8) for kafka in (first, second)]
            won = await asyncio.gather(*(log.replace("tick/report", Tick(due), 0) for log, due in logs))
            (due,) = [due for (_, due), one in zip(logs, won, strict=True) if one]
            assert first.state.read("tick/report", Tick) == second.state.read("tick/report", Tick) == Tick(due)
            assert await last(first, "tick/report") == {"due": due}

    asyncio.run(main())


def test_who_opens_puts_right_what_a_dead_writer_left() -> None:
    async def main() -> None:
        async with bus() as kafka:
            assert await kafka.tick("report", 10.0)
            void = Record(kafka.state.topic, b'{"number":1,"data":{"due":99}}', "tick/report", [])
            await kafka.state.store(void)
            strange = {"group/x": b"junk", "group/y": b'{"number":1,"data":7}', "tick/none": None}
            assert not await kafka.sender.send([Record(kafka.state.topic, strange[key], key, []) for key in strange])
            assert await last(kafka, "tick/report") == {"due": 99}
            async with bus(namespace=kafka.options.namespace) as other:
                await until(lambda: not other.state.hidden, "it is written once more")
                assert await last(other, "tick/report") == {"due": 10.0}
                assert not await other.tick("report", 10.0)

    asyncio.run(main())


def test_a_name_is_taken_once() -> None:
    """Two groups are renamed to it at the same time: one of them keeps its own."""

    async def main() -> None:
        async with bus() as first, bus(namespace=first.options.namespace) as second:
            for name in ("shop.a", "shop.b"):
                await (await member(first, name, f"orders.{name[-1]}")).close()
            await until(lambda: {"shop.a", "shop.b"} <= second.state.groups.keys(), "both know both")
            renamed = (first.rename("shop.a", "shop.c"), second.rename("shop.b", "shop.c"))
            found = await asyncio.gather(*renamed, return_exceptions=True)
            assert {type(each) for each in found} == {type(None), BusError}
            kept, pattern = ("shop.b", "orders.a") if found[0] is None else ("shop.a", "orders.b")
            await until(lambda: first.state.groups.keys() == {kept, "shop.c"}, "one is left")
            assert first.state.groups["shop.c"].pattern == pattern

    asyncio.run(main())


def test_a_consumer_that_fails_is_told_and_replaced() -> None:
    told: list[Event] = []

    async def main() -> None:
        async with bus(told=told, partitions=1) as kafka:
            reads, failures = (former := await member(kafka)).reads, [RuntimeError("nobody foresaw this")]
            await former.close()

            def start(topic: str, partition: int) -> int:
                if failures:
                    raise failures.pop()
                return reads.start(topic, partition)

            consumer = GroupConsumer(kafka, replace(reads, start=start))
            kafka.consumers[consumer] = None
            assert not await kafka.publish([sent := message()])
            (delivery,) = await take(consumer, 1)
            assert delivery.message.id == sent.id
            await settle(consumer, [delivery])
            await consumer.close()

    asyncio.run(main())
    (lost,) = [event for event in told if event.kind == "lost"]
    assert "nobody foresaw this" in lost.detail
    assert [event.kind for event in told].count("connected") == 2


def test_strange_records_among_the_delayed_hold_up_nobody() -> None:
    told: list[Event] = []

    async def main() -> None:
        async with bus(told=told) as kafka:
            consumer = await member(kafka)
            assert not await kafka.publish([message(deliver_at=time.time() + 1.1)])
            producer, topic = (
                Producer({"bootstrap.servers": kafka.options.servers}),
                kafka.names.topic("_tidings.delayed.1"),
            )
            to = kafka.names.topic("orders.placed").encode()
            for headers in (
                [],
                [("tdgto", None), ("tdgdue", None)],
                [("tdgto", to), ("tdgdue", b"soon")],
                [("tdgto", to), ("tdgdue", b"nan")],
                [("tdgto", b"\xff"), ("tdgdue", b"1.0")],
                [("tdgdue", b"1.0"), ("tdgto", to)],
                [("tdgto", b"elsewhere"), ("tdgdue", b"1.0")],
                [("tdgto", to + b"/no/topic"), ("tdgdue", b"1.0")],
            ):
                producer.produce(topic, b"{}", headers=headers)
            assert not producer.flush(10)
            await take(consumer, 1)
            assert not await kafka.publish([sent := message(deliver_at=time.time() + 1.1)])
            (delivery,) = await take(consumer, 1)
            assert delivery.message.id == sent.id
            await consumer.close()

    asyncio.run(main())
    dropped = {event.detail for event in told if event.kind == "dropped"}
    assert len(dropped) == 7
    assert all("_tidings.delayed.1/0/" in where for where in dropped)
