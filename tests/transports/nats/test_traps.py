"""One test for each way in which JetStream, or its client, surprises."""

from __future__ import annotations

import asyncio
import time
from threading import Thread
from typing import Any

import pytest
from tests.transports.consuming import nothing, settle, take, until
from tests.transports.nats.helpers import bus, fresh_namespace, group, in_flight, message

from tidings.kernel.errors import BusError, NotFound, TooLarge
from tidings.kernel.topics import DEAD, GROUP
from tidings.kernel.transport import Delivery, Event, Release, Retry, Settlement


async def test_a_topic_of_one_token_is_not_in_its_own_wildcard() -> None:
    async with bus() as b:
        wild, plain = await b.subscribe(group("orders.>")), await b.subscribe(group("orders", "shop.plain"))
        assert not await b.publish([message(1, "orders"), message(2, "orders.placed")])
        assert [d.message.topic for d in await take(wild, 1)] == ["orders.placed"]
        assert [d.message.topic for d in await take(plain, 1)] == ["orders"]
        await nothing(wild)


async def test_a_wildcard_sees_every_first_token() -> None:
    """One stream: with one for each, a group on ``*.created`` silently saw one of them."""
    async with bus() as b:
        consumer = await b.subscribe(group("*.created"))
        assert not await b.publish([message(n, f"kind{n}.created") for n in range(20)])
        assert {d.message.topic for d in await take(consumer, 20)} == {f"kind{n}.created" for n in range(20)}


async def test_a_group_on_everything_sees_nothing_of_ours() -> None:
    """Neither schedules nor marks, notes, others' retries or dead letters; its own retries it does."""
    async with bus() as b:
        consumer, other = await b.subscribe(group(">", "shop.audit")), await b.subscribe(group())
        assert not await b.publish(
            [message(1), message(2, deliver_at=time.time() + 0.3), message(3, address=DEAD + "x")]
        )
        await b.tick("daily", 1.0)
        (first,) = await take(other, 1)
        await settle(other, [first], action=Retry(0.0, 1))
        mine = await take(consumer, 1)
        await settle(consumer, mine, action=Retry(0.2, 1))
        came = await take(consumer, 2)
        assert sorted((d.message.body, d.failures) for d in came) == [(b"1", 1), (b"2", 0)]
        await settle(consumer, came)
        await nothing(consumer)
        assert await in_flight(b, "shop~audit") == 0


async def test_parked_messages_do_not_stall_their_group() -> None:
    """A delayed negative acknowledgement would keep each of them in flight."""
    async with bus() as b:
        consumer = await b.subscribe(group())
        assert not await b.publish([message(n) for n in range(1200)])
        for _ in range(3):
            await settle(consumer, await take(consumer, 400), action=Retry(60.0, 1))
        assert await in_flight(b) == 0
        assert not await b.publish([message(9999)])
        assert [d.message.body for d in await take(consumer, 1)] == [b"9999"]
        ((info),) = await b.groups()
        assert (info.parked, info.lag) == (1200, 0)


async def test_dedup_does_not_eat_a_second_copy() -> None:
    """Under a bare ``Nats-Msg-Id`` the copy is silently not stored; the original is acknowledged, and all is gone."""
    async with bus() as b:
        consumer = await b.subscribe(group())
        sent = message(1)
        assert not await b.publish([sent])
        for action in (Retry(0.0, 1), Retry(0.0, 1), Release(), Release(), Retry(0.05, 2), Retry(0.05, 2)):
            (delivery,) = await take(consumer, 1)
            assert delivery.message.id == sent.id
            await settle(consumer, [delivery], action=action)
        assert [d.failures for d in await take(consumer, 1)] == [2]


async def test_replays_and_dead_letters_keep_their_message_s_id() -> None:
    async with bus() as b:
        consumers = [await b.subscribe(group(name=name)) for name in ("shop.a", "shop.b")]
        sent = message(1)
        assert not await b.publish([sent])
        for _ in range(2):  # dead, replayed, dead again
            for consumer in consumers:
                (delivery,) = await take(consumer, 1)
                letter = message(1, id=sent.id, address=DEAD + consumer.group)
                await settle(consumer, [delivery], outgoing=(letter,))
                assert not await b.publish([message(1, id=sent.id, address=GROUP + consumer.group)])
        assert [len(await b.peek(DEAD + consumer.group)) for consumer in consumers] == [2, 2]


async def test_publishing_again_with_the_same_id_stores_once() -> None:
    async with bus() as b:
        consumer = await b.subscribe(group())
        for _ in range(3):
            assert not await b.publish([message(1, id="mine"), message(2, "orders.paid", id="mine")])
        assert sorted(d.message.topic for d in await take(consumer, 2)) == ["orders.paid", "orders.placed"]
        await nothing(consumer)


async def test_two_delayed_messages_of_one_topic_are_two_schedules() -> None:
    """One subject has one schedule: a second would replace the first."""
    async with bus() as b:
        consumer = await b.subscribe(group())
        due = time.time() + 0.3
        assert not await b.publish([message(n, deliver_at=due) for n in range(50)])
        assert sorted(int(d.message.body) for d in await take(consumer, 50)) == list(range(50))
        assert time.time() >= due


async def test_a_live_subscription_sees_what_was_delayed() -> None:
    """The server does not publish what its schedule stores."""
    async with bus() as b:
        live = await b.subscribe(group("orders.*", None))
        assert not await b.publish([message(1, deliver_at=time.time() + 0.2)])
        assert [d.message.body for d in await take(live, 1)] == [b"1"]


async def test_a_late_acknowledgement_of_a_lost_lease_does_nothing() -> None:
    """The server takes it from anybody: the next holder's message would be gone when it dies."""
    async with bus(lease="1s") as b:
        old = await b.subscribe(group())
        assert not await b.publish([message(1)])
        (lost,) = await take(old, 1)
        old.stop()
        new = await b.subscribe(group())
        (held,) = await take(new, 1)
        assert held.suspect
        assert [f.kind for f in await old.settle([Settlement(lost)])] == ["fenced"]
        assert not lost.session.alive
        assert await in_flight(b) == 1, "the old holder's acknowledgement took it from the new one"
        await settle(new, [held])
        assert await in_flight(b) == 0


async def test_what_lay_in_the_socket_for_a_lease_is_not_handed_out() -> None:
    """A process that was stopped finds messages that look new, and are somebody else's by now."""
    async with bus(lease="1s") as b:
        frozen = await b.subscribe(group())
        receiving = asyncio.ensure_future(frozen.receive(10))
        await asyncio.sleep(0.3)

        async def publish() -> None:
            async with bus(namespace=b.options.namespace, lease="1s", keep=True) as other:
                assert not await other.publish([message(1)])

        elsewhere = Thread(target=asyncio.run, args=(publish(),))
        elsewhere.start()
        elsewhere.join()
        time.sleep(1.5)  # noqa: ASYNC251  # nobody reads the socket meanwhile
        (held,) = await receiving
        assert held.suspect, "its first delivery was taken for new"


async def test_what_was_delivered_and_never_handled_has_not_crashed() -> None:
    """The server counts deliveries: four that nobody handled all came with a count of two."""
    async with bus(lease="1s") as b:
        gone = await b.subscribe(group())
        assert not await b.publish([message(n) for n in range(4)])
        await take(gone, 4)
        gone.stop()
        consumer = await b.subscribe(group())
        came = await take(consumer, 4)
        assert [(d.attempt, d.failures, d.crashes, d.suspect) for d in came] == [(1, 0, 0, True)] * 4


async def test_a_message_with_its_headers_is_too_large() -> None:
    """The server closes the connection of who sends too much, and the client gives up for ever."""
    told: list[Event] = []
    async with bus(told=told) as b:
        most = b.capabilities.max_payload
        large = message(1, headers=(("a", "x" * 20_000),))
        (failure,) = await b.publish([type(large)(**{**_fields(large), "body": b"x" * most})])
        assert isinstance(failure.error, TooLarge)
        assert failure.kind == "rejected"
        assert not await b.publish([message(2)])
        assert [event.kind for event in told if event.kind == "lost"] == []


def _fields(sent: Any) -> dict[str, Any]:
    return {name: getattr(sent, name) for name in ("topic", "body", "id", "time", "type", "source", "headers")}


async def test_headers_that_cannot_travel_as_they_are() -> None:
    """The client turns line breaks into blanks, trims values, refuses names; the server obeys its own."""
    headers = (
        ("lines", "a\r\nb\nc"),
        ("blanks", "  x  "),
        ("ünïcode", "☃"),
        ("a b: c", "1"),
        ("Nats-Msg-Id", "theirs"),
        ("nats-schedule", "@every 1s"),
        ("ce-id", "theirs"),
        ("Status", "503"),
        ("percent", "100% %41"),
    )
    async with bus() as b:
        consumer = await b.subscribe(group())
        assert not await b.publish([message(1, headers=headers), message(2, headers=(("percent", "100% %41"),))])
        first, second = await take(consumer, 2)
        assert first.message.headers == headers
        assert second.message.headers == (("percent", "100% %41"),)
        await settle(consumer, [first], action=Retry(0.0, 1))
        assert (await take(consumer, 1))[0].message.headers == headers


@pytest.mark.parametrize("name", ["shop.bill", "a.b.c", "shop", "x%2Ey.z", "A-b_c.d"])
async def test_group_names_are_consumers_names_reversibly(name: str) -> None:
    """A durable's name takes no dot."""
    async with bus() as b:
        consumer = await b.subscribe(group(name=name))
        assert not await b.publish([message(1)])
        await settle(consumer, await take(consumer, 1))
        assert [info.name for info in await b.groups()] == [name]
        plain = name.replace(".", "~")
        assert {info.name for info in await b.ask("consumers_info", b.name)} == {plain, f"{plain}@again"}


async def test_subjects_added_at_once_by_many_stay_all() -> None:
    """Updating a stream replaces all its subjects: the last who writes would undo what others added."""
    name = fresh_namespace()
    async with bus(namespace=name) as first:
        others = [bus(namespace=name, keep=True) for _ in range(8)]
        ends = [await other.__aenter__() for other in others]
        await asyncio.gather(*(end.publish([message(1, f"first{n}.x")]) for n, end in enumerate(ends)))
        info = await first.ask("stream_info", name)
        assert {f"{name}.first{n}.>" for n in range(8)} <= set(info.config.subjects)
        assert {info.name for info in await first.topics()} == {f"first{n}.x" for n in range(8)}
        for other in others:
            await other.__aexit__(None, None, None)


async def test_a_stream_that_was_deleted_is_made_again_and_publishing_goes_on() -> None:
    async with bus() as b:
        assert not await b.publish([message(1)])
        await b.ask("delete_stream", b.name)
        assert not await b.publish([message(2)])
        assert [stored.message.body for stored in await b.peek(">")] == [b"2"]


async def test_a_group_that_was_deleted_is_told() -> None:
    async with bus() as b:
        consumer = await b.subscribe(group())
        waiting = asyncio.ensure_future(consumer.receive(1))
        await asyncio.sleep(0.1)
        await b.ask("delete_consumer", b.name, "shop~bill")
        with pytest.raises(BusError, match="dropped"):
            await asyncio.wait_for(waiting, 5)


async def test_a_member_of_the_old_pattern_reads_the_new_one() -> None:
    """In a rolling deployment, both would handle each new message."""
    async with bus() as b:
        old = await b.subscribe(group("orders.*"))
        waiting = asyncio.ensure_future(old.receive(1))
        await asyncio.sleep(0.1)
        new = await b.subscribe(group("orders.>"))
        assert not await b.publish([message(n) for n in range(20)])
        seen = list(await asyncio.wait_for(waiting, 5))
        while len(seen) < 20:
            for consumer in (new, old):
                with_limit = asyncio.ensure_future(consumer.receive(20))
                done, _ = await asyncio.wait({with_limit}, timeout=0.3)
                if not done:
                    consumer.stop()
                seen += await with_limit
        assert sorted(int(d.message.body) for d in seen) == list(range(20))


async def test_the_drained_generation_goes() -> None:
    async with bus() as b:
        await (await b.subscribe(group("orders.*"))).close()
        assert not await b.publish([message(1)])
        consumer = await b.subscribe(group("returns.*"))
        await settle(consumer, await take(consumer, 1))
        await nothing(consumer, 0.5)
        assert {info.name for info in await b.ask("consumers_info", b.name)} == {"shop~bill@2", "shop~bill@again"}


async def test_a_renamed_group_leaves_its_old_name_free() -> None:
    async with bus() as b:
        await (await b.subscribe(group())).close()
        await b.rename("shop.bill", "shop.invoice")
        await (await b.subscribe(group())).close()
        await (await b.subscribe(group("returns.>", "shop.invoice"))).close()
        assert sorted((i.name, i.pattern) for i in await b.groups()) == [
            ("shop.bill", "orders.>"),
            ("shop.invoice", "returns.>"),
        ]
        assert not await b.publish([message(1, address=GROUP + "shop.bill")])  # a dead letter of before: to both
        with pytest.raises(NotFound):
            await b.drop("shop.nobody")


async def test_a_seek_does_not_repeat_copies_that_were_settled() -> None:
    async with bus() as b:
        consumer = await b.subscribe(group())
        assert not await b.publish([message(1)])
        await settle(consumer, await take(consumer, 1), action=Retry(0.0, 1))
        await settle(consumer, await take(consumer, 1))
        await consumer.close()
        await b.seek("shop.bill", 0.0)
        again = await b.subscribe(group())
        await settle(again, await take(again, 1))
        await nothing(again, 0.5)


async def test_a_mark_goes_when_its_message_is_settled() -> None:
    async with bus(lease="1s") as b:
        gone = await b.subscribe(group())
        assert not await b.publish([message(1)])
        await take(gone, 1)
        gone.stop()
        consumer = await b.subscribe(group())
        (suspect,) = await take(consumer, 1)
        assert await consumer.mark(suspect)
        root = f"{b.prefix}_tidings.mark.>"
        assert (await b.ask("stream_info", b.name, subjects_filter=root)).state.subjects
        await settle(consumer, [suspect])

        await asyncio.sleep(0.3)
        assert not (await b.ask("stream_info", b.name, subjects_filter=root)).state.subjects


async def test_a_retry_overtakes_a_backlog() -> None:
    """Its copy lies at the stream's end: in one consumer with the topics it would come last."""
    async with bus() as b:
        consumer = await b.subscribe(group())
        assert not await b.publish([message(n) for n in range(2000)])
        first, *_ = came = await take(consumer, 10, 10)
        await settle(consumer, came[1:])
        await settle(consumer, [first], action=Retry(0.2, 1))
        deadline = time.monotonic() + 0.2
        while not any(delivery.failures for delivery in came):
            assert time.monotonic() < deadline + 2.0
            came = await take(consumer, 10, 10)
            await settle(consumer, came)
            await asyncio.sleep(0.02)
        ((info),) = await b.groups()
        assert info.lag > 500, "there was no backlog any more"


async def test_many_retries_overtake_a_backlog_in_one_go() -> None:
    async with bus() as b:
        consumer = await b.subscribe(group())
        assert not await b.publish([message(n) for n in range(1000)])
        await settle(consumer, await take(consumer, 300), action=Retry(0.0, 1))
        came: list[Delivery] = []
        for _ in range(3):
            came += await consumer.receive(300)
        assert sum(delivery.failures == 1 for delivery in came) == 300
        await settle(consumer, came)


async def test_what_a_busy_member_was_given_unasked_goes_to_another() -> None:
    """Whoever waits at the private address when a topic's message comes still waits there, and may be busy for long."""
    async with bus(lease="2s") as b:
        busy = await b.subscribe(group())
        waiting = asyncio.ensure_future(busy.receive(1))
        await asyncio.sleep(0.1)
        assert not await b.publish([message(1)])
        (held,) = await waiting
        assert not await b.publish([message(2, address=GROUP + "shop.bill")])
        await until(lambda: busy.again.arrived)
        idle = await b.subscribe(group())
        began = time.monotonic()
        receiving = asyncio.ensure_future(take(idle, 1))
        while not receiving.done():
            await asyncio.sleep(0.2)
            await busy.extend([held])
        (given,) = await receiving
        assert (given.message.body, given.suspect, given.crashes) == (b"2", False, 0)
        assert time.monotonic() - began < 2.0
        await settle(busy, [held])
        await settle(idle, [given])


async def test_both_consumers_are_counted_renamed_and_dropped() -> None:
    async with bus() as b:
        consumer = await b.subscribe(group())
        assert not await b.publish([message(1), message(2), message(3, address=GROUP + "shop.bill")])
        ((info),) = await b.groups()
        assert (info.lag, info.in_flight) == (3, 0)
        await take(consumer, 3)
        ((info),) = await b.groups()
        assert (info.lag, info.in_flight) == (0, 3)
        await consumer.close()
        await b.rename("shop.bill", "shop.invoice")
        assert not await b.publish(
            [message(n, address=GROUP + name) for n, name in ((4, "shop.bill"), (5, "shop.invoice"))]
        )
        consumer = await b.subscribe(group(name="shop.invoice"))
        bodies = sorted(int(delivery.message.body) for delivery in await take(consumer, 5))
        assert bodies == [1, 2, 3, 4, 5]
        await consumer.close()
        await b.drop("shop.invoice")
        assert await b.ask("consumers_info", b.name) == []


async def test_a_private_address_without_its_consumer_gets_one() -> None:
    """Somebody deleted it: the members are told, and the app that is started anew has it again."""
    async with bus() as b:
        consumer = await b.subscribe(group())
        waiting = asyncio.ensure_future(consumer.receive(1))
        await asyncio.sleep(0.1)
        await b.ask("delete_consumer", b.name, "shop~bill@again")
        with pytest.raises(BusError, match="dropped"):
            await asyncio.wait_for(waiting, 5)
        consumer = await b.subscribe(group())
        assert not await b.publish([message(1)])
        await settle(consumer, await take(consumer, 1), action=Retry(0.0, 1))
        assert [delivery.failures for delivery in await take(consumer, 1)] == [1]


async def test_the_client_hands_over_what_it_has_not_parsed() -> None:
    """Through a method of its own (``connection._client``): without that all goes on, at half the speed."""
    async with bus() as b:
        consumer = await b.subscribe(group())
        heard: list[Any] = []
        hear, sub = consumer.main.ear.raw, consumer.main.ear.sub

        def overheard(subject: bytes, reply: bytes, body: bytes, head: bytes) -> None:
            heard.append((subject, body, head))
            hear(subject, reply, body, head)

        sub.raw = overheard
        assert not await b.publish([message(1)])
        (first,) = await take(consumer, 1)
        ((subject, body, head),) = [each for each in heard if each[1]]
        assert (subject.decode(), body) == (f"{b.prefix}orders.placed", b"1")
        assert head.startswith(b"NATS/1.0\r\n"), "the client has changed"

        sub.raw = None
        assert not await b.publish([message(2, headers=(("own", "x"),))])
        (second,) = await take(consumer, 1)
        assert (second.message.body, second.message.headers) == (b"2", (("own", "x"),))
        await settle(consumer, [first, second])


async def test_unrouted_messages_are_counted_once_for_each() -> None:
    told: list[Event] = []
    async with bus(told=told) as b:
        await b.subscribe(group())
        assert not await b.publish([message(1), message(2, "nobody.listens"), message(3, "nobody.listens")])
        await until(lambda: any(event.kind == "unrouted" for event in told))
        assert [(e.count, e.detail) for e in told if e.kind == "unrouted"] == [(2, "nobody.listens")]
