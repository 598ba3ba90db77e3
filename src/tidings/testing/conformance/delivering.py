"""Level 0, at the SPI: what is published arrives, whole, where it should, as often as it should."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from tidings.kernel.errors import BusError, NoAnswerer, NotFound
from tidings.kernel.message import Message
from tidings.kernel.topics import DEAD, GROUP
from tidings.kernel.transport import Settlement

from .bus import Rig, has, needs, scenario
from .ledger import Ledger

FIELDS = ("topic", "body", "id", "key", "type", "source", "content_type", "priority", "correlation_id", "causation_id")


def same(sent: Message[Any], came: Message[Any]) -> None:
    """Every field that travels came as it was sent."""
    for name in FIELDS:
        assert getattr(came, name) == getattr(sent, name), f"{name}: {getattr(came, name)!r:.80}"
    assert dict(came.headers or ()) == dict(sent.headers or ()), "headers"
    assert abs(came.time - sent.time) < 0.001, "time"


class Delivering:
    """Publishing and receiving."""

    @scenario
    async def test_publish_subscribe(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        sent = rig.message(key="k", correlation_id="c", causation_id="p", headers=(("a", "1"),), type="t", source="s")
        await rig.publish(bus, sent, rig.message("orders.paid"))
        (delivery,) = await tap.take()
        same(sent, delivery.message)
        assert (delivery.attempt, delivery.failures, delivery.crashes, delivery.suspect) == (1, 0, 0, False)
        assert delivery.session.alive
        await tap.ack(delivery)
        await tap.quiet()

    @scenario
    async def test_headers_and_unicode(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        headers = tuple((f"h{n}", f"wert {n} – naïve ☃ 𝄞 \"'\\") for n in range(20))
        sent = rig.message(body="ünïcode ☃ 𝄞".encode(), key="schlüssel ☃", headers=(*headers, ("empty", "")))
        await rig.publish(bus, sent)
        same(sent, (await tap.take())[0].message)

    @scenario
    async def test_headers_that_look_like_the_bus_s_own(self, rig: Rig) -> None:
        """They are the user's, also in the copy that a retry may be: they mean nothing, and none is lost."""
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        prefixes = ("ce-", "Ce-", "ce_", "cloudEvents:", "cloudEvents_")
        attributes = ("tdgtopic", "tdgfailures", "tdgreplyto", "expirytime", "type", "id", "tdgheaders")
        names = [prefix + attribute for prefix in prefixes for attribute in attributes]
        names += ["content-type", "Nats-Rollup", "body", "n" * 300]
        names += ["CC", "x-death", "x-first-death-queue", "x-delivery-count", "x-acquired-count"]
        sent = [rig.message(headers=((name, "2001-01-01T00:00:00Z"),)) for name in names]
        sent += [
            rig.message(headers=tuple((name, str(n)) for n, name in enumerate(some))) for some in (names, ["a", "a"])
        ]
        await rig.publish(bus, *sent)
        for failures in (0, 1):
            found = {delivery.message.id: delivery for delivery in await tap.take(len(sent))}
            for message in sent:
                delivery = found[message.id]
                same(message, delivery.message)
                assert sorted(delivery.message.headers or ()) == sorted(message.headers or ())
                assert delivery.failures == failures
                assert (delivery.message.expires_at, delivery.message.reply_to) == (None, None)
                await (tap.ack if failures else tap.retry)(delivery)

    @scenario
    async def test_sizes(self, rig: Rig) -> None:
        bus = await rig.open()
        most = bus.capabilities.max_payload
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        for size in (0, 1, 64 * 1024, most):
            sent = rig.message(body=bytes(range(256)) * (size // 256) + b"x" * (size % 256))
            await rig.publish(bus, sent)
            (delivery,) = await tap.take(within=30)
            assert len(delivery.message.body) == size
            same(sent, delivery.message)
            await tap.ack(delivery)
        (failure,) = await bus.publish([rig.message(body=b"x" * (most + 1))])
        assert failure.kind == "rejected"
        await tap.quiet()

    @scenario
    async def test_foreign_message(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        if rig.bus.foreign is not None:
            await rig.bus.foreign(bus, "orders.placed", b"<plain/>")
        else:
            await rig.publish(bus, Message("orders.placed", body=b"<plain/>", content_type=""))
        (delivery,) = await tap.take()
        assert (delivery.message.topic, delivery.message.body) == ("orders.placed", b"<plain/>")
        await tap.retry(delivery)
        (again,) = await tap.take()
        assert again.failures == 1
        if bus.capabilities.stable_id:
            assert again.message.id == delivery.message.id

    @scenario
    async def test_nothing_lost_or_repeated(self, rig: Rig) -> None:
        """10,000 messages through two members: each exactly once."""
        bus, ledger = await rig.open(), Ledger()
        taps = [await rig.tap(transport, "orders.>", "shop.bill", limit=512) for transport in (bus, await rig.open())]
        sent = rig.messages(10_000)
        for at in range(0, len(sent), 1000):
            await rig.publish(bus, *sent[at : at + 1000])
        ledger.accept(sent)

        async def work(tap: Any) -> None:
            while batch := await tap.consumer.receive(tap.limit):
                for delivery in batch:
                    ledger.begin("bill", delivery.message)
                    ledger.end("bill", delivery.message)
                await tap.ack(*batch)

        working = [asyncio.ensure_future(work(tap)) for tap in taps]
        await rig.until(lambda: ledger.complete("bill"), 40, "10,000 messages handled")
        await asyncio.sleep(0.1)  # time for a duplicate to show
        for tap in taps:
            tap.consumer.stop()
        await asyncio.gather(*working)
        ledger.check("bill")

    @scenario
    async def test_concurrent_publishers(self, rig: Rig) -> None:
        bus, ledger = await rig.open(), Ledger()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        batches = [rig.messages(10) for _ in range(50)]
        assert not any(await asyncio.gather(*(bus.publish(batch) for batch in batches)))
        for batch in batches:
            ledger.accept(batch)
        for delivery in await tap.take(500):
            ledger.end("bill", delivery.message)
            await tap.ack(delivery)
        await tap.quiet()
        ledger.check("bill")

    @scenario
    async def test_many_topics(self, rig: Rig) -> None:
        bus, ledger = await rig.open(), Ledger()
        taps = [await rig.tap(bus, f"devices.d{n}.up", f"shop.g{n}") for n in range(30)]
        sent = [rig.message(f"devices.d{n % 100}.up") for n in range(300)]
        await rig.publish(bus, *sent)
        for n, tap in enumerate(taps):
            for delivery in await tap.take(3):
                assert delivery.message.topic == f"devices.d{n}.up"
                ledger.end("all", delivery.message)
            await tap.quiet(0.001)
        ledger.accept(message for n, message in enumerate(sent) if n % 100 < 30)
        ledger.check("all")

    @scenario
    async def test_groups_fan_out_and_members_compete(self, rig: Rig) -> None:
        bus, ledger = await rig.open(), Ledger()
        other = await rig.open()
        taps = [
            await rig.tap(bus, "orders.placed", "shop.bill", limit=5),
            await rig.tap(other, "orders.placed", "shop.bill", limit=5),
            await rig.tap(other, "orders.*" if has(bus.capabilities, "wildcards") else "orders.placed", "shop.ship"),
        ]
        sent = rig.messages(100)
        await rig.publish(bus, *sent)
        ledger.accept(sent)

        async def work(tap: Any) -> None:
            while batch := await tap.consumer.receive(tap.limit):
                for delivery in batch:
                    ledger.end(tap.group, delivery.message)
                await tap.ack(*batch)
                await asyncio.sleep(0)

        working = [asyncio.ensure_future(work(tap)) for tap in taps]
        await rig.until(lambda: ledger.complete("shop.bill", "shop.ship"))
        for tap in taps:
            tap.consumer.stop()
        await asyncio.gather(*working)
        ledger.check("shop.bill", "shop.ship")

    @scenario
    async def test_order_of_a_topic_and_its_keys(self, rig: Rig) -> None:
        bus, ledger = await rig.open(), Ledger()
        tap = await rig.tap(bus, "orders.placed", "shop.bill", limit=50)
        sent = rig.messages(400, keys=7)
        await rig.publish(bus, *sent[:200])
        await rig.publish(bus, *sent[200:])
        ledger.accept(sent)
        came: list[str] = []
        while len(came) < len(sent):
            run = await tap.take(50)
            first = {delivery.message.key: delivery for delivery in reversed(run)}
            for delivery in first.values():
                ledger.begin("bill", delivery.message)
            for delivery in run:
                if first[delivery.message.key] is not delivery:
                    ledger.begin("bill", delivery.message)
                ledger.end("bill", delivery.message)
            came += [delivery.message.id for delivery in run]
            await tap.ack(*run)
        ledger.check("bill")
        if has(bus.capabilities, "ordering"):
            for key in {message.key for message in sent}:
                of_key = [message.id for message in sent if message.key == key]
                assert [id for id in came if id in set(of_key)] == of_key, f"{key}: not in the order of publishing"
        if bus.capabilities.ordering == "total":
            assert came == [message.id for message in sent]

    @scenario
    @needs("wildcards")
    async def test_wildcards(self, rig: Rig) -> None:
        bus = await rig.open()
        table = {
            "orders.*": {"orders.placed", "orders.paid"},
            "orders.>": {"orders.placed", "orders.paid", "orders.placed.late"},
            "*.placed": {"orders.placed", "returns.placed"},
            "orders.*.late": {"orders.placed.late"},
            ">": {"orders", "orders.placed", "orders.paid", "orders.placed.late", "returns.placed"},
            DEAD + ">": {DEAD + "shop.x"},
        }
        taps = {pattern: await rig.tap(bus, pattern, f"shop.g{n}") for n, pattern in enumerate(table)}
        await rig.publish(bus, *map(rig.message, sorted(table[">"])))
        await rig.publish(bus, rig.message("orders.placed", address=DEAD + "shop.x"))
        for pattern, wanted in table.items():
            came = await taps[pattern].take(len(wanted))
            assert sorted(d.message.destination for d in came) == sorted(wanted), pattern
            await taps[pattern].quiet(0.01)

    @scenario
    @needs("wildcards")
    async def test_new_topic_under_a_wildcard(self, rig: Rig) -> None:
        """It is read from its beginning."""
        bus, other = await rig.open(), await rig.open()
        tap = await rig.tap(bus, "sensors.>", "shop.watch")
        first = rig.message("sensors.a")
        await rig.publish(bus, first)
        sent = [rig.message(f"sensors.new{n % 10}.deep") for n in range(100)]
        await rig.publish(other, *sent)
        came = [delivery.message.id for delivery in await tap.take(101)]
        assert sorted(came) == sorted(message.id for message in (first, *sent))

    @scenario
    async def test_private_address(self, rig: Rig) -> None:
        """What is sent to a group's private address reaches that group only, with its own topic."""
        bus = await rig.open()
        bill, ship = [await rig.tap(bus, "orders.placed", group) for group in ("shop.bill", "shop.ship")]
        sent = rig.message(address=GROUP + "shop.bill", headers=(("tdggroup", "shop.bill"),))
        await rig.publish(bus, sent)
        (delivery,) = await bill.take()
        same(sent, delivery.message)
        await bill.ack(delivery)
        await ship.quiet()
        await bill.quiet(0.001)

    @scenario
    async def test_dead_letters_are_kept(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        everything = await rig.tap(bus, ">", "shop.audit") if has(bus.capabilities, "wildcards") else None
        sent = rig.message()
        await rig.publish(bus, sent)
        (delivery,) = await tap.take()
        letter = replace(sent, address=DEAD + "shop.bill", headers=(("tdgreason", "failed"),))
        assert not await tap.settle(Settlement(delivery, outgoing=(letter,)))
        if everything is not None:
            assert [d.message.destination for d in await everything.take()] == ["orders.placed"]
            await everything.quiet()
        if has(bus.capabilities, "peek"):
            (kept,) = await bus.peek(DEAD + "shop.bill")  # type: ignore[attr-defined]
            same(letter, kept.message)
        await tap.quiet(0.001)

    @scenario
    async def test_live(self, rig: Rig) -> None:
        """Each live subscription gets its own copy, of what is published from now on, once."""
        bus, other = await rig.open(), await rig.open()
        await rig.publish(bus, rig.message())
        live = [await rig.tap(transport, "orders.placed", None) for transport in (bus, other, other)]
        sent = rig.messages(10)
        await rig.publish(bus, *sent)
        for tap in live:
            came = await tap.take(10)
            assert [delivery.message.id for delivery in came] == [message.id for message in sent]
            await tap.ack(*came)
        await live[0].close()
        await rig.publish(bus, rig.message())
        await live[1].take(1)
        await live[1].quiet(0.05)

    @scenario
    async def test_live_needs_no_settling(self, rig: Rig) -> None:
        """Nor a lease: what is settled late, or never, is no loss; outputs go out."""
        bus = await rig.open(rig.bus.lease)
        live = await rig.tap(bus, "orders.placed", None)
        out = await rig.tap(bus, "billing.invoiced", None)
        await rig.publish(bus, *rig.messages(3))
        first, *_ = await live.take(3)
        await live.quiet(1.5 * rig.bus.lease)
        assert first.session.alive
        assert not await live.settle(Settlement(first, outgoing=(sent := rig.message("billing.invoiced"),)))
        assert [delivery.message.id for delivery in await out.take()] == [sent.id]
        assert not rig.events["recovered"] + rig.events["fenced"]

    @scenario
    async def test_slow_live_subscription_drops_the_oldest(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", None, limit=5000)
        sent = rig.messages(5000, keys=1)  # of one order, also where only a key has one
        for at in range(0, 5000, 1000):
            await rig.publish(bus, *sent[at : at + 1000])
        await asyncio.sleep(0.3 * rig.bus.patience)  # slow: all that is on its way arrives meanwhile
        last = ""
        while last != sent[-1].id:
            last = (await tap.take())[0].message.id
        came = 5000 - rig.events["dropped"]
        assert rig.events["dropped"] > 0, "inconclusive: nothing was dropped, or it was not told"
        assert came <= 1024 + 100, f"{came} were buffered"

    @scenario
    async def test_unrouted_is_told(self, rig: Rig) -> None:
        bus = await rig.open()
        await rig.publish(bus, rig.message("nobody.listens"))
        await rig.until(lambda: rig.events["unrouted"] == 1)

    @scenario
    @needs("request")
    async def test_request_without_answerer(self, rig: Rig) -> None:
        bus = await rig.open()
        asked = rig.message(address="_request.prices", reply_to="_reply.me")
        (failure,) = await bus.publish([asked])
        assert failure.kind == "rejected"
        assert isinstance(failure.error, NoAnswerer)
        tap = await rig.tap(bus, "_request.prices", "prices")
        await rig.publish(bus, asked)
        (delivery,) = await tap.take()
        assert delivery.message.reply_to == "_reply.me"
        await tap.ack(delivery)
        await tap.close()
        assert [failure.kind for failure in await bus.publish([asked])] == ["rejected"]

    @scenario
    async def test_publish_of_several_is_accounted_for(self, rig: Rig) -> None:
        """What is not reported as failed arrives; what is does not; all or none where ``publish_atomic``."""
        bus, ledger = await rig.open(), Ledger()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        batch = rig.messages(5)
        batch[2] = rig.message(body=b"x" * (bus.capabilities.max_payload + 1))
        failures = await bus.publish(batch)
        failed = {failure.index for failure in failures}
        assert 2 in failed, "a message that is too large was accepted"
        assert len(failed) in (1, 5), f"accepted were {5 - len(failed)} of 5"
        assert not bus.capabilities.publish_atomic or len(failed) == 5, "publish_atomic stored a part"
        ledger.accept(message for index, message in enumerate(batch) if index not in failed)
        for delivery in await tap.take(len(ledger.accepted)):
            ledger.end("bill", delivery.message)
        await tap.quiet()
        ledger.check("bill")

    @scenario
    @needs("delay")
    async def test_delay(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        resolution = bus.capabilities.delay_resolution
        wait = max(0.4, 2 * resolution)
        began = rig.clock.now()
        late, soon = rig.message(deliver_at=began + 2 * wait), rig.message(deliver_at=began + wait)
        await rig.publish(bus, late, soon, now := rig.message())
        for sent, due in ((now, 0.0), (soon, wait), (late, 2 * wait)):
            (delivery,) = await tap.take()
            assert delivery.message.id == sent.id
            passed = rig.clock.now() - began
            assert passed >= due - resolution - 0.001, f"delivered after {passed:.3f} s, due after {due:.3f} s"
            await tap.ack(delivery)

    @scenario
    @needs("priority")
    async def test_priority(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill", limit=4)
        sent = [rig.message(priority=priority) for priority in (0, 5, 9, 0, 5, 9, 1, 0)]
        await rig.publish(bus, *sent)
        came = [delivery.message.id for delivery in await tap.take(8)]
        assert came == [message.id for message in sorted(sent, key=lambda message: -message.priority)]

    @scenario
    @needs("start")
    async def test_start(self, rig: Rig) -> None:
        bus = await rig.open()
        old = rig.messages(3)
        await rig.publish(bus, *old)
        await asyncio.sleep(0.05)
        since = rig.clock.now()
        await asyncio.sleep(0.05)
        new = rig.messages(2)
        await rig.publish(bus, *new)
        wanted = {0.0: [*old, *new], since: new, None: []}
        for n, (start, messages) in enumerate(wanted.items()):
            tap = await rig.tap(bus, "orders.placed", f"shop.g{n}", start=start)
            came = await tap.take(len(messages))
            ids, expected = [d.message.id for d in came], [message.id for message in messages]
            if bus.capabilities.ordering != "total":  # without a key, a partition is as good as another
                ids, expected = sorted(ids), sorted(expected)
            assert ids == expected, f"start={start}"
            await tap.ack(*came)
            await tap.quiet(0.02)
            await tap.close()
            again = await rig.tap(bus, "orders.placed", f"shop.g{n}", start=0.0)  # no longer its first time
            await again.quiet(0.02)

    @scenario
    async def test_new_group_starts_with_new_messages(self, rig: Rig) -> None:
        """Also with those published before its first ``receive``: the start is recorded when ``subscribe`` returns."""
        bus, other = await rig.open(), await rig.open()
        await rig.publish(bus, rig.message())
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        await rig.publish(other, sent := rig.message())
        assert [delivery.message.id for delivery in await tap.take()] == [sent.id]
        await tap.quiet(0.02)

    @scenario
    @needs("replay")
    async def test_seek(self, rig: Rig) -> None:
        bus: Any = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        other = await rig.tap(bus, "orders.placed", "shop.ship")
        sent = rig.messages(5)
        await rig.publish(bus, *sent)
        for each in (tap, other):
            await each.ack(*await each.take(5))
        with pytest.raises(BusError):
            await bus.seek("shop.bill", 0.0)  # it has a member at work
        await tap.close()
        await bus.seek("shop.bill", 0.0)
        again = await rig.tap(bus, "orders.placed", "shop.bill")
        assert [delivery.message.id for delivery in await again.take(5)] == [message.id for message in sent]
        await other.quiet()

    @scenario
    @needs("wildcards")
    async def test_pattern_change_on_an_empty_bus(self, rig: Rig) -> None:
        bus = await rig.open()
        await (await rig.tap(bus, "*.placed", "shop.bill")).close()
        tap = await rig.tap(bus, "returns.*", "shop.bill")
        await rig.publish(bus, rig.message("orders.placed"), sent := rig.message("returns.late"))
        assert [delivery.message.id for delivery in await tap.take()] == [sent.id]
        await tap.quiet()

    @scenario
    @needs("replay", "wildcards")
    async def test_seek_and_pattern_change(self, rig: Rig) -> None:
        """A seek loses nothing that is still to be drained, and a pattern that was left stays left."""
        bus: Any = await rig.open()
        await (await rig.tap(bus, "orders.*", "shop.bill")).close()
        await rig.publish(bus, rig.message("orders.placed"))
        await (await rig.tap(bus, "returns.*", "shop.bill")).close()
        await rig.publish(bus, rig.message("returns.placed"))
        await bus.seek("shop.bill", 0.0)
        tap = await rig.tap(bus, "refunds.*", "shop.bill")
        await rig.publish(bus, *map(rig.message, ("orders.late", "returns.late", "refunds.paid")))
        came = sorted(delivery.message.topic for delivery in await tap.take(3))
        assert came == ["orders.placed", "refunds.paid", "returns.placed"]
        await tap.quiet()

    @scenario
    @needs("wildcards")
    async def test_pattern_change(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.*", "shop.bill")
        await rig.publish(bus, rig.message("orders.placed"), rig.message("returns.placed"))
        await tap.close()
        tap = await rig.tap(bus, "returns.*", "shop.bill")
        await rig.publish(bus, rig.message("orders.placed"), rig.message("returns.placed"))
        came = sorted(delivery.message.topic for delivery in await tap.take(2))
        assert came == ["orders.placed", "returns.placed"], (
            "the removed topic is drained, the added one counts from now"
        )
        await tap.quiet()

    @scenario
    async def test_inspect_rename_and_drop(self, rig: Rig) -> None:
        bus: Any = await rig.open()
        if not hasattr(bus, "groups") or not hasattr(bus, "rename"):
            pytest.skip("neither Inspectable nor Manageable")
        tap = await rig.tap(bus, "orders.placed", "shop.bill", limit=2)
        sent = rig.messages(6)
        await rig.publish(bus, *sent, rig.message("orders.paid"))
        assert {info.name: info.messages for info in await bus.topics()} == {"orders.placed": 6, "orders.paid": 1}
        held = await tap.take(2)
        (info,) = await bus.groups()
        assert (info.name, info.app, info.pattern, info.members) == ("shop.bill", "conformance", "orders.placed", 1)
        assert (info.lag, info.in_flight, info.parked, info.dead) == (4, 2, 0, 0)
        assert [stored.message.id for stored in await bus.peek("orders.placed", limit=3)] == [m.id for m in sent[:3]]
        await tap.ack(*held)
        await tap.close()
        await bus.rename("shop.bill", "shop.invoice")
        renamed = await rig.tap(bus, "orders.placed", "shop.invoice")
        assert sorted(d.message.id for d in await renamed.take(4)) == sorted(message.id for message in sent[2:])
        await renamed.close()
        await bus.drop("shop.invoice")
        assert not await bus.groups()
        with pytest.raises(NotFound):
            await bus.drop("shop.bill")

    @scenario
    async def test_tick_has_one_winner(self, rig: Rig) -> None:
        buses: list[Any] = [await rig.open() for _ in range(3)]
        if not hasattr(buses[0], "tick"):
            pytest.skip("not Ticking")
        won = await asyncio.gather(*(bus.tick("daily", 100.0) for bus in buses))
        assert sorted(won) == [False, False, True]
        assert [await bus.tick("daily", 50.0) for bus in buses] == [False] * 3
        assert [await bus.tick("daily", 200.0) for bus in buses] == [True, False, False]
