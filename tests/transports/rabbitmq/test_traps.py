"""What RabbitMQ does to those who do not know it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace
from pamqp.commands import Basic, Channel, Queue
from pamqp.header import ContentHeader
from tests.transports.rabbitmq.helpers import raw

from tidings.kernel.errors import BusError, InvalidName, InvalidOption
from tidings.kernel.topics import DEAD, GROUP
from tidings.kernel.transport import Release, Settlement
from tidings.testing.conformance import Rig, scenario
from tidings.transports.rabbitmq.channel import Channel as Ours
from tidings.transports.rabbitmq.channel import ChannelLost


class TestTraps:
    @scenario
    async def test_only_a_contiguous_prefix_is_acknowledged_at_once(self, rig: Rig) -> None:
        """``multiple`` settles everything before: what is still in hand must not go with it."""
        bus: Any = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill", limit=5)
        sent = rig.messages(5)
        await rig.publish(bus, *sent)
        held = await tap.take(5)
        await tap.ack(held[3], held[1])
        await tap.ack(held[0])
        await bus.client.close()
        came = await tap.take(2)
        assert [d.message.id for d in came] == [sent[2].id, sent[4].id]
        assert all(d.suspect for d in came)
        await tap.quiet()

    @scenario
    async def test_a_lost_connection_is_a_fence(self, rig: Rig) -> None:
        """Tags begin at 1 again: those of before must not settle what has them now. Outputs stay away."""
        bus: Any = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        out = await rig.tap(bus, "billing.invoiced", "shop.mail")
        await rig.publish(bus, *rig.messages(3))
        lost = await tap.take(3)
        await bus.client.close()
        await rig.until(lambda: rig.events["connected"] == 2)
        assert rig.events["lost"] == 1
        assert not any(delivery.session.alive for delivery in lost)
        came = await tap.take(3)
        late = [Settlement(delivery, outgoing=(rig.message("billing.invoiced"),)) for delivery in lost]
        assert [failure.kind for failure in await tap.settle(*late)] == ["fenced"] * 3
        assert rig.events["fenced"] == 3
        await tap.ack(*came)
        await out.quiet()

    @scenario
    async def test_a_copy_of_a_lost_session_is_not_published(self, rig: Rig) -> None:
        """Publishing has a connection of its own, which may be well: the message would be there twice."""
        bus: Any = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        await rig.publish(bus, rig.message())
        (delivery,) = await tap.take()
        channel = tap.consumer.channel  # type: ignore[attr-defined]
        await channel.ask(Channel.Close(200, "", 0, 0))  # gone at the broker, and nobody has noticed here
        failures = await tap.settle(Settlement(delivery, Release()))
        assert [failure.kind for failure in failures] == ["fenced"]
        await tap.take()
        await tap.quiet()

    @scenario
    async def test_a_growing_window_disturbs_nothing(self, rig: Rig) -> None:
        """A consumer that is replaced while messages are on their way gives them back: as suspects, out of order."""
        bus: Any = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        sent = rig.messages(3000)
        for at in range(0, 3000, 500):
            await rig.publish(bus, *sent[at : at + 500])
        came, limit = list[Any](), 1
        while len(came) < 3000:
            batch = list[Any]()
            while len(batch) < min(limit, 3000 - len(came)):
                batch += await tap.consumer.receive(limit - len(batch))
            assert not any(delivery.suspect for delivery in batch)
            came += [delivery.message.id for delivery in batch]
            await tap.ack(*batch)
            limit = min(2 * limit, 512)
        assert came == [message.id for message in sent]
        assert tap.consumer.new.number > 3, "inconclusive: the window did not grow"  # type: ignore[attr-defined]

    @scenario
    async def test_leaving_a_backlog_makes_no_suspects(self, rig: Rig) -> None:
        """What the broker takes back by itself looks like that of a dead holder."""
        bus: Any = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill", limit=20)
        sent = rig.messages(400)
        await rig.publish(bus, *sent)
        await tap.ack(*(await tap.take(20))[:10])
        await tap.close()
        again = await rig.tap(bus, "orders.placed", "shop.bill", limit=100)
        came = await again.take(390)
        assert sorted(d.message.id for d in came) == sorted(message.id for message in sent[10:])
        assert sum(d.suspect for d in came) == 0

    @scenario
    async def test_what_comes_again_overtakes_the_backlog(self, rig: Rig) -> None:
        """A copy is routed to the end of its queue: so it has a queue of its own, which goes first."""
        bus: Any = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill", limit=2)
        sent = rig.messages(2000)
        await rig.publish(bus, *sent)
        first, second = await tap.take(2)
        for delivery in (first, second):
            await tap.retry(delivery)
        order = list[str]()
        while {first.message.id, second.message.id} - set(order):
            assert len(order) < 200, "behind the backlog"
            held = await tap.take(2)
            order += [delivery.message.id for delivery in held]
            await tap.ack(*held)
        await tap.close()
        again = await rig.tap(bus, "orders.placed", "shop.bill", limit=100)
        rest = [delivery.message.id for delivery in await again.take(2002 - len(order) - 2)]
        assert rest == [message.id for message in sent if message.id not in order], "what was given back, too"

    @scenario
    async def test_both_windows_grow_without_disturbing_each_other(self, rig: Rig) -> None:
        """Their tags are one sequence: each window counts its own."""
        bus: Any = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        for _ in range(4):
            await rig.publish(bus, *rig.messages(100), *(rig.message(address=GROUP + "shop.bill") for _ in range(100)))
        held, limit = list[Any](), 1
        while len(held) < 800:
            held += await tap.consumer.receive(min(limit, 800 - len(held)))
            limit += 10
        assert len({delivery.message.id for delivery in held}) == 800
        assert not any(delivery.suspect for delivery in held)
        member: Any = tap.consumer
        assert min(source.number for source in member.sources) > 2, "inconclusive: a window did not grow"
        before = set(member.again.out)
        await tap.ack(*(delivery for delivery in held if delivery.message.address is None))
        assert (member.again.out, member.new.out) == (before, set())
        await tap.close()
        other = await rig.tap(bus, "orders.placed", "shop.bill", limit=100)
        came = await other.take(400)
        assert all(delivery.message.address for delivery in came)
        assert not any(delivery.suspect for delivery in came)
        await other.quiet()

    @scenario
    async def test_answers_are_told_apart(self, rig: Rig) -> None:
        """They carry no number: an acknowledgement would count as read because of what was asked before it."""
        bus: Any = await rig.open()
        async with asyncio.timeout(5):
            ours = await Ours(bus.client).open()
            ours.tell(Basic.Qos(0, 7, False))
            found = await ours.ask(Queue.Declare(0, bus.link.registry, passive=True))
            assert found.queue == bus.link.registry
            await ours.close()

    @scenario
    async def test_what_is_still_on_its_way_through_a_lost_channel_is_no_delivery(self, rig: Rig) -> None:
        """Its tags are those of another channel by now; the broker hands it out again."""
        bus: Any = await rig.open()
        came = list[Any]()
        ours = await Ours(bus.client, came.append).open()
        ours.fail(ChannelLost())
        for frame in (Basic.Deliver("new1", 1, False, "", "orders.placed"), ContentHeader(0, 0, Basic.Properties())):
            await ours.put((0, frame))
        assert not came

    @scenario
    async def test_what_is_missing_hides_nothing_that_is_there(self, rig: Rig) -> None:
        """Asking for it closes the channel, with all that others ask on it."""
        bus: Any = await rig.open()
        names = [bus.prefix + "nowhere", bus.link.registry] * 5
        found = await asyncio.gather(*(bus.link.exists(Queue.Declare(0, name, passive=True)) for name in names))
        assert [answer is not None for answer in found] == [False, True] * 5

    @scenario
    async def test_groups_count_both_queues(self, rig: Rig) -> None:
        bus: Any = await rig.open()
        await rig.tap(bus, "orders.placed", "shop.bill")
        private = [rig.message(address=GROUP + "shop.bill") for _ in range(2)]
        await rig.publish(bus, *rig.messages(3), *private)
        for _ in range(50):
            (group,) = await bus.groups()
            if group.lag == 5:
                break
            await asyncio.sleep(0.1)  # the broker counts a moment later
        assert group.lag == 5

    @scenario
    async def test_an_unknown_group_is_no_unrouted_message(self, rig: Rig) -> None:
        bus = await rig.open()
        (failure,) = await bus.publish([rig.message(address=GROUP + "shop.gone")])
        assert (failure.kind, type(failure.error)) == ("rejected", BusError)
        assert not rig.events["unrouted"]
        assert not await bus.publish([rig.message(address="_reply.gone")]), "a reply is for who waits, or nobody"

    @scenario
    async def test_what_comes_back_is_accounted_for_one_by_one(self, rig: Rig) -> None:
        """Returns carry no tag: of equal messages, each comes back for itself."""
        bus = await rig.open()
        await rig.tap(bus, "orders.placed", "shop.bill")
        lost = rig.message(address=GROUP + "shop.gone")
        batch = [rig.message(), lost, rig.message("nobody.x"), rig.message(), lost, rig.message("nobody.x")]
        failures = await bus.publish(batch)
        assert sorted(failure.index for failure in failures) == [1, 4]
        assert rig.events["unrouted"] == 2

    @scenario
    async def test_delayed_messages_that_nobody_wants_block_no_level(self, rig: Rig) -> None:
        """At-least-once dead-lettering tries for ever what no queue takes, 32 at a time."""
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        due = rig.clock.now() + 0.3
        await rig.publish(bus, *(rig.message("nobody.x", deliver_at=due) for _ in range(100)))
        await rig.publish(bus, sent := rig.message(deliver_at=due))
        assert (await tap.take(within=5))[0].message.id == sent.id

    @scenario
    async def test_a_short_delay_does_not_wait_behind_a_long_one(self, rig: Rig) -> None:
        """A queue looks only at its first message."""
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        began = rig.clock.now()
        delays = (5.0, 3.1, 0.1, 0.7, 0.3, 0.2)
        sent = {rig.message(deliver_at=began + delay): delay for delay in delays}
        await rig.publish(bus, *sent)
        came = [delivery.message.deliver_at - began for delivery in await tap.take(4, within=2)]
        assert came == pytest.approx([0.1, 0.2, 0.3, 0.7], abs=0.01)

    @scenario
    async def test_a_delayed_message_is_not_early_and_not_much_late(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        for delay in (0.05, 0.4, 1.55):
            began = rig.clock.now()
            await rig.publish(bus, rig.message(deliver_at=began + delay))
            await tap.ack(*await tap.take())
            assert delay <= rig.clock.now() - began < delay + 1.0
        (failure,) = await bus.publish([rig.message(deliver_at=rig.clock.now() + 1e8)])
        assert (failure.kind, type(failure.error)) == ("rejected", InvalidOption)

    @scenario
    async def test_delayed_private_messages_do_not_reach_users(self, rig: Rig) -> None:
        """Behind the last level, reserved topics go their own way: ``>`` must not see them."""
        bus = await rig.open()
        bill, all = await rig.tap(bus, "orders.placed", "shop.bill"), await rig.tap(bus, ">", "shop.all")
        await rig.publish(bus, rig.message(address=GROUP + "shop.bill", deliver_at=rig.clock.now() + 0.2))
        await bill.ack(*await bill.take())
        await all.quiet()

    @scenario
    async def test_an_old_registration_does_not_come_back_with_its_member(self, rig: Rig) -> None:
        """In a rolling deploy the old members reconnect after the new ones have changed the pattern."""
        old, new = await rig.open(), await rig.open()
        await rig.tap(old, "orders.*", "shop.bill")
        tap = await rig.tap(new, "returns.*", "shop.bill")
        await old.client.close()
        await rig.until(lambda: rig.events["connected"] == 3)
        await rig.publish(new, rig.message("orders.placed"))
        await tap.quiet()
        assert rig.events["unrouted"] == 1

    @scenario
    async def test_a_deleted_queue_is_made_again(self, rig: Rig) -> None:
        bus: Any = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        await rig.publish(bus, rig.message())
        await tap.ack(*await tap.take())
        for queue in (bus.queue_of("shop.bill"), bus.again_of("shop.bill")):
            await bus.link.ask(Queue.Delete(0, queue))
            await tap.quiet(0.5)
            await rig.publish(bus, rig.message(), rig.message(address=GROUP + "shop.bill"))
            await tap.ack(*await tap.take(2))
        assert not rig.events["unrouted"]

    @scenario
    async def test_a_marked_suspect_comes_back_when_its_member_loses_its_channel(self, rig: Rig) -> None:
        """It is held on another channel, which must not outlive the first."""
        bus: Any = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        await rig.publish(bus, sent := rig.message())
        await tap.take()
        await bus.client.close()
        (suspect,) = await tap.take()
        assert suspect.suspect
        assert await tap.consumer.mark(suspect)
        await bus.link.ask(Queue.Delete(0, bus.queue_of("shop.bill")))
        (again,) = await tap.take()
        assert (again.message.id, again.crashes, again.suspect) == (sent.id, 1, True)
        assert not suspect.session.alive
        await tap.ack(again)

    @scenario
    async def test_a_deleted_exchange_is_made_again(self, rig: Rig) -> None:
        """Publishing to none closes the channel: what was on its way is unknown, and the next works."""
        bus: Any = await rig.open()
        await rig.tap(bus, "orders.placed", "shop.bill")
        async with raw(bus.options) as channel:
            await channel.exchange_delete(bus.exchange)
        (failure,) = await bus.publish([rig.message()])
        assert failure.kind == "unknown"
        await rig.until(lambda: rig.events["connected"] == 2)
        await rig.publish(bus, rig.message())

    @scenario
    async def test_a_timeout_beyond_the_consumer_timeout_is_refused(self, rig: Rig) -> None:
        """Nothing renews a delivery: the broker takes it back, and closes the channel."""
        bus: Any = await rig.open()
        with pytest.raises(InvalidOption, match="consumer_timeout"):
            await rig.tap(bus, "orders.placed", "shop.bill", timeout=3601.0)
        await rig.tap(bus, "orders.placed", None, timeout=3601.0)  # what is live is not settled

    @scenario
    async def test_names_that_do_not_fit_are_refused_one_by_one(self, rig: Rig) -> None:
        bus = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        long, kind = rig.message("a" * 256), rig.message(content_type="x" * 256)
        failures = await bus.publish([rig.message(), long, kind, rig.message()])
        assert [(failure.index, type(failure.error)) for failure in failures] == [(1, InvalidName), (2, InvalidOption)]
        await tap.take(2)

    @scenario
    async def test_a_group_of_any_name(self, rig: Rig) -> None:
        """Queues may not have ``%`` in their names."""
        bus: Any = await rig.open()
        tap = await rig.tap(bus, "sensors.a%2Eb.up", "shop.w%C3%A4rme")
        assert bus.queue_of("shop.w%C3%A4rme").endswith("shop.w+C3+A4rme")
        await rig.publish(bus, rig.message("sensors.a%2Eb.up"))
        (delivery,) = await tap.take()
        await tap.retry(delivery)
        await tap.ack(*await tap.take())

    @scenario
    async def test_dead_letters_are_listed_in_order_and_in_pages(self, rig: Rig) -> None:
        bus: Any = await rig.open()
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        letters = [rig.message(address=DEAD + group) for group in ("shop.bill", "shop.ship") for _ in range(150)]
        await rig.publish(bus, *letters)
        first = await bus.peek(DEAD + "shop.bill", limit=100)
        rest = await bus.peek(DEAD + "shop.bill", first[-1].position, limit=100)
        assert [s.message.id for s in (*first, *rest)] == [m.id for m in letters[:150]]
        assert not await bus.peek(DEAD + "shop.bill", rest[-1].position)
        assert len(await bus.peek(DEAD + ">", limit=1000)) == 300
        (info,) = await bus.groups()
        assert (info.name, info.pattern, info.dead, info.lag) == ("shop.bill", "orders.placed", 150, 0)
        assert {topic.name: topic.messages for topic in await bus.topics(DEAD + ">")} == {
            DEAD + "shop.bill": 150,
            DEAD + "shop.ship": 150,
        }
        await tap.quiet(0.01)

    @scenario
    async def test_a_large_dead_letter(self, rig: Rig) -> None:
        bus: Any = await rig.open()
        letter = rig.message(address=DEAD + "shop.bill", body=b"x" * bus.capabilities.max_payload)
        await rig.publish(bus, letter, replace(letter, body=b""))
        assert [len(s.message.body) for s in await bus.peek(DEAD + "shop.bill")] == [len(letter.body), 0]

    @scenario
    async def test_many_processes_make_a_bus_at_once(self, rig: Rig) -> None:
        """3.10 lets one publish to a stream that another is still making, and closes the connection for it."""
        buses: list[Any] = await asyncio.gather(*(rig.open() for _ in range(6)))
        won = await asyncio.gather(*(bus.tick("daily", 100.0) for bus in buses))
        assert sum(won) == 1
        for bus in buses:
            await rig.publish(bus, rig.message(address=DEAD + "shop.bill"))
        assert len(await buses[0].peek(DEAD + ">")) == 6
        assert not rig.events["lost"]
