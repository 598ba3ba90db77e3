"""What goes out and its input are one transaction: whatever dies when, each output is there once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from tests.servers import fresh
from tests.transports.consuming import settle, take, until
from tests.transports.kafka.helpers import bus, member, message

from tidings.kernel.errors import BusUnavailable, TooLarge
from tidings.kernel.transport import ACK, Retry, Settlement
from tidings.transports._offsets import State, read
from tidings.transports.kafka import Kafka
from tidings.transports.kafka.transport import KafkaTransport

pytestmark = pytest.mark.timeout(90)


class Settler:
    """The process of ``settler.py``, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[str] = []

    async def says(self, word: str, within: float = 40.0) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(within):
            while not any(re.match(word, line) for line in self.said):
                line = (await self.process.stdout.readline()).decode()
                assert line, f"it ended with {await self.process.wait()}, and never said {word!r}"
                self.said.append(line)

    async def stopped(self) -> None:
        """Until it has stopped itself."""
        found = await asyncio.to_thread(os.waitid, os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
        assert found is not None

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def settler(
    kafka: KafkaTransport, points: str, *, url: str = "", within: float = 600.0, session: str = "1.5s"
) -> AsyncIterator[Settler]:
    """On the same bus; ``points``: where it dies or stops."""
    options = kafka.options
    at = url or f"kafka://{options.servers}"
    url = f"{at}?namespace={options.namespace}&session={session}&refresh=200ms&partitions={options.partitions}"
    argv = (sys.executable, "-m", "tests.transports.kafka.settler", url, str(within))
    environment = os.environ | {"TIDINGS_FAIL_POINTS": points, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, env=environment)
    try:
        yield Settler(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def outputs(kafka: KafkaTransport) -> Counter[str]:
    """How often which are there, once nothing is under way that holds up readers."""
    mark = message("billing.made")
    assert not await kafka.publish([mark])
    ids: list[str] = []
    await until(lambda: kafka.partitions[kafka.names.topic("billing.made")], "the topic is known")
    async with asyncio.timeout(20):
        while mark.id not in ids:
            ids = [stored.message.id for stored in await kafka.peek("billing.made", limit=1000)]
    return Counter(id for id in ids if id != mark.id)


async def answer(kafka: KafkaTransport, count: int) -> None:
    """As the settler does, in this process."""
    consumer = await member(kafka)
    for delivery in await take(consumer, count):
        out = message("billing.made", id=f"{delivery.message.id}.out")
        assert not await consumer.settle([Settlement(delivery, outgoing=(out,))])
    await consumer.close()


@pytest.mark.parametrize(("point", "again"), [("produced", 3), ("before", 3), ("after", 0)])
def test_killed_within_a_transaction(point: str, again: int) -> None:
    """Its open transaction would last for ten minutes: who takes over ends it."""

    async def main() -> None:
        async with bus(partitions=1) as kafka, settler(kafka, f"transaction.{point}=kill") as dead:
            await dead.says("ready")
            assert not await kafka.publish(sent := [message() for _ in range(3)])
            assert await asyncio.wait_for(dead.process.wait(), 40) == -signal.SIGKILL
            await answer(kafka, again)
            assert await outputs(kafka) == {f"{m.id}.out": 1 for m in sent}
            await (rest := await member(kafka)).close()
            assert not rest.windows

    asyncio.run(main())


def test_a_member_that_lost_its_partition_commits_nothing() -> None:
    async def main() -> None:
        async with bus(partitions=1) as kafka, settler(kafka, "transaction.produced=stop") as frozen:
            await frozen.says("ready")
            assert not await kafka.publish([sent := message()])
            await frozen.stopped()
            await answer(kafka, 1)
            frozen.go_on()
            await frozen.says("fenced")
            assert await outputs(kafka) == {f"{sent.id}.out": 1}

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("point", ["produced", "before"])
def test_the_broker_is_killed_within_a_transaction(point: str) -> None:
    with fresh("kafka", group_min_session_timeout_ms=500) as mine:

        async def main() -> None:
            plan, within = f"transaction.{point}=stop", 4.0
            async with bus(url=mine.url, partitions=1) as kafka, settler(kafka, plan, within=within) as asked:
                await asked.says("ready")
                assert not await kafka.publish(sent := [message() for _ in range(3)])
                await asked.stopped()
                mine.kill()
                asked.go_on()
                await asyncio.to_thread(mine.start)
                while sum(line.startswith("settled") for line in asked.said) < 3:
                    asked.said, before = [], asked.said
                    await asked.says("settled", 60)
                    asked.said += before
                assert await outputs(kafka) == {f"{m.id}.out": 1 for m in sent}

        asyncio.run(main())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_outcome_that_nobody_told_is_looked_up() -> None:
    """The commit arrives and its answer does not."""
    with fresh("kafka", group_min_session_timeout_ms=500) as mine:

        async def main() -> None:
            plan, within = "transaction.before=stop", 4.0
            async with (
                bus(url=mine.url, partitions=1) as kafka,
                mine.proxied() as (url, proxy),
                settler(kafka, plan, url=url, within=within, session="20s") as asked,
            ):
                await asked.says("ready")
                assert not await kafka.publish([sent := message()])
                await asked.stopped()
                proxy.down.stall()
                asked.go_on()
                place, offset = (kafka.names.topic("orders.placed"), 0), 0
                async with asyncio.timeout(40):
                    while offset < 1:
                        offset, _ = (await kafka.groups_.committed("shop.bill"))[place]
                await asked.says("log .*(operation|transaction)", 60)  # it has given up waiting
                proxy.reset()
                proxy.heal()
                await asked.says("settled", 60)
                assert await outputs(kafka) == {f"{sent.id}.out": 1}

        asyncio.run(main())


def test_what_is_refused_touches_no_other_one_of_its_transaction() -> None:
    """By the broker, which refuses all that it was sent together with."""

    async def main() -> None:
        async with bus(partitions=1) as kafka:
            consumer = await member(kafka)
            topic = kafka.names.topic("billing.made")
            admin = AdminClient({"bootstrap.servers": kafka.options.servers})
            admin.create_topics([NewTopic(topic, 1, 1, config={"max.message.bytes": "2000"})])[topic].result(10)
            await kafka.publish([message() for _ in range(6)])
            taken = await take(consumer, 6)
            outs = [message("billing.made", id=d.message.id) for d in taken]
            outs[2] = message("billing.made", body=b"x" * 5000)
            settlements = [Settlement(d, outgoing=(out,)) for d, out in zip(taken[:4], outs[:4], strict=True)]
            settlements += [Settlement(taken[4]), Settlement(taken[5], Retry(0.0, 1), outgoing=(outs[5],))]
            (failure,) = await consumer.settle(settlements)
            assert (failure.index, failure.kind) == (2, "rejected")
            assert isinstance(failure.error, TooLarge)
            assert await outputs(kafka) == {outs[n].id: 1 for n in (0, 1, 3, 5)}
            (back,) = await take(consumer, 1)
            assert (back.message.id, back.failures) == (taken[5].message.id, 1)
            await settle(consumer, [taken[2], back])
            await consumer.close()
            assert not await kafka.publish([last := message()])
            again = await member(kafka)
            assert [d.message.id for d in await take(again, 1)] == [last.id]
            await again.close()

    asyncio.run(main())


def test_a_settlement_under_way_is_not_done_twice() -> None:
    async def main() -> None:
        async with bus(partitions=1) as kafka:
            consumer = await member(kafka)
            await kafka.publish([message()])
            (taken,) = await take(consumer, 1)
            both = [Settlement(taken, outgoing=(message("billing.made", id=f"out{n}"),)) for n in range(2)]
            found = await asyncio.gather(*(consumer.settle([each]) for each in both))
            assert [[failure.kind for failure in failures] for failures in found] == [[], ["fenced"]]
            assert await outputs(kafka) == {"out0": 1}
            await consumer.close()

    asyncio.run(main())


def test_only_who_sends_uses_transactions() -> None:
    """Replies go plainly, too. After a clean end no writer is told, so nobody looks for its transactions."""

    async def main() -> None:
        async with bus(partitions=1) as kafka:
            consumer, place = await member(kafka), (kafka.names.topic("orders.placed"), 0)
            await kafka.ensure(["_reply.me"])
            await kafka.publish([message() for _ in range(3)])
            first, second, third = await take(consumer, 3)
            assert not await consumer.settle([Settlement(first, Retry(0.0, 1)), Settlement(second)])
            reply = message("orders.placed", address="_reply.me", correlation_id="c")
            assert not await consumer.settle([Settlement(third, ACK, (reply,))])
            assert read((await kafka.groups_.committed("shop.bill"))[place][1]).writer == ""
            assert consumer.exchanges is not None
            (again,) = await take(consumer, 1)
            assert not await consumer.settle([Settlement(again, Retry(0.0, 2), (message("billing.made"),))])
            state = State()
            async with asyncio.timeout(20):
                while not state.turn:  # a transaction may be over a moment before it is seen
                    state = read((await kafka.groups_.committed("shop.bill"))[place][1])
            assert (state.writer, state.turn, state.facts[0].failures) == (consumer.exchanges.writer, 1, 2)
            await consumer.close()
            assert read((await kafka.groups_.committed("shop.bill"))[place][1]).writer == ""

    asyncio.run(main())


async def counted(bus: KafkaTransport, count: int) -> None:
    """So many dead letters are there, soon: a transaction that is committed shows a moment later."""
    async with asyncio.timeout(20):
        while [info.dead for info in await bus.groups("shop.bill")] != [count]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_dead_letters_are_counted_without_the_ends_of_transactions() -> None:
    """Also those that somebody else wrote meanwhile; and from where they were deleted."""

    async def main() -> None:
        async with bus() as kafka:
            consumer, dead = await member(kafka), (kafka.names.topic("_dead.shop.bill"), 0)
            for count in range(1, 4):
                await kafka.publish([message()])
                (taken,) = await take(consumer, 1)
                assert not await consumer.settle([Settlement(taken, ACK, (message(address="_dead.shop.bill"),))])
                await counted(kafka, count)
            assert (await kafka.ends([dead]))[dead] > 3
            async with bus(namespace=kafka.options.namespace) as other:
                assert [info.dead for info in await other.groups("shop.bill")] == [3]
                (deleted,) = kafka.admin.delete_records([TopicPartition(*dead, 2)]).values()
                await asyncio.wrap_future(deleted)
                assert [info.dead for info in await kafka.groups("shop.bill")] == [2]
                await consumer.close()

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_where_transactions_do_not_work_joining_a_group_says_so() -> None:
    with fresh("kafka", transaction_state_log_replication_factor=3) as mine:

        async def main() -> None:
            async with bus(url=mine.url) as kafka:
                with pytest.raises(BusUnavailable, match="transactions cannot be begun") as refusal:
                    await member(kafka)
                assert "transactions=false" in refusal.value.mend
            async with bus(url=mine.url, transactions="false") as kafka:
                await (await member(kafka)).close()

        asyncio.run(main())


def test_without_transactions() -> None:
    async def main() -> None:
        async with bus(transactions="false") as kafka:
            assert not kafka.capabilities.atomic_settle
            consumer = await member(kafka)
            assert not await kafka.publish([message()])
            (taken,) = await take(consumer, 1)
            assert not await consumer.settle([Settlement(taken, outgoing=(message("billing.made", id="out"),))])
            assert await outputs(kafka) == {"out": 1}
            await consumer.close()

    asyncio.run(main())
    hubs = "eventhubs://:Endpoint%3Dsb%3A%2F%2Fx%2F@x.servicebus.windows.net"
    assert not Kafka.from_url(hubs).transactions
    assert Kafka.from_url(f"{hubs}?transactions=true").transactions
