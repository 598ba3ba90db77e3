"""The server is killed, silent, cut off, or has had enough of us: nothing accepted is lost, and all goes on."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.servers import cluster, fresh
from tests.transports.consuming import settle, take, until
from tests.transports.nats.helpers import bus, group, in_flight, message

from tidings.kernel.errors import BusUnavailable
from tidings.kernel.topics import GROUP
from tidings.kernel.transport import Delivery, Event, Settlement
from tidings.transports.nats.transport import NATSTransport

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class Load:
    """A publisher and a member of a group, at work while something happens."""

    def __init__(self, publisher: NATSTransport, consumer: Any) -> None:
        self.publisher, self.consumer = publisher, consumer
        self.accepted: set[str] = set()
        self.handled = Counter[str]()
        self.tasks = [asyncio.ensure_future(self._publish()), asyncio.ensure_future(self._consume())]
        self.enough = False

    async def _publish(self) -> None:
        while not self.enough:
            sent = [message(n) for n in range(20)]
            failed = {failure.index for failure in await self.publisher.publish(sent)}
            self.accepted |= {one.id for index, one in enumerate(sent) if index not in failed}
            await asyncio.sleep(0.005)

    async def _consume(self) -> None:
        while came := await self.consumer.receive(200):
            failures = await self.consumer.settle([Settlement(d) for d in came])
            failed = {
                failure.index for failure in failures if failure.kind == "fenced"
            }  # unknown: perhaps it comes again
            self.handled.update(d.message.id for index, d in enumerate(came) if index not in failed)

    async def more(self, count: int = 300, within: float = 30.0) -> None:
        """Both have got on since."""
        accepted, handled = len(self.accepted), len(self.handled)
        await until(lambda: len(self.accepted) > accepted + count and len(self.handled) > handled + count, within)

    async def end(self, within: float = 30.0) -> None:
        self.enough = True
        await self.tasks[0]
        with contextlib.suppress(TimeoutError):
            await until(lambda: self.accepted <= self.handled.keys(), within)
        self.consumer.stop()
        await self.tasks[1]
        lost = self.accepted - self.handled.keys()
        assert not lost, f"{len(lost)} of {len(self.accepted)} accepted messages were lost"


@pytest.mark.parametrize("address", [None, GROUP + "shop.bill"])
async def test_a_waiting_member_of_a_killed_server_goes_on(address: str | None) -> None:
    """Its pulls are gone with the server; without asking again it would wait for ever."""
    with fresh("nats") as mine:
        async with bus(url=mine.url) as b:
            waiting = asyncio.ensure_future((await b.subscribe(group())).receive(1))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(mine.restart)
            assert not await b.publish([message(1, address=address)])
            (delivery,) = await asyncio.wait_for(waiting, 5)
            assert delivery.message.body == b"1"


async def test_a_live_subscription_goes_on_after_a_restart() -> None:
    """Its end in the server is in memory only."""
    with fresh("nats") as mine:
        async with bus(url=mine.url) as b:
            live = await b.subscribe(group("orders.*", None))
            waiting = asyncio.ensure_future(live.receive(100))
            await asyncio.to_thread(mine.restart)
            seen = 0
            async with asyncio.timeout(10):
                while not waiting.done():
                    seen += not await b.publish([message(seen)])
                    await asyncio.sleep(0.05)
            assert 1 <= len(await waiting) <= 100
            live.stop()


async def test_a_lease_outlives_a_lost_connection() -> None:
    """A lease is a time, not a connection: what is held is settled after the server is back.

    Killed, it may have forgotten that it had delivered the last: those come again at once, and we are told.
    """
    with fresh("nats") as mine:
        async with bus(url=mine.url, lease="20s") as b:
            consumer = await b.subscribe(group())
            assert not await b.publish([message(n) for n in range(50)])
            held = await take(consumer, 50)
            await asyncio.to_thread(mine.kill)
            settling = asyncio.ensure_future(consumer.settle([Settlement(d) for d in held]))
            await asyncio.sleep(0.5)
            await asyncio.to_thread(mine.start)
            forgotten = {held[failure.index].message.id for failure in await asyncio.wait_for(settling, 10)}
            assert {d.message.id for d in await take(consumer, len(forgotten))} == forgotten
            assert await in_flight(b) == len(forgotten)


def consumers_in(server: Any) -> Path:
    """Where a server keeps what it knows of the deliveries of its consumers."""
    (folder,) = (server.folder / "data").rglob("obs")
    return Path(folder)


@pytest.mark.parametrize("who", ["another", "the holder"])
async def test_what_a_killed_server_has_forgotten_is_settled_once(who: str, tmp_path: Path) -> None:
    """It is started with what it knew a moment before it was killed, and the one who is back first is given the rest.

    It would confirm what the other says of the same messages all the same: it knows only positions in the stream.
    """
    async with AsyncExitStack() as stack:
        mine = stack.enter_context(fresh("nats"))
        near, proxy = await stack.enter_async_context(mine.proxied())
        b = await stack.enter_async_context(bus(url=mine.url, lease="20s", keep=True))
        same: dict[str, Any] = {"namespace": b.options.namespace, "lease": "20s", "keep": True}
        a = await stack.enter_async_context(bus(url=near, **same))
        holder, other = await a.subscribe(group()), await b.subscribe(group())
        assert not await b.publish([message(n) for n in range(20)])
        held = await take(holder, 10)
        await asyncio.to_thread(mine.stop)  # it writes it down
        shutil.copytree(consumers_in(mine), tmp_path / "obs")
        await asyncio.to_thread(mine.start)
        held += await take(holder, 10)
        await asyncio.to_thread(mine.kill)
        await until(lambda: not (a.ready.is_set() or b.ready.is_set()))
        shutil.copytree(tmp_path / "obs", consumers_in(mine), dirs_exist_ok=True)
        taken: list[Delivery] = []
        if who == "another":
            proxy.partition(refuse=True)
            await asyncio.to_thread(mine.start)
            taken = await take(other, 10)
            proxy.heal()
        else:
            await asyncio.to_thread(mine.start)
        failures = await asyncio.wait_for(holder.settle([Settlement(d) for d in held]), 30)
        late = {held[failure.index].message.id for failure in failures}
        assert {d.message.id for d in taken} <= late
        if who == "the holder":
            assert late == {d.message.id for d in held[10:]}
            assert {d.message.id for d in await take(other, 10)} == late


async def test_publishing_to_a_lost_server_waits_and_then_says_so() -> None:
    with fresh("nats") as mine:
        async with bus(url=mine.url, publish_wait="1s", keep=True) as b:
            assert not await b.publish([message(1)])
            await asyncio.to_thread(mine.kill)
            await until(lambda: not b.ready.is_set())
            (failure,) = await b.publish([message(2)])
            assert failure.kind == "rejected"
            assert isinstance(failure.error, BusUnavailable)


async def test_a_silent_connection_is_found_dead_and_nothing_is_lost_or_doubled() -> None:
    """Half open: what was sent may have arrived; it goes again under its id."""
    with fresh("nats") as mine:
        async with mine.proxied() as (url, proxy), bus(url=url, lease="5s") as b:
            load = Load(b, await b.subscribe(group()))
            await load.more(100)
            proxy.down.stall()
            await asyncio.sleep(1)
            accepted = len(load.accepted)
            await asyncio.sleep(1)
            assert len(load.accepted) == accepted, "something was accepted without an answer"
            await until(lambda: not b.ready.is_set(), within=30)
            proxy.heal()
            await load.more(100)
            await load.end()
            async with bus(url=mine.url, namespace=b.options.namespace, keep=True) as other:
                stored = await other.peek("orders.>", limit=10**6)
                assert max(Counter(s.message.id for s in stored).values()) == 1


async def test_what_the_server_states_as_an_error_does_not_end_us() -> None:
    """The client gives up for ever on any error but two."""
    told: list[Event] = []
    async with bus(told=told) as b:
        consumer = await b.subscribe(group())
        live = await b.subscribe(group("orders.*", None))
        waiting = asyncio.ensure_future(consumer.receive(1))
        await asyncio.sleep(0.1)
        before = b.client
        await b.write(b"NONSENSE\r\n")
        await until(lambda: [event.kind for event in told][-2:] == ["lost", "connected"])
        assert b.client is not before
        assert not await b.publish([message(1)])
        await settle(consumer, await asyncio.wait_for(waiting, 5))
        assert [d.message.body for d in await take(live, 1)] == [b"1"]


async def test_no_right_to_publish_is_told_at_once() -> None:
    """The server answers nothing to a publication that it refuses; it only mentions it."""
    allow = ["_INBOX.>", "$JS.API.>", "*._tidings.>", "*._group.>", "*.orders.>"]
    user = {"user": "me", "password": "me", "permissions": {"publish": {"allow": allow}, "subscribe": ">"}}
    with fresh("nats", authorization={"users": [user]}) as mine:
        where = mine.url.partition("://")[2]
        async with bus(url=f"nats://me:me@{where}") as b:
            sent = [message(1), message(2, "returns.late"), message(3)]
            failures = await asyncio.wait_for(b.publish(sent), 5)
            assert [(failure.index, failure.kind) for failure in failures] == [(1, "rejected")]


async def test_one_of_three_nodes_is_killed_under_load() -> None:
    with cluster("nats") as three:
        async with bus(url=three.url, replicas=3, lease="3s") as b:
            load = Load(b, await b.subscribe(group()))
            await load.more()
            info = await b.ask("stream_info", b.name)
            leader = next(n for n in three.nodes if info.cluster.leader == f"n{n.port}")
            await asyncio.to_thread(leader.kill)
            await load.more(within=45.0)
            await asyncio.to_thread(leader.start)
            await load.more()
            await load.end()


async def test_a_full_stream_refuses_nothing_that_it_keeps() -> None:
    """The account's storage is used up: told as such, and what was accepted is there."""
    with fresh("nats", jetstream={"store_dir": "data", "max_file_store": 300_000}) as mine:
        async with bus(url=mine.url, publish_wait="2s") as b:
            big = [message(n, headers=(("pad", "x" * 10_000),)) for n in range(100)]
            failed = await b.publish(big)
            assert failed
            assert {failure.kind for failure in failed} == {"rejected"}
            stored = {s.message.id for s in await b.peek("orders.>", limit=1000)}
            refused = {big[failure.index].id for failure in failed}
            assert stored == {one.id for one in big} - refused
