"""The broker absent, refusing, blocked, killed and cut off."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.servers import fresh, server
from tests.transports.rabbitmq.helpers import bus_at, cleared, opened

from tidings.kernel.errors import BusUnavailable, TooLarge
from tidings.kernel.transport import Delivery, Settlement
from tidings.testing.conformance import Bus, Ledger, Rig
from tidings.testing.faults import Proxy

LEAN = {"plugins": ("rabbitmq_management",)}
SETTLED = 2.5  # seconds after which 3.10 still knows a new quorum queue when it is killed


async def closed(rig: Rig) -> None:
    await rig.stack.aclose()


class TestBroker:
    async def _absent(self) -> None:
        with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1:") as refusal:
            await opened(bus_at("amqp://127.0.0.1:1"))
        assert "start it" in str(refusal.value)

    def test_absent(self) -> None:
        asyncio.run(self._absent())

    async def _refused(self) -> None:
        place = server("rabbitmq").url.rpartition("@")[2].removeprefix("amqp://").strip("/")
        with pytest.raises(BusUnavailable, match="refuses the user 'ann'") as refusal:
            await opened(bus_at(f"amqp://ann:hidden@{place}"))
        assert "hidden" not in str(refusal.value)
        with pytest.raises(BusUnavailable, match="vhost"):
            await opened(bus_at(f"amqp://guest:guest@{place}/nowhere"))

    def test_wrong_user_and_vhost(self) -> None:
        asyncio.run(self._refused())

    async def _second(self) -> None:
        place = server("rabbitmq").url.rpartition("@")[2].removeprefix("amqp://").strip("/")
        bus = bus_at(f"amqp://guest:guest@127.0.0.1:1,{place}/")
        await (await opened(bus)).close()
        await cleared(bus)

    def test_the_next_host_is_tried(self) -> None:
        asyncio.run(self._second())

    async def _cut(self) -> None:
        where: Any = bus_at(server("rabbitmq").url).options(30.0)
        ((host, port),) = where.hosts
        async with Proxy(host, port) as proxy:
            bus = bus_at(f"amqp://{proxy.address}/", publish_wait="1s")
            rig = Rig(bus)
            transport = await rig.open(2.0)
            tap = await rig.tap(transport, "orders.placed", "shop.bill")
            await rig.publish(transport, rig.message())
            (held,) = await tap.take()
            proxy.partition()
            began = time.monotonic()
            (failure,) = await transport.publish([rig.message()])
            assert failure.kind == "unknown", "it was sent, and nobody answered"
            assert 0.5 < time.monotonic() - began < 5
            await rig.until(lambda: rig.events["lost"] == 1, 20, "heartbeats are missed")
            assert not held.session.alive
            with pytest.raises(BusUnavailable, match="is not there for 1 s"):
                await transport.publish([rig.message()])
            proxy.heal()
            await rig.until(lambda: rig.events["connected"] == 2, 20, "connected again")
            came = {delivery.message.id: delivery for delivery in await tap.take(1, within=20)}
            assert held.message.id in came or len(came) == 1
            await rig.publish(transport, rig.message())
            await closed(rig)
            await cleared(bus)

    @pytest.mark.slow
    def test_partition(self) -> None:
        """Half open: nobody says anything, until the heartbeats are missed."""
        asyncio.run(asyncio.wait_for(self._cut(), 90))


@pytest.mark.slow
@pytest.mark.timeout(180)
class TestKilled:
    def test_three_times_under_load(self) -> None:
        """No accepted message is lost, and everything goes on without help."""
        with fresh("rabbitmq", **LEAN) as mine:
            asyncio.run(asyncio.wait_for(self._killed(mine, bus_at(mine.url)), 170))

    async def _killed(self, mine: Any, bus: Bus) -> None:
        rig, ledger = Rig(bus), Ledger()
        out, into = await rig.open(10.0), await rig.open(10.0)
        tap = await rig.tap(into, "orders.>", "shop.bill", limit=50)
        over = False

        async def work() -> None:
            while batch := await tap.consumer.receive(50):
                for delivery in batch:
                    ledger.end("shop.bill", delivery.message)
                await tap.settle(*map(_ack, batch))

        async def publish() -> None:
            while not over:
                batch = rig.messages(20)
                try:
                    failed = {failure.index for failure in await out.publish(batch)}
                except BusUnavailable:
                    continue
                ledger.accept(message for index, message in enumerate(batch) if index not in failed)
                tried.update(message.id for message in batch)
                await asyncio.sleep(0.005)

        tried = set[str]()
        await asyncio.sleep(SETTLED)
        working, publishing = asyncio.ensure_future(work()), asyncio.ensure_future(publish())
        for kill in range(3):
            before = len(ledger.accepted)
            await rig.until(lambda before=before: len(ledger.accepted) > before + 200, 60)  # type: ignore[misc]
            await asyncio.to_thread(mine.restart)
            await rig.until(lambda kill=kill: rig.events["connected"] >= 2 * (kill + 2), 60, "both are back")  # type: ignore[misc]
        over = True
        await publishing
        await rig.until(lambda: ledger.accepted.keys() <= ledger.done.get("shop.bill", set()), 60, "all are handled")
        tap.consumer.stop()
        await working
        assert rig.events["lost"] >= 6
        assert ledger.done["shop.bill"] <= tried | ledger.accepted.keys(), "nothing came that nobody sent"
        await closed(rig)


@pytest.mark.slow
@pytest.mark.timeout(120)
class TestShort:
    def test_of_disk(self) -> None:
        """The broker stops reading from who publishes, and says so: publishing waits, then ends with a clear error."""
        with fresh("rabbitmq", **LEAN) as mine:
            asyncio.run(asyncio.wait_for(self._blocked(mine), 100))

    async def _blocked(self, mine: Any) -> None:
        rig = Rig(bus_at(mine.url, publish_wait="1s"))
        transport = await rig.open()
        tap = await rig.tap(transport, "orders.placed", "shop.bill")
        await rig.publish(transport, rig.message(), rig.message())
        first, second = await tap.take(2)
        await asyncio.to_thread(_limit, mine, "9999GB")
        (failure,) = await transport.publish([rig.message()])
        assert failure.kind == "unknown"
        with pytest.raises(BusUnavailable, match="short of memory or disk"):
            await transport.publish([rig.message()])
        await tap.ack(first)  # who consumes is not blocked
        await asyncio.to_thread(_limit, mine, "50MB")
        await rig.publish(transport, rig.message())
        await tap.ack(second)
        await closed(rig)

    def test_of_room_for_a_large_message(self) -> None:
        """The broker closes the channel for one that is larger than it takes; only that one is refused for good."""
        with fresh("rabbitmq", max_message_size=100_000, **LEAN) as mine:
            asyncio.run(asyncio.wait_for(self._large(mine), 100))

    async def _large(self, mine: Any) -> None:
        rig = Rig(bus_at(mine.url))
        transport = await rig.open()
        await rig.tap(transport, "orders.placed", "shop.bill")
        failures = await transport.publish([rig.message(), rig.message(body=b"x" * 200_000), rig.message()])
        kinds = {failure.index: (failure.kind, type(failure.error)) for failure in failures}
        assert kinds[1] == ("rejected", TooLarge)
        assert all(kind == "unknown" for index, (kind, _) in kinds.items() if index != 1)
        await rig.until(lambda: rig.events["connected"] == 2)
        await rig.publish(transport, rig.message())
        await closed(rig)


def _ack(delivery: Delivery) -> Any:
    return Settlement(delivery)


def _limit(mine: Any, size: str) -> None:
    mine.control("set_disk_free_limit", size)
