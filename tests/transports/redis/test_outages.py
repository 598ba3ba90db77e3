"""The server dies, moves, hangs, is cut off: nothing accepted is lost, and all goes on without help."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.servers import cluster, fresh
from tests.transports.consuming import settle, take, until
from tests.transports.redis.helpers import bus, group, kinds, message, namespace, raw

from tidings.kernel.errors import BusError, BusUnavailable
from tidings.kernel.transport import Event

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class Load:
    """Publishes one message after the other and handles what comes; knows what was accepted."""

    def __init__(self, transport: Any, consumer: Any) -> None:
        self.transport, self.consumer = transport, consumer
        self.accepted: set[str] = set()
        self.handled: list[str] = []
        self.unknown = self.sent = 0
        self.stopping = False

    async def publish(self) -> None:
        while not self.stopping:
            batch = [message(self.sent + n) for n in range(5)]
            self.sent += 5
            failures = await self.transport.publish(batch)
            self.unknown += len(failures)
            self.accepted |= {m.id for m in batch} if not failures else set()
            await asyncio.sleep(0.002)

    async def consume(self) -> None:
        while True:
            try:
                batch = await self.consumer.receive(20)
            except BusError:
                await asyncio.sleep(0.1)
                continue
            if not batch:
                return
            self.handled += [d.message.id for d in batch]
            while True:
                try:
                    await settle(self.consumer, batch)
                    break
                except BusError:
                    await asyncio.sleep(0.1)

    async def through(self, trouble: Any) -> None:
        publishing, consuming = asyncio.ensure_future(self.publish()), asyncio.ensure_future(self.consume())
        await asyncio.sleep(0.3)
        await trouble(self)
        await asyncio.sleep(0.3)
        self.stopping = True
        await publishing
        await until(lambda: self.accepted <= set(self.handled), "accepted is handled", 20)
        self.consumer.stop()
        await consuming
        assert len(self.accepted) > 50
        assert len(self.handled) - len(set(self.handled)) <= 60, "more was repeated than was in hand"


async def moved_on(load: Load) -> None:
    """It accepts and handles again."""
    accepted, handled = len(load.accepted), len(load.handled)
    await until(lambda: len(load.accepted) > accepted + 20 and len(load.handled) > handled + 20, "it goes on", 30)


async def test_publishing_waits_and_then_says_so() -> None:
    with fresh("redis") as mine:
        async with bus(mine.url, publish_wait=0.5) as open:
            await asyncio.to_thread(mine.kill)
            await until(lambda: not open.up.is_set())
            began = time.monotonic()
            (failure,) = await open.publish([message(1)])
            assert (failure.kind, type(failure.error)) == ("rejected", BusUnavailable)
            assert 0.4 < time.monotonic() - began < 3
            await asyncio.to_thread(mine.start)
            await until(open.up.is_set)
            assert await open.publish([message(2)]) == ()
            assert [stored.message.id for stored in await open.peek("orders.placed")] == ["m2"]


async def test_while_it_loads_its_data_it_is_waited_for() -> None:
    """LOADING: it answers, and refuses."""
    refused, serving = 0, list[Any]()

    async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()
        await sink.wait_closed()

    async def loading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal refused
        refused += 1
        serving.append(asyncio.current_task())
        if refused <= 3:
            await reader.read(1000)
            writer.write(b"-LOADING Redis is loading the dataset in memory\r\n" * 3)
            writer.close()
            await writer.wait_closed()
        else:
            up, down = await asyncio.open_connection("127.0.0.1", mine.port)
            await asyncio.gather(pipe(reader, down), pipe(up, writer), return_exceptions=True)

    with fresh("redis") as mine:
        door = await asyncio.start_server(loading, "127.0.0.1", 0)
        port = door.sockets[0].getsockname()[1]
        async with bus(f"redis://127.0.0.1:{port}") as open:
            assert refused > 3
            assert await open.publish([message()]) == ()
        door.close()
        await asyncio.gather(*serving, return_exceptions=True)


async def test_read_only_is_waited_for() -> None:
    """READONLY: a primary that was made a replica."""
    told: list[Event] = []
    with fresh("redis") as mine:
        async with bus(mine.url, told) as open:

            async def demoted(load: Load) -> None:
                client = raw(mine.url)
                client.replicaof("127.0.0.1", 1)
                await asyncio.sleep(0.5)
                assert "lost" in kinds(told)
                client.replicaof("NO", "ONE")
                await moved_on(load)

            await Load(open, await open.subscribe(group())).through(demoted)


async def test_cut_off_and_reset() -> None:
    told: list[Event] = []
    with fresh("redis") as mine:
        async with mine.proxied() as (url, proxy), bus(url, told) as open:

            async def cut(load: Load) -> None:
                proxy.reset()
                await moved_on(load)
                proxy.partition()
                await asyncio.sleep(1.0)
                proxy.heal()
                proxy.reset()
                await moved_on(load)

            await Load(open, await open.subscribe(group())).through(cut)
    assert kinds(told).count("lost") >= 2


async def test_half_open_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer, no error: the connection is given up, and another one made."""
    monkeypatch.setattr("tidings.transports.redis.links.ANSWER", 1.0)
    told: list[Event] = []
    with fresh("redis") as mine:
        async with mine.proxied() as (url, proxy), bus(url, told, publish_wait=20.0) as open:
            consumer = await open.subscribe(group())
            await open.publish([message(1)])
            await settle(consumer, await take(consumer, 1))
            waiting = asyncio.ensure_future(consumer.receive(10))
            await asyncio.sleep(0.1)
            proxy.down.stall()
            await until(lambda: "lost" in kinds(told), "silence is noticed", 10)
            proxy.heal()
            await until(lambda: kinds(told).count("connected") == 2, "connected again", 15)
            assert await open.publish([message(2)]) == ()
            assert [d.message.id for d in await asyncio.wait_for(waiting, 20)] == ["m2"]


async def test_frozen_server() -> None:
    with fresh("redis") as mine:
        async with bus(mine.url) as open:

            async def frozen(load: Load) -> None:
                await asyncio.to_thread(mine.pause)
                await asyncio.sleep(1.0)
                await asyncio.to_thread(mine.resume)
                await moved_on(load)

            load = Load(open, await open.subscribe(group()))
            await load.through(frozen)
            assert load.unknown == 0
            assert len(load.handled) == len(set(load.handled))


async def test_a_sentinel_says_where_the_primary_is() -> None:
    told: list[Event] = []
    with fresh("sentinel") as sentinel:
        primary = sentinel.behind["redis_primary"]
        async with bus(sentinel.url, told, publish_wait=30.0, replicas=1) as open:
            consumer = await open.subscribe(group())
            assert await open.publish([message(n) for n in range(10)]) == ()
            await settle(consumer, await take(consumer, 5))
            await asyncio.to_thread(primary.kill)
            open.options = (
                open.options.__replace__(replicas=0) if hasattr(open.options, "__replace__") else open.options
            )
            await until(lambda: kinds(told).count("connected") == 2, "failed over", 30)
            assert f":{primary.port}" not in told[-1].detail
            assert sorted(d.message.id for d in await take(consumer, 5)) == [f"m{n}" for n in range(5, 10)]


async def test_a_sentinel_that_knows_no_such_primary() -> None:
    with fresh("sentinel") as sentinel, pytest.raises(BusUnavailable, match="knows no primary 'other'"):
        async with bus(sentinel.url.replace("/tidings", "/other")):
            pass


async def test_a_cluster() -> None:
    """Each bus is on one node; a node that does not have it says so; one that is killed is waited for."""
    with cluster("redis") as three:
        names = [namespace() for _ in range(6)]
        ports = set()
        for name in names:
            async with bus(three.url, namespace=name) as open:
                consumer = await open.subscribe(group("orders.*"))
                assert (
                    await open.publish([message(1), message(2, "orders.paid"), message(3, deliver_at=time.time())])
                    == ()
                )
                await settle(consumer, await take(consumer, 3))
                assert [info.messages for info in await open.topics()] == [1, 2] or len(await open.topics()) == 2
                assert await open.client.ping()
                ports.add(open.link.port)
        assert len(ports) > 1, "inconclusive: all on one node"
        with pytest.raises(BusUnavailable, match="is a cluster"):
            async with bus(f"redis://127.0.0.1:{three.nodes[0].port}"):
                pass
        async with bus(three.url, namespace=names[0], publish_wait=30.0) as open:
            node = next(node for node in three.nodes if node.port == open.link.port)

            async def killed(load: Load) -> None:
                await asyncio.to_thread(node.restart)
                await moved_on(load)

            await Load(open, await open.subscribe(group())).through(killed)


async def test_an_outage_longer_than_the_lease_makes_nobody_a_suspect() -> None:
    """All are silent meanwhile: whoever is back first must not take it all for left behind."""
    with fresh("redis") as mine:
        name = namespace()
        async with (
            mine.proxied() as (url, proxy),
            bus(mine.url, namespace=name, lease=3.0) as one,
            bus(url, namespace=name, lease=3.0) as two,
        ):
            consumers = [await each.subscribe(group()) for each in (one, two)]
            await one.publish([message(n) for n in range(8)])
            held = [await consumer.receive(4) for consumer in consumers]
            waiting = [asyncio.ensure_future(consumer.receive(9)) for consumer in consumers]
            proxy.reset(new=True)
            await asyncio.to_thread(mine.kill)
            await asyncio.sleep(3.2)
            await asyncio.to_thread(mine.start)
            await until(one.up.is_set)
            await asyncio.sleep(1.0)
            proxy.heal()
            await until(two.up.is_set)
            for _ in range(8):
                await asyncio.sleep(0.2)
                for consumer, in_hand in zip(consumers, held, strict=True):
                    await consumer.extend(in_hand)
            assert not any(each.done() for each in waiting)
            for consumer, in_hand in zip(consumers, held, strict=True):
                assert all(d.session.alive for d in in_hand)
                await settle(consumer, in_hand)
                consumer.stop()
            await asyncio.gather(*waiting)


@pytest.mark.parametrize("pattern", ["orders.placed", None])
async def test_stopping_does_not_wait_for_a_server_that_is_down(pattern: str | None) -> None:
    with fresh("redis") as mine:
        async with bus(mine.url) as open:
            name = "shop.bill" if pattern else None
            consumer = await open.subscribe(group("orders.placed", name=name))  # type: ignore[arg-type]
            waiting = asyncio.ensure_future(consumer.receive(1))
            await asyncio.to_thread(mine.kill)
            await until(lambda: not open.up.is_set())
            consumer.changed()  # so it would look for its streams
            await asyncio.sleep(0.3)
            began = time.monotonic()
            consumer.stop()
            assert not await waiting
            await consumer.close()
        assert time.monotonic() - began < 3
