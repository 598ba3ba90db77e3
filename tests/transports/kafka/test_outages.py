"""The broker is not there, goes away, or does not let us in."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tests.servers import fresh
from tests.transports.consuming import nothing, settle, take, until
from tests.transports.kafka.helpers import bus, member, message

from tidings.kernel.errors import BusUnavailable, InvalidURL
from tidings.kernel.transport import Settlement
from tidings.transports.kafka import Kafka


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kafka://localhost?partition=3", "partitions"),
        ("kafka://localhost?partitions=none", "partitions"),
        ("kafka://localhost?partitions=0", "at least 1"),
        ("kafka://localhost?lease=soon", "lease"),
        ("kafka://localhost?namespace=a/b", "namespace"),
        ("kafka://localhost:port", "port"),
    ],
)
def test_bad_urls(url: str, says: str) -> None:
    with pytest.raises(InvalidURL, match=says):
        Kafka.from_url(url)


def test_urls() -> None:
    kafka = Kafka.from_url("kafka+ssl://app:s%40@b1,b2:9095?mechanism=SCRAM-SHA-256&partitions=12")
    config = kafka.config_for(lambda error: None)
    assert (kafka.servers, kafka.partitions) == ("b1:9092,b2:9095", 12)
    assert (config["security.protocol"], config["sasl.mechanism"]) == ("SASL_SSL", "SCRAM-SHA-256")
    assert (config["sasl.username"], config["sasl.password"]) == ("app", "s@")
    hubs = Kafka.from_url("eventhubs://:Endpoint%3Dsb%3A%2F%2Fx%2F@x.servicebus.windows.net")
    config = hubs.config_for(lambda error: None)
    assert (hubs.servers, config["security.protocol"]) == ("x.servicebus.windows.net:9093", "SASL_SSL")
    assert (config["sasl.username"], config["sasl.password"]) == ("$ConnectionString", "Endpoint=sb://x/")


@pytest.mark.timeout(30)
def test_nobody_is_there() -> None:
    async def main() -> None:
        transport = Kafka(hosts=(("127.0.0.1", 9),), connect=1.0).transport()
        with pytest.raises(BusUnavailable, match=r"no Kafka at 127.0.0.1:9") as refusal:
            await transport.open(lambda event: None)
        assert "refused" in refusal.value.why.lower()
        await transport.close()

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_wrong_password_is_told_and_the_right_one_works() -> None:
    with fresh("kafka", sasl="app:s3cret", group_min_session_timeout_ms=500) as mine:
        at = mine.url.rpartition("@")[2].removeprefix("kafka://")

        async def main() -> None:
            for mechanism in ("PLAIN", "SCRAM-SHA-256"):
                wrong = Kafka.from_url(f"kafka://app:wrong@{at}?mechanism={mechanism}").transport()
                with pytest.raises(BusUnavailable, match="no Kafka at") as refusal:
                    await wrong.open(lambda event: None)
                assert "AUTHENTICATION" in refusal.value.why
                assert "wrong" not in str(refusal.value)
                async with bus(url=f"kafka://app:s3cret@{at}", mechanism=mechanism) as right:
                    assert not await right.publish([message()])

        asyncio.run(main())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_partition_of_the_network() -> None:
    """A publish waits for it to end, up to ``publish_wait``; then it says so."""
    with fresh("kafka", group_min_session_timeout_ms=500) as mine:

        async def main() -> None:
            async with mine.proxied() as (url, proxy), bus(url=url, publish_wait="4s") as kafka:
                consumer = await member(kafka)
                assert not await kafka.publish([message()])
                proxy.up.stall()
                proxy.down.stall()
                waiting = asyncio.ensure_future(kafka.publish([sent := message()]))
                await asyncio.sleep(2)
                assert not waiting.done()
                proxy.up.heal()
                proxy.down.heal()
                assert not await waiting
                ids = set[str]()
                async with asyncio.timeout(20):
                    while sent.id not in ids:
                        batch = await consumer.receive(10)
                        ids |= {d.message.id for d in batch}
                        await settle(consumer, batch)
                proxy.up.stall()
                proxy.down.stall()
                (failure,) = await kafka.publish([message()])
                assert failure.kind == "unknown"
                assert isinstance(failure.error, BusUnavailable)
                proxy.up.heal()
                proxy.down.heal()
                await consumer.close()

        asyncio.run(main())


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("outputs", [0, 1], ids=["a commit", "a transaction"])
def test_who_lost_its_session_commits_nothing(outputs: int) -> None:
    """Its client knows, and has not said so yet: the broker would take it for somebody from outside, and not refuse."""
    with fresh("kafka", group_min_session_timeout_ms=500) as mine:

        async def main() -> None:
            async with (
                bus(url=mine.url, partitions=1) as near,
                mine.proxied() as (url, proxy),
                bus(url=url, namespace=near.options.namespace, partitions=1) as far,
            ):
                cut = await member(far)
                assert not await near.publish([message() for _ in range(3)])
                ready = [
                    Settlement(held, outgoing=tuple(message("billing.made") for _ in range(outputs)))
                    for held in await take(cut, 3)
                ]
                assert not await cut.settle(ready[:1])
                gate = threading.Event()
                asleep = cut.poller.do(gate.wait)
                settling = asyncio.ensure_future(cut.settle(ready[1:2]))
                proxy.partition()
                await until(lambda: not cut.poller.consumer.memberid(), "its session is over")
                heir = await member(near)
                await settle(heir, await take(heir, 2))
                await heir.close()
                proxy.heal()
                gate.set()
                await asleep
                (failure,) = await settling
                assert failure.kind == "fenced"
                await cut.close()
                last = await member(near)
                await nothing(last, 3.0)
                await last.close()

        asyncio.run(main())
