"""No message is skipped, whatever is under way: new topics, other publishers, other groups' claims."""

from __future__ import annotations

import asyncio

import pytest
from tests.transports.consuming import settle, until
from tests.transports.postgres.helpers import bus, group, message


@pytest.mark.parametrize("ordered", [False, True])
async def test_topics_that_appear_while_a_group_reads(place: str, ordered: bool) -> None:
    """A claim that moves its cursor beyond a message knows the message's topic, however new."""
    async with bus(place) as end, bus(place) as other, bus(place) as third:
        consumer = await end.subscribe(group("sensors.>", ordered=ordered))
        came: set[str] = set()

        async def read() -> None:
            while batch := await consumer.receive(100):
                came.update(delivery.message.id for delivery in batch)
                await settle(consumer, batch)

        async def publish(source: object, start: int, topic: str) -> None:
            for n in range(start, start + 300):
                assert not await source.publish([message(n, topic.format(n))])  # type: ignore[attr-defined]

        reading = asyncio.ensure_future(read())
        await asyncio.gather(publish(other, 0, "sensors.new{}"), publish(third, 1000, "sensors.old"))
        await until(lambda: len(came) == 600)
        consumer.stop()
        await reading


async def test_several_publish_at_once(place: str) -> None:
    """Each one's messages in its order, all of them, to every group."""
    async with bus(place) as one, bus(place) as two, bus(place) as three:
        consumers = [await one.subscribe(group()), await two.subscribe(group(name="shop.ship", ordered=True))]
        came: list[list[int]] = [[], []]

        async def read(index: int) -> None:
            while batch := await consumers[index].receive(64):
                came[index] += [int(delivery.message.body) for delivery in batch]
                await settle(consumers[index], batch)

        async def publish(source: object, start: int) -> None:
            for n in range(start, start + 500, 5):
                assert not await source.publish([message(n + i, key="k") for i in range(5)])  # type: ignore[attr-defined]

        reading = [asyncio.ensure_future(read(index)) for index in range(2)]
        await asyncio.gather(*(publish(source, 1000 * n) for n, source in enumerate((one, two, three))))
        await until(lambda: min(map(len, came)) >= 1500)
        for consumer in consumers:
            consumer.stop()
        await asyncio.gather(*reading)
        for found in came:
            assert len(found) == len(set(found)) == 1500
            for n in range(3):
                own = [value for value in found if value // 1000 == n]
                assert own == sorted(own)
