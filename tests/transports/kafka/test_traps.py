"""What others stumbled over, and so did we: each test fails without its handling."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic
from tests.transports.consuming import settle, take, until
from tests.transports.kafka.helpers import bus, member, message

from tidings.kernel.errors import NoAnswerer, TooLarge
from tidings.kernel.transport import Event, Retry, Settlement, Subscription
from tidings.transports.kafka import clients

pytestmark = pytest.mark.timeout(60)


def test_a_commit_does_not_wait_behind_polls() -> None:
    """A call of another thread loses against the polling one for seconds."""

    async def main() -> None:
        async with bus() as kafka:
            consumer = await member(kafka)
            await kafka.publish([message() for _ in range(20)])
            taken = await take(consumer, 20)
            for delivery in taken:
                began = time.monotonic()
                await settle(consumer, [delivery])
                assert time.monotonic() - began < 0.5
            await consumer.close()

    asyncio.run(main())


def test_a_full_queue_is_waited_for() -> None:
    async def main() -> None:
        async with bus(client={"queue.buffering.max.messages": "50"}) as kafka:
            consumer = await member(kafka)
            assert not await kafka.publish(sent := [message() for _ in range(2000)])
            assert {d.message.id for d in await take(consumer, 2000)} == {m.id for m in sent}
            await consumer.close()

    asyncio.run(main())


def test_who_takes_nothing_stays_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    """More is there than the buffer holds, and nobody takes it: the thread goes on polling, and loses nothing."""
    monkeypatch.setattr(clients, "HIGH", 100)

    async def main() -> None:
        async with bus(client={"max.poll.interval.ms": "2000"}, partitions=1) as kafka:
            consumer = await member(kafka)
            sent = [message() for _ in range(3000)]
            assert not await kafka.publish(sent)
            await take(consumer, 1)
            await asyncio.sleep(4)
            assert consumer.windows, "thrown out of the group"
            came = await take(consumer, 2999)
            assert {d.message.id for d in came} < {m.id for m in sent}
            assert len({d.token for d in came}) == 2999
            await consumer.close()

    asyncio.run(main())


def test_a_partition_in_hand_is_finished_before_it_is_given_up() -> None:
    """A second member joins amid work: nothing is repeated, nothing is fenced."""

    async def main() -> None:
        async with bus() as first, bus(namespace=first.options.namespace) as second:
            mine = await member(first)
            sent = [message(key=f"k{n}") for n in range(400)]
            assert not await first.publish(sent)
            held = await take(mine, 100)
            other = await member(second)
            await asyncio.sleep(1.0)  # the rebalance waits for us
            done = [d.message.id for d in held]
            await settle(mine, held)

            async def work(consumer: object) -> None:
                while batch := await consumer.receive(50):  # type: ignore[attr-defined]
                    done.extend(d.message.id for d in batch)
                    await settle(consumer, batch)  # type: ignore[arg-type]

            working = [asyncio.ensure_future(work(consumer)) for consumer in (mine, other)]
            await until(lambda: len(done) >= 400 and other.windows, "all handled, by two members")
            await asyncio.sleep(0.3)
            assert sorted(done) == sorted(m.id for m in sent)
            for consumer in (mine, other):
                consumer.stop()
            await asyncio.gather(*working)
            await mine.close()
            await other.close()

    asyncio.run(main())


def test_settled_out_of_order_and_handed_on() -> None:
    """The committed offset alone would repeat what was settled beyond it."""

    async def main() -> None:
        async with bus(partitions=1) as kafka:
            consumer = await member(kafka)
            await kafka.publish(sent := [message() for _ in range(50)])
            taken = await take(consumer, 50)
            await settle(consumer, taken[1::2])
            await consumer.close()
            again = await member(kafka)
            assert [d.message.id for d in await take(again, 25)] == [m.id for m in sent[::2]]
            await again.close()

    asyncio.run(main())


def test_what_waited_while_its_partition_was_lost_is_not_committed() -> None:
    """Whoever has it now would go back to where we were: a broker only looks at who is a member."""

    async def main() -> None:
        async with bus(partitions=1) as kafka:
            consumer = await member(kafka)
            await kafka.publish([message() for _ in range(2)])
            first, second = await take(consumer, 2)
            await settle(consumer, [first])
            lost: Any = second.session
            assert lost.settle(second)
            lost.alive = False  # as the client's callback has it, in its own thread
            assert await consumer.store([lost])
            offset, _ = (await kafka.groups_.committed("shop.bill"))[lost.place]
            assert offset == 1
            await consumer.close()

    asyncio.run(main())


def test_a_new_topic_of_a_wildcard_is_read_from_its_beginning() -> None:
    async def main() -> None:
        async with bus() as kafka, bus(namespace=kafka.options.namespace) as other:
            consumer = await member(kafka, pattern="sensors.>")
            sent = [message(f"sensors.s{n}") for n in range(5)]
            assert not await other.publish(sent)
            assert {d.message.id for d in await take(consumer, 5)} == {m.id for m in sent}
            await consumer.close()

    asyncio.run(main())


def test_a_longer_delay_goes_by_way_of_the_levels() -> None:
    """And is in no level any more afterwards; the group sees only the topic."""

    async def main() -> None:
        async with bus() as kafka:
            consumer = await member(kafka)
            await kafka.publish([message()])
            (first,) = await take(consumer, 1)
            began = time.time()
            assert not await consumer.settle([Settlement(first, Retry(2.3, 1))])
            (again,) = await take(consumer, 1)
            assert 2.3 <= time.time() - began < 6
            assert (again.failures, again.message.id, again.message.topic) == (1, first.message.id, "orders.placed")
            levels = {name for name in kafka.destinations.values() if name.startswith("_tidings.delayed.")}
            assert "_tidings.delayed.1" in levels
            await settle(consumer, [again])
            await consumer.close()

    asyncio.run(main())


def test_a_topic_that_was_deleted_is_made_again() -> None:
    async def main() -> None:
        async with bus(publish_wait="5s") as kafka:
            assert not await kafka.publish([message()])
            topic = kafka.names.topic("orders.placed")
            await asyncio.wrap_future(kafka.admin.delete_topics([topic])[topic])
            await until(lambda: topic not in kafka.partitions, "the deletion is noticed")
            assert not await kafka.publish([message()])

    asyncio.run(main())


def test_a_smaller_limit_of_a_topic_rejects_the_one_that_is_too_large() -> None:
    """The broker refuses everything that it was sent together with."""

    async def main() -> None:
        async with bus() as kafka:
            topic = kafka.names.topic("orders.placed")
            admin = AdminClient({"bootstrap.servers": kafka.options.servers})
            admin.create_topics([NewTopic(topic, 1, 1, config={"max.message.bytes": "2000"})])[topic].result(10)
            small, large = message(), message(body=b"x" * 5000)
            (failure,) = await kafka.publish([small, large])
            assert (failure.index, failure.kind) == (1, "rejected")
            assert isinstance(failure.error, TooLarge)

    asyncio.run(main())


def test_names_that_kafka_does_not_allow() -> None:
    async def main() -> None:
        async with bus() as kafka:
            consumer = await member(kafka, pattern="devices.*.up")
            await kafka.publish([message("devices.a%2Eb.up"), message("devices.x-Z.up")])
            came = {d.message.topic for d in await take(consumer, 2)}
            assert came == {"devices.a%2Eb.up", "devices.x-Z.up"}
            assert kafka.names.topic("devices.a%2Eb.up").endswith("devices.a-Z2Eb.up")
            await consumer.close()

    asyncio.run(main())


def test_nobody_answers_once_the_answerer_has_gone() -> None:
    async def main() -> None:
        async with bus() as kafka, bus(namespace=kafka.options.namespace) as asking:
            asked = message(address="_request.prices", reply_to="_reply.me")
            consumer = await member(kafka, "prices", "_request.prices")
            await until(lambda: "prices" in asking.state.groups, "the group is known everywhere")
            assert not await asking.publish([asked])
            await consumer.close()
            await asyncio.sleep(1.1)
            (failure,) = await asking.publish([asked])
            assert isinstance(failure.error, NoAnswerer)

    asyncio.run(main())


def test_what_the_client_only_logs_is_told() -> None:
    """A session timeout that the broker refuses: the group is never joined, and somebody must say why."""
    told: list[Event] = []

    async def main() -> None:
        async with bus(told=told, client={"session.timeout.ms": "3000000", "max.poll.interval.ms": "3000000"}) as kafka:
            consumer = await member(kafka)
            await until(lambda: "SESSION_TIMEOUT" in kafka.trouble, "told")
            await consumer.close()

    asyncio.run(main())


def test_what_retention_has_deleted_is_passed_over() -> None:
    """The first record there is lies further than is ever declared as handed out at once."""

    async def main() -> None:
        async with bus(partitions=1) as kafka:
            for _ in range(30):
                await kafka.publish([message() for _ in range(100)])
            topic = kafka.names.topic("orders.placed")
            (deleted,) = kafka.admin.delete_records([TopicPartition(topic, 0, 2990)]).values()
            await asyncio.wrap_future(deleted)
            asked = Subscription(app="tests", pattern="orders.placed", group="shop.bill", start=0.0)
            consumer = await kafka.subscribe(asked)
            taken = await take(consumer, 10)
            assert [delivery.token for delivery in taken] == list(range(2990, 3000))
            await settle(consumer, taken)
            await consumer.close()

    asyncio.run(main())


def test_a_topic_that_cannot_be_made_touches_no_other_output() -> None:
    """Two topics that Kafka takes for one: the output to the second is refused, and the rest of the batch settled."""

    async def main() -> None:
        async with bus() as kafka:
            consumer = await member(kafka)
            await kafka.publish([message() for _ in range(3)])
            await kafka.publish([message("billing.made")])
            taken = await take(consumer, 3)
            bad, good = message("billing_made"), message("billing.made")
            settlements = [
                Settlement(taken[0], outgoing=(bad,)),
                Settlement(taken[1], outgoing=(good,)),
                Settlement(taken[2]),
            ]
            (failure,) = await consumer.settle(settlements)
            assert (failure.index, failure.kind) == (0, "rejected")
            await consumer.close()

    asyncio.run(main())


class Behind:
    """A client whose broker has not heard of the latest topics yet: for a second its list is that of before."""

    def __init__(self, admin: Any) -> None:
        self.admin, self.before, self.until = admin, admin.list_topics(timeout=10), time.monotonic() + 1.0

    def list_topics(self, timeout: float) -> Any:
        now = self.admin.list_topics(timeout=timeout)
        return self.before if time.monotonic() < self.until else now

    def __getattr__(self, name: str) -> Any:
        return getattr(self.admin, name)


@pytest.mark.parametrize("pattern", ["orders.placed", "_request.prices"])
def test_a_broker_may_be_behind_with_its_list_of_topics(pattern: str) -> None:
    """Who subscribes meanwhile begins where the group begins, and is a member."""

    async def main() -> None:
        async with bus() as kafka:
            kafka.admin = Behind(kafka.admin)  # type: ignore[assignment]
            async with asyncio.timeout(10):
                consumer = await member(kafka, pattern=pattern)
            assert set(kafka.state.groups["shop.bill"].start) == {
                kafka.names.topic(name) for name in (pattern, "_group.shop.bill")
            }
            sent = message("orders.placed", address=pattern if pattern.startswith("_") else None)
            assert not await kafka.publish([sent])
            assert [d.message.id for d in await take(consumer, 1)] == [sent.id]
            await consumer.close()

    asyncio.run(main())


def test_partitions_that_are_added_are_read_soon() -> None:
    """The client looks for them twice a minute by itself, and for topics that it did not find when it subscribed."""

    async def main() -> None:
        async with bus(partitions=1) as kafka:
            consumer = await member(kafka)
            topic = kafka.names.topic("orders.placed")
            (added,) = kafka.admin.create_partitions([NewPartitions(topic, 4)]).values()
            await asyncio.wrap_future(added)
            await until(lambda: kafka.partitions[topic] == 4, "they are seen")
            await until(lambda: len(consumer.windows) == 5, "they are assigned, and the private topic", 15)
            await consumer.close()

    asyncio.run(main())


async def test_replies_are_no_topics_to_look_into() -> None:
    """They share one topic, whose partitions belong to who asked."""
    async with bus() as b:
        assert list(await b.topics("_reply.>")) == list(await b.peek("_reply.>")) == []
