"""Level 0, at the SPI: what becomes of a delivery: settled, tried again, lost and found, in order."""

from __future__ import annotations

import asyncio

import pytest

from tidings.kernel.transport import Delivery, Release, Retry, Settlement, Transport

from .bus import Rig, Tap, needs, scenario
from .ledger import Ledger


class Settling:
    """Settling, leases, crashes, ordered groups."""

    @scenario
    async def test_retry_comes_back_with_its_count(self, rig: Rig) -> None:
        """``failures`` is absolute, and it is the transport that keeps it."""
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        other = await rig.tap(bus, "orders.placed", "shop.ship")
        await rig.publish(bus, rig.message(headers=(("a", "1"),)))
        await other.ack(*await other.take())
        for failures in (1, 2, 5):
            (delivery,) = await tap.take()
            await tap.retry(delivery, failures=failures)
            (again,) = await tap.take()
            assert (again.failures, again.crashes, again.suspect) == (failures, 0, False)
            assert again.attempt == failures + 1
            assert (again.message.topic, again.message.header("a")) == ("orders.placed", "1")
            await tap.retry(again, failures=failures)
        await tap.ack(*await tap.take())
        await tap.quiet()
        await other.quiet(0.001)

    @scenario
    async def test_retry_waits(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        await rig.publish(bus, rig.message(), rig.message())
        first, second = await tap.take(2)
        began = rig.clock.now()
        wait = max(0.4, 2 * bus.capabilities.delay_resolution)
        await tap.retry(first, wait)
        await tap.ack(second)
        await rig.publish(bus, overtaking := rig.message())
        assert [delivery.message.id for delivery in await tap.take()] == [overtaking.id]
        (again,) = await tap.take()
        assert again.message.id == first.message.id
        passed = rig.clock.now() - began
        assert passed >= wait - bus.capabilities.delay_resolution - 0.001, f"after {passed:.3f} s instead of {wait} s"

    @scenario
    async def test_release_counts_nothing(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        await rig.publish(bus, rig.message())
        (delivery,) = await tap.take()
        await tap.retry(delivery, failures=1)
        for delay in (0.0, 0.0, 0.1):
            (delivery,) = await tap.take()
            began = rig.clock.now()
            assert (delivery.failures, delivery.crashes, delivery.suspect) == (1, 0, False)
            assert not await tap.settle(Settlement(delivery, Release(delay)))
        (delivery,) = await tap.take()
        assert delivery.failures == 1
        assert rig.clock.now() - began >= 0.1 - bus.capabilities.delay_resolution - 0.001

    @scenario
    async def test_settled_with_its_outputs(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        out = await rig.tap(bus, "billing.invoiced", "shop.mail")
        sent = rig.messages(3)
        await rig.publish(bus, *sent)
        outputs = [rig.message("billing.invoiced") for _ in sent]
        deliveries = await tap.take(3)
        pairs = zip(deliveries, outputs, strict=True)
        assert not await tap.settle(*(Settlement(delivery, outgoing=(output,)) for delivery, output in pairs))
        assert [d.message.id for d in await out.take(3)] == [message.id for message in outputs]
        await tap.quiet()
        await out.quiet(0.001)

    @scenario
    async def test_rejected_output_keeps_its_input(self, rig: Rig) -> None:
        """An output that is rejected leaves its own input in hand, and touches no neighbour."""
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        out = await rig.tap(bus, "billing.invoiced", "shop.mail")
        await rig.publish(bus, *rig.messages(3))
        deliveries = await tap.take(3)
        outputs = [rig.message("billing.invoiced") for _ in range(3)]
        outputs[1] = rig.message("billing.invoiced", b"x" * (bus.capabilities.max_payload + 1))
        pairs = zip(deliveries, outputs, strict=True)
        failures = await tap.settle(*(Settlement(delivery, outgoing=(output,)) for delivery, output in pairs))
        assert [(failure.index, failure.kind) for failure in failures] == [(1, "rejected")]
        assert [d.message.id for d in await out.take(2)] == [outputs[0].id, outputs[2].id]
        await tap.retry(deliveries[1])
        (again,) = await tap.take()
        assert (again.message.id, again.failures) == (deliveries[1].message.id, 1)
        await tap.quiet()

    @scenario
    async def test_close_gives_back_what_is_unsettled(self, rig: Rig) -> None:
        """Uncounted, at once, to the members that stay; a late settlement does nothing."""
        bus, other = await rig.open(), await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        sent = rig.messages(20)
        await rig.publish(bus, *sent)
        held = await tap.take(20)
        await tap.ack(*held[:5])
        await tap.retry(held[5], failures=3)
        await tap.close()
        await bus.close()
        stays = await rig.tap(other, "orders.placed", "shop.bill")
        came = await stays.take(15)
        assert sorted(d.message.id for d in came) == sorted(message.id for message in sent[5:])
        assert sorted((d.failures, d.crashes, d.suspect) for d in came)[-1] == (3, 0, False)
        assert sum(d.failures + d.crashes + d.suspect for d in came) == 3
        await stays.ack(*came)
        await stays.quiet()

    @scenario
    async def test_close_and_continue(self, rig: Rig) -> None:
        """What was accepted while nobody was there waits for the group. Nothing lost, nothing repeated."""
        keep, ledger = await rig.open(), Ledger()
        for round in range(3):
            bus = await rig.open()
            tap = await rig.tap(bus, "orders.placed", "shop.bill", limit=7)
            for delivery in await tap.take(10 * round):
                ledger.end("bill", delivery.message)
                await tap.ack(delivery)
            await tap.close()
            await bus.close()
            sent = rig.messages(10 * (round + 1))
            await rig.publish(keep, *sent)
            ledger.accept(sent)
        tap = await rig.tap(keep, "orders.placed", "shop.bill")
        for delivery in await tap.take(len(ledger.accepted) - len(ledger.handled("bill"))):
            ledger.end("bill", delivery.message)
            await tap.ack(delivery)
        await tap.quiet()
        ledger.check("bill")

    @scenario
    @needs("durable")
    async def test_survives_reopening(self, rig: Rig) -> None:
        bus = await rig.open()
        await (await rig.tap(bus, "orders.placed", "shop.bill")).close()
        sent = rig.messages(50)
        await rig.publish(bus, *sent)
        await bus.close()
        again = await rig.open()
        tap = await rig.tap(again, "orders.placed", "shop.bill")
        assert [delivery.message.id for delivery in await tap.take(50)] == [message.id for message in sent]

    @scenario
    async def test_stop_ends_receive_and_settling_goes_on(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill", limit=1)
        await rig.publish(bus, *rig.messages(2))
        (first,) = await tap.take()
        (second,) = await tap.take()
        waiting = asyncio.ensure_future(tap.consumer.receive(1))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        tap.consumer.stop()
        assert not await asyncio.wait_for(waiting, 5)
        assert not await asyncio.wait_for(tap.consumer.receive(1), 5)
        await tap.ack(first)
        await tap.close()
        other = await rig.tap(bus, "orders.placed", "shop.bill")
        assert [delivery.message.id for delivery in await other.take()] == [second.message.id]
        await other.quiet()

    @scenario
    async def test_settling_twice_does_nothing(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        out = await rig.tap(bus, "billing.invoiced", "shop.mail")
        await rig.publish(bus, *rig.messages(2))
        first, second = await tap.take(2)
        await tap.ack(first)
        late = Settlement(first, Retry(0.0, 1), outgoing=(rig.message("billing.invoiced"),))
        failures = await tap.settle(late, Settlement(second))
        assert [(failure.index, failure.kind) for failure in failures] == [(0, "fenced")]
        await tap.quiet()
        await out.quiet(0.001)

    # -- leases

    @scenario
    @needs("lease")
    async def test_lease_is_renewed(self, rig: Rig) -> None:
        """What is extended stays with its holder for many leases."""
        lease = rig.bus.lease
        bus, other = await rig.open(lease), await rig.open(lease)
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        await rig.publish(bus, *rig.messages(3))
        held = await tap.take(3)
        rival = await rig.tap(other, "orders.placed", "shop.bill")
        end = rig.clock.monotonic() + 3 * lease
        while rig.clock.monotonic() < end:
            await tap.consumer.extend(held)
            await rival.quiet(lease / 8)
        assert all(delivery.session.alive for delivery in held)
        await tap.ack(*held)
        await rival.quiet(0.05)

    @scenario
    @needs("lease", "fence")
    async def test_lost_session_is_fenced(self, rig: Rig) -> None:
        """Not extended for a lease: back to the group as suspect, and what the old holder settles late does nothing."""
        lease = rig.bus.lease
        bus, other = await rig.open(lease), await rig.open(lease)
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        out = await rig.tap(other, "billing.invoiced", "shop.mail")
        await rig.publish(bus, *rig.messages(2))
        lost = await tap.take(2)
        await tap.retry(lost[0], failures=2)
        lost = [*await tap.take(), lost[1]]
        await tap.stop()
        rival = await rig.tap(other, "orders.placed", "shop.bill")
        if bus.capabilities.lease == "connection":
            assert rig.bus.lose is not None, "a connection is the lease, and Bus has no lose to end it"
            await rig.bus.lose(bus)
        came: list[Delivery] = []
        for _ in lost:  # some buses hand out one suspect at a time
            (delivery,) = await rival.take(within=6 * lease + 5)
            assert delivery.suspect
            came.append(delivery)
            late = [Settlement(gone, outgoing=(rig.message("billing.invoiced"),)) for gone in lost]
            failures = await tap.settle(*(s for s in late if s.delivery.message.id == delivery.message.id))
            assert [failure.kind for failure in failures] == ["fenced"], "a lost session's settlement was taken"
            await rival.ack(delivery)
        assert not any(delivery.session.alive for delivery in lost)
        assert sorted((d.failures, d.crashes) for d in came) == [(0, 0), (2, 0)], "losing a lease counts nothing"
        await out.quiet()
        await rival.quiet(0.001)

    @scenario
    @needs("lease", "fence")
    async def test_only_what_is_not_extended_is_lost(self, rig: Rig) -> None:
        lease = rig.bus.lease
        bus, other = await rig.open(lease), await rig.open(lease)
        if bus.capabilities.lease != "timer":
            pytest.skip(f"a {bus.capabilities.lease} is given up as a whole")
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        await rig.publish(bus, *rig.messages(3))
        held = await tap.take(3)
        await tap.stop()
        rival = await rig.tap(other, "orders.placed", "shop.bill")
        waiting = asyncio.ensure_future(rival.take(within=6 * lease + 5))
        while not waiting.done():
            await tap.consumer.extend([held[0], held[2]])
            await asyncio.sleep(lease / 8)
        (delivery,) = await waiting
        assert delivery.message.id == held[1].message.id
        assert not held[1].session.alive
        await tap.ack(held[0], held[2])
        await rival.ack(delivery)
        await rival.quiet(0.05)

    # -- ordered groups

    @scenario
    @needs("ordered")
    async def test_ordered_group_holds_a_failed_key(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill", ordered=True)
        sent = rig.messages(6, keys=2)
        await rig.publish(bus, *sent)
        held = {delivery.message.id: delivery for delivery in await tap.take(6)}
        first, *others = [held[message.id] for message in sent[::2]]
        back = [Settlement(first, Retry(0.2, 1)), *(Settlement(delivery, Release()) for delivery in others)]
        assert not await tap.settle(*back)
        await rig.publish(bus, later := rig.message(key="k0"))
        await tap.quiet(0.1)
        for failures in (1, 2):
            (again,) = await tap.take()
            assert (again.message.id, again.failures) == (first.message.id, failures), "only the key's lowest may run"
            await tap.quiet(0.05)
            if failures == 1:
                await tap.retry(again, 0.05, 2)
        await tap.ack(again)
        rest = await self._one_key(tap, 3)
        assert rest == [sent[2].id, sent[4].id, later.id]
        await tap.ack(*(held[message.id] for message in sent[1::2]))

    async def _one_key(self, tap: Tap, count: int) -> list[str]:
        came: list[str] = []
        while len(came) < count:
            (delivery,) = await tap.take()
            came.append(delivery.message.id)
            await tap.ack(delivery)
        return came

    @scenario
    @needs("ordered")
    async def test_ordered_group_of_two_with_failures(self, rig: Rig) -> None:
        """Two members, every seventh message failing twice, one member replaced: each key in order, one at a time."""
        transports: list[Transport] = [await rig.open(), await rig.open()]
        ledger, failed = Ledger(), dict[str, int]()
        sent = rig.messages(240, keys=12)
        flaky = {message.id for message in sent[::7]}

        async def handle(tap: Tap, delivery: Delivery, member: str) -> bool:
            message = delivery.message
            ledger.begin("bill", message, delivery.attempt, member)
            await asyncio.sleep(0.001)
            if message.id in flaky and failed.get(message.id, 0) < 2:
                failed[message.id] = delivery.failures + 1
                ledger.fail("bill", message, delivery.attempt, member)
                return False
            ledger.end("bill", message, delivery.attempt, member)
            return True

        async def lane(tap: Tap, deliveries: list[Delivery], member: str) -> None:
            for index, delivery in enumerate(deliveries):
                if await handle(tap, delivery, member):
                    await tap.ack(delivery)
                    continue
                rest = [Settlement(later, Release()) for later in deliveries[index + 1 :]]
                failures = failed[delivery.message.id]
                assert not await tap.settle(Settlement(delivery, Retry(0.01, failures)), *rest)
                break

        async def member(tap: Tap, name: str) -> None:
            while batch := await tap.consumer.receive(tap.limit):
                keys: dict[str | None, list[Delivery]] = {}
                for delivery in batch:
                    keys.setdefault(delivery.message.key, []).append(delivery)
                await asyncio.gather(*(lane(tap, deliveries, name) for deliveries in keys.values()))

        taps = [await rig.tap(t, "orders.placed", "shop.bill", ordered=True, limit=16) for t in transports]
        working = [asyncio.ensure_future(member(tap, f"m{n}")) for n, tap in enumerate(taps)]
        for at in range(0, len(sent), 24):
            await rig.publish(transports[0], *sent[at : at + 24])
            ledger.accept(sent[at : at + 24])
            await asyncio.sleep(0.005)
        await rig.until(lambda: ledger.complete("bill"), 30, "all handled")
        for tap in taps:
            tap.consumer.stop()
        await asyncio.gather(*working)
        ledger.check("bill")
        ledger.check_order("bill", members=2)
        assert len(failed) == len(flaky), "inconclusive: not every flaky message failed"
