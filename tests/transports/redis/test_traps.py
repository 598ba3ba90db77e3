"""What others have paid for already, and what we met: each fails without its handling."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.servers import fresh
from tests.transports.consuming import nothing, settle, take, until
from tests.transports.redis.helpers import bus, group, kinds, message, namespace, raw

from tidings.kernel.errors import BusError, BusFull, BusUnavailable
from tidings.kernel.transport import Delivery, Event, Release, Retry, Settlement, Subscription


async def test_a_quiet_group_waits_longer_than_the_client_would() -> None:
    """redis-py 8 ends a read after 5 s by default, and tries again inside."""
    told: list[Event] = []
    with fresh("redis") as mine:  # nobody else's reads are counted

        def reads() -> int:
            return int(raw(mine.url).info("commandstats")["cmdstat_xreadgroup"]["calls"])

        async with bus(mine.url, told=told) as open:
            consumer = await open.subscribe(group())
            waiting = asyncio.ensure_future(consumer.receive(10))
            await asyncio.sleep(0.3)
            before = reads()
            await asyncio.sleep(6.0)
            await open.publish([message()])
            (delivery,) = await waiting
            assert reads() == before
            await settle(consumer, [delivery])
            assert kinds(told) == ["connected"]


async def test_stop_and_news_end_a_read_that_blocks() -> None:
    async with bus() as open:
        consumer = await open.subscribe(group("sensors.>"))
        waiting = asyncio.ensure_future(consumer.receive(10))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await open.publish([message(1, "sensors.new")])
        assert len(await waiting) == 1
        assert time.monotonic() - began < 0.4
        waiting = asyncio.ensure_future(consumer.receive(10))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        consumer.stop()
        assert not await waiting
        assert time.monotonic() - began < 0.4


async def test_no_more_than_was_asked_for() -> None:
    """COUNT is per stream: a hundred streams would bring a hundred times as much."""
    async with bus() as open:
        consumer = await open.subscribe(group("sensors.>"))
        await open.publish([message(n, f"sensors.s{n % 100}") for n in range(1000)])
        came: list[Delivery] = []
        while len(came) < 1000:
            batch = await consumer.receive(7)
            assert 0 < len(batch) <= 7
            assert len(consumer.held) <= 7 + 101, "at most one more of each stream"
            came += batch
            await settle(consumer, batch)
        assert len({d.message.id for d in came}) == 1000


async def test_what_came_in_excess_is_renewed_and_given_back() -> None:
    async with bus(lease=0.5) as open, bus(namespace=open.options.namespace, lease=0.5) as other:
        consumer = await open.subscribe(group("sensors.>"))
        await open.publish([message(n, f"sensors.s{n}") for n in range(50)])
        (held,) = await consumer.receive(1)
        assert consumer.surplus
        rival = await other.subscribe(group("sensors.>"))
        end = time.monotonic() + 1.5
        waiting = asyncio.ensure_future(rival.receive(100))
        while time.monotonic() < end:
            await consumer.extend([held])
            await asyncio.sleep(0.1)
        assert not waiting.done(), "the excess went back as if its holder had died"
        consumer.stop()
        await consumer.close()
        came = list(await waiting)
        while len(came) < 50:
            came += await rival.receive(100)
        assert not any(d.suspect or d.crashes or d.failures for d in came)


async def test_more_streams_than_a_group_may_have() -> None:
    async with bus(topics=3) as open:
        await open.subscribe(group("sensors.>"))
        assert not await open.publish([message(n, f"sensors.s{n}") for n in range(3)])
        failures = await open.publish([message(7, "orders.placed"), message(8, "sensors.s9")])
        assert [failure.kind for failure in failures] == ["rejected"] * 2
        assert "group 'shop.bill' would read more than 3 topics" in str(failures[0].error)
        assert not await open.publish([message(9, "sensors.s1")])
        assert "orders.placed" not in [info.name for info in await open.topics()]
        assert not await open.publish([message(n, f"other.o{n}") for n in range(4)])
        with pytest.raises(BusError, match="more than 3 topics"):
            await open.subscribe(group("other.>", "shop.other"))
        with pytest.raises(BusError, match="more than 3 topics"):
            await open.subscribe(Subscription(app="shop", pattern=">"))


async def test_nothing_unsettled_is_trimmed() -> None:
    async with bus(retain=0.0) as open:
        consumer = await open.subscribe(group())
        behind = await open.subscribe(group(name="shop.ship"))
        await open.publish([message(n) for n in range(10)])
        await settle(behind, await take(behind, 9))
        first, *others = await take(consumer, 8)
        await asyncio.sleep(0.01)
        assert await open.upkeep.trim() == 0
        await settle(consumer, others)
        assert await open.upkeep.trim() == 0, "one before them is held"
        await settle(consumer, [first])
        assert await open.upkeep.trim() == 8
        assert [d.message.id for d in await take(consumer, 2)] == ["m8", "m9"]
        assert [d.message.id for d in await take(behind, 1)] == ["m9"]


async def test_a_group_that_begins_at_a_time_holds_back_what_is_younger() -> None:
    async with bus(retain=0.0) as open:
        consumer = await open.subscribe(group())
        await open.publish([message(n) for n in range(2)])
        await settle(consumer, await take(consumer, 2))
        await asyncio.sleep(0.01)
        behind = await open.subscribe(group(name="shop.ship", start=time.time()))
        assert await open.upkeep.trim() == 2, "it is at the last id there can be before"
        await open.publish([message(3)])
        await settle(consumer, await take(consumer, 1))
        await asyncio.sleep(0.01)
        assert await open.upkeep.trim() == 0
        assert [d.message.id for d in await take(behind, 1)] == ["m3"]


async def test_an_abandoned_group_holds_nothing_back() -> None:
    told: list[Event] = []
    async with bus(retain=0.0, told=told) as open:
        consumer = await open.subscribe(group())
        ahead = await open.subscribe(group(name="shop.ship"))
        await open.publish([message(n) for n in range(10)])
        await settle(ahead, await take(ahead, 10))
        await settle(consumer, await take(consumer, 2))
        await asyncio.sleep(0.01)

        def age(name: str) -> None:
            raw().hincrby(f"{open.bus}seen", name, -8 * 86400)

        age("shop.bill")
        assert await open.upkeep.trim() == 2, "it has a member"
        await consumer.close()
        assert await open.upkeep.trim() == 0, "it had one a moment ago"
        age("shop.bill")
        age("shop.ship")
        assert await open.upkeep.trim() == 8
        assert [event.detail.split()[0] for event in told if event.kind == "retention"] == ["shop.bill"]
        (info,) = await open.groups("shop.bill")
        assert (info.lag, info.members) == (0, 0)
        await open.upkeep.trim()
        assert kinds(told).count("retention") == 1, "nothing more was dropped"
        consumer = await open.subscribe(group())  # revived
        await open.publish([message(11)])
        assert [d.message.id for d in await take(consumer, 1)] == ["m11"]


async def test_what_an_abandoned_group_held_may_go_too() -> None:
    told: list[Event] = []
    async with bus(retain=0.0, told=told, lease=0.3) as open:
        consumer = await open.subscribe(group())
        await open.publish([message(n) for n in range(3)])
        await take(consumer, 3)
        await consumer.leave()  # as if its process had died
        await asyncio.sleep(0.01)
        raw().hincrby(f"{open.bus}seen", "shop.bill", -8 * 86400)
        assert await open.upkeep.trim() == 3
        assert kinds(told) == ["connected", "retention"]
        consumer = await open.subscribe(group())
        await open.publish([message(4)])
        (new,) = await take(consumer, 1)
        assert new.message.id == "m4"
        await settle(consumer, [new])
        await nothing(consumer, 1.5)


async def test_retention_keeps_what_is_young_and_dead() -> None:
    async with bus(retain=60.0) as open:
        consumer = await open.subscribe(group())
        await open.publish([message(n) for n in range(3)])
        await settle(consumer, await take(consumer, 3))
        assert await open.upkeep.trim() == 0
    async with bus(retain=0.0) as open:
        await open.publish([message(1, address="_dead.shop.bill"), message(2)])
        await asyncio.sleep(0.01)
        assert await open.upkeep.trim() == 1
        assert [info.name for info in await open.topics("_dead.>")] == ["_dead.shop.bill"]


async def test_copies_that_are_settled_do_not_stay() -> None:
    async with bus() as open:
        consumer = await open.subscribe(group())
        await open.publish([message(n) for n in range(3)])
        for delivery in await take(consumer, 3):
            await consumer.settle([Settlement(delivery, Retry(0.0, 1))])
        await settle(consumer, await take(consumer, 3))
        await asyncio.sleep(0.01)
        await open.upkeep.trim()
        assert raw().xlen(open.key("_group.shop.bill")) == 0
        assert raw().xlen(open.key("orders.placed")) == 3


async def test_max_size() -> None:
    async with bus(max_size="64KiB") as open:
        await open.publish([message(n, headers=(("x", "y" * 1000),)) for n in range(500)])
        await asyncio.sleep(0.05)
        for _ in range(8):
            await asyncio.sleep(0.02)
            await open.upkeep.trim()
        left = raw().xlen(open.key("orders.placed"))
        assert left < 250, f"{left} left"


async def test_a_member_that_holds_something_keeps_its_name() -> None:
    """XGROUP DELCONSUMER would drop what is pending."""
    async with bus() as open:
        consumer = await open.subscribe(group())
        await open.publish([message()])
        (delivery,) = await take(consumer, 1)
        await open.run("part", consumer.id, consumer.name, *consumer.topics)
        assert raw().xpending(open.key("orders.placed"), "shop.bill")["pending"] == 1
        await settle(consumer, [delivery])
        await consumer.close()
        assert not raw().xinfo_consumers(open.key("orders.placed"), "shop.bill"), "one that holds nothing leaves"


async def test_a_killed_members_messages_come_long_before_its_lease_ends() -> None:
    async with bus(lease=60.0) as open:
        dying = open.options.transport()
        await dying.open(lambda event: None)
        victim = await dying.subscribe(group())
        await open.publish([message(n) for n in range(3)])
        await take(victim, 3)
        consumer = await open.subscribe(group())
        for task in dying.tasks:
            task.cancel()
        assert dying.link is not None
        assert dying.channels.listener is not None
        for end in (dying.link, dying.channels.listener):
            end.end(OSError("killed"))
        came = await take(consumer, 3)
        assert all(d.suspect and not d.crashes for d in came)
        await settle(consumer, came)
        victim.reader.close()
        await dying.client.aclose()


async def test_a_lost_answer_is_found_again() -> None:
    """What the server has handed out and the client never saw comes at once, and is no suspect."""
    async with bus(lease=60.0) as open:
        consumer = await open.subscribe(group())
        await open.publish([message(1)])
        (held,) = await take(consumer, 1)
        waiting = asyncio.ensure_future(consumer.receive(10))
        await asyncio.sleep(0.1)
        link = consumer.reader.link
        assert link is not None
        link.data_received = lambda data: link.end(OSError("torn"))  # type: ignore[method-assign]
        await open.publish([message(2)])
        (found,) = await asyncio.wait_for(waiting, 10)
        assert (found.message.id, found.suspect) == ("m2", False)
        await settle(consumer, [held, found])
        await nothing(consumer)


def torn(link: Any) -> None:
    """What it is asked is done, and the answer is lost."""
    link.data_received = lambda data: link.end(OSError("torn"))


async def test_what_was_settled_though_its_answer_was_lost_is_settled() -> None:
    told: list[Event] = []
    async with bus(told=told) as open:
        consumer = await open.subscribe(group())
        await open.publish([message(n) for n in range(5)])
        zero, one, two, three, _ = await take(consumer, 5)
        await settle(consumer, [zero])
        batch = [
            Settlement(one),
            Settlement(two, outgoing=(message(9, "sent.one"),)),
            Settlement(three, Retry(60.0, 1)),
        ]
        torn(open.link)
        with pytest.raises(BusUnavailable):
            await consumer.settle(batch)
        await until(open.up.is_set)
        assert not await consumer.settle(batch)
        assert not consumer.doubtful
        assert (raw().xlen(open.key("sent.one")), raw().zcard(f"{open.bus}due"), len(consumer.held)) == (1, 1, 1)
        assert [failure.kind for failure in await consumer.settle(batch)] == ["fenced"] * 3, "settled: no second time"


async def test_what_was_perhaps_settled_and_perhaps_taken_is_unknown() -> None:
    async with bus(lease=0.3) as open, bus(namespace=open.options.namespace, lease=0.3) as other:
        slow = await open.subscribe(group())
        await open.publish([message(n) for n in range(3)])
        zero, two, one = await take(slow, 3)
        await settle(slow, [zero])
        batch = [Settlement(one, outgoing=(message(9, "sent.one"),))]
        torn(open.link)
        with pytest.raises(BusUnavailable):
            await slow.settle(batch)
        rival = await other.subscribe(group())
        assert [d.message.id for d in await take(rival, 1)] == ["m1"]
        await until(open.up.is_set)
        assert [failure.kind for failure in await slow.settle([*batch, Settlement(two)])] == ["unknown", "fenced"]
        assert [failure.kind for failure in await slow.settle(batch)] == ["fenced"], "and gone after that was told"
        assert raw().xlen(open.key("sent.one")) == 1


async def test_of_a_backlog_the_next_are_read_meanwhile_and_given_back() -> None:
    async with bus() as open:
        consumer = await open.subscribe(group())
        for at in range(0, 3000, 500):
            await open.publish([message(at + n) for n in range(500)])
        first = await consumer.receive(600)
        await until(lambda: len(consumer.surplus) == 512, "read ahead, but not so much that settling would wait for it")
        assert (len(first), len(consumer.held)) == (600, 1112)
        second = await consumer.receive(500)
        assert len(second) == 500
        await asyncio.sleep(0.1)
        assert len(consumer.held) == 1112, "no more before that was handed out"
        await settle(consumer, second)
        (info,) = await open.groups()
        assert info.in_flight == 612
        consumer.stop()
        assert not await consumer.receive(600)
        await consumer.close()
        other = await open.subscribe(group())
        came = await take(other, 2500, limit=1000)
        expected = {f"m{n}" for n in range(3000)} - {d.message.id for d in second}
        assert {d.message.id for d in came} == expected
        assert not any(d.suspect or d.crashes or d.failures for d in came)


async def test_trouble_while_reading_ahead_is_told_once() -> None:
    async with bus() as open:
        consumer = await open.subscribe(group())
        await open.publish([message(n) for n in range(1000)])

        async def refused(limit: int) -> None:
            raise BusUnavailable("refused")

        consumer.ahead = open.loop.create_task(refused(300))
        with pytest.raises(BusUnavailable, match="refused"):
            await consumer.receive(300)
        assert len(await take(consumer, 1000, limit=1000)) == 1000


async def test_who_takes_little_at_once_gets_no_more() -> None:
    async with bus() as open:
        consumer = await open.subscribe(group())
        await open.publish([message(n) for n in range(500)])
        await take(consumer, 100)
        await asyncio.sleep(0.1)
        assert len(consumer.held) == 100


async def test_what_a_stop_finds_being_read_is_given_back() -> None:
    async with bus() as open:
        consumer = await open.subscribe(group())
        await open.publish([message(n) for n in range(1000)])
        await consumer.receive(300)
        for _ in range(3):
            await asyncio.sleep(0)  # the next are asked for
        consumer.stop()
        await consumer.close()
        (info,) = await open.groups()
        assert (info.in_flight, info.lag) == (0, 1000), info


async def test_who_is_busy_with_a_backlog_takes_over_from_the_dead() -> None:
    async with bus(lease=0.5) as open, bus(namespace=open.options.namespace, lease=0.5) as other:
        dead = await other.subscribe(group())
        await open.publish([message(n) for n in range(5000)])
        lost = {d.message.id for d in await take(dead, 20)}
        await dead.leave()
        consumer = await open.subscribe(group())
        came = set[str]()
        end = time.monotonic() + 10
        while not lost <= came:
            assert time.monotonic() < end, "what the dead held waits for the end of the backlog"
            batch = await consumer.receive(300)
            came |= {d.message.id for d in batch}
            await settle(consumer, batch)
            await open.publish([message(10_000 + n) for n in range(300)])


async def test_a_late_settlement_of_a_lost_holder_does_nothing() -> None:
    """XACK by the former owner succeeds in Redis."""
    told: list[Event] = []
    async with bus(lease=0.3, told=told) as open, bus(namespace=open.options.namespace, lease=0.3) as other:
        slow = await open.subscribe(group())
        await open.publish([message(n) for n in range(3)])
        held = await take(slow, 3)
        rival = await other.subscribe(group())
        came = await take(rival, 3)
        outgoing = (message(9, "billing.invoiced"),)
        late = [Settlement(held[0]), Settlement(held[1], Retry(0.0, 1)), Settlement(held[2], outgoing=outgoing)]
        failures = await slow.settle(late)
        assert [failure.kind for failure in failures] == ["fenced"] * 3
        assert raw().xpending(open.key("orders.placed"), "shop.bill")["pending"] == 3
        assert not raw().exists(open.key("billing.invoiced"))
        await settle(rival, came)
        assert "fenced" in kinds(told)


async def test_scripts_that_were_flushed_are_loaded_again() -> None:
    async with bus() as open:
        consumer = await open.subscribe(group())
        await open.publish([message(1)])
        raw().script_flush()
        await settle(consumer, await take(consumer, 1))
        assert await open.tick("daily", 1.0)
        raw().script_flush()
        assert not await open.publish([message(2, "orders.late"), message(3)])
        await settle(consumer, await take(consumer, 1))
        assert await open.tick("daily", 2.0)


@pytest.mark.parametrize("pattern", ["orders.placed", "orders.*"])
async def test_a_stream_deleted_underneath(pattern: str) -> None:
    async with bus() as open:
        consumer = await open.subscribe(group(pattern))
        await open.publish([message(1)])
        await settle(consumer, await take(consumer, 1))
        waiting = asyncio.ensure_future(consumer.receive(10))
        await asyncio.sleep(0.1)
        raw().delete(open.key("orders.placed"))
        await open.publish([message(2)])
        assert [d.message.id for d in await asyncio.wait_for(waiting, 15)] == ["m2"]


@pytest.mark.parametrize("pattern", ["orders.placed", "orders.*"])
async def test_all_deleted_underneath(pattern: str) -> None:
    with fresh("redis") as mine:
        async with bus(mine.url) as open:
            consumer = await open.subscribe(group(pattern))
            await open.publish([message(1)])
            (held,) = await take(consumer, 1)
            raw(mine.url).flushall()
            assert not await open.publish([message(2)])
            (delivery,) = await take(consumer, 1)
            assert delivery.message.id == "m2"
            failures = await consumer.settle([Settlement(held, Release()), Settlement(delivery)])
            assert [failure.kind for failure in failures] == ["fenced"]


async def test_out_of_memory() -> None:
    """Publishing is refused, clearly and wholly; settling waits; with memory again nothing is missing."""
    with fresh("redis") as mine:
        async with bus(mine.url, publish_wait=1.0) as open:
            consumer = await open.subscribe(group())
            await open.publish([message(n) for n in range(4)])
            first, second, third, fourth = await take(consumer, 4)
            raw(mine.url).config_set("maxmemory", 1)
            failures = await open.publish([message(5), message(6)])
            assert [(failure.kind, type(failure.error)) for failure in failures] == [("rejected", BusFull)] * 2
            failures = await open.publish([message(7, "orders.new")])
            assert [type(failure.error) for failure in failures] == [BusFull]
            await settle(consumer, [first])
            batch = [Settlement(second, Retry(0.0, 1)), Settlement(third, outgoing=(message(8, "billing.invoiced"),))]
            with pytest.raises(BusFull):
                await consumer.settle(batch)
            await settle(consumer, [fourth])
            raw(mine.url).config_set("maxmemory", 0)
            assert not await consumer.settle(batch), "nothing of it was done before"
            await open.publish([message(9)])
            assert sorted(d.message.id for d in await take(consumer, 2)) == ["m1", "m9"]
            assert {info.name: info.messages for info in await open.topics()} == {
                "orders.placed": 5,
                "billing.invoiced": 1,
            }


async def test_a_disk_that_is_full_is_waited_for() -> None:
    """MISCONF: a server that cannot save takes no writes."""
    with fresh("redis") as mine:
        async with bus(mine.url, publish_wait=10.0) as open:
            await open.publish([message(1)])
            client = raw(mine.url)
            client.config_set("min-replicas-to-write", 1)  # NOREPLICAS: the same kind of no
            publishing = asyncio.ensure_future(open.publish([message(2)]))
            await asyncio.sleep(0.4)
            assert not publishing.done()
            client.config_set("min-replicas-to-write", 0)
            assert await publishing == ()


async def test_too_few_replicas() -> None:
    async with bus(replicas=1, publish_wait=0.3) as open:
        (failure,) = await open.publish([message()])
        assert (failure.kind, "0 of 1 replicas" in str(failure.error)) == ("unknown", True)


async def test_enough_replicas() -> None:
    with fresh("redis_replica") as mine:
        async with bus(mine.behind["redis_primary"].url, replicas=1) as open:
            assert await open.publish([message()]) == ()


async def test_a_topic_that_was_left_is_drained_and_then_left_alone() -> None:
    async with bus() as open:
        consumer = await open.subscribe(group("orders.*"))
        await open.publish([message(1), message(2)])
        await consumer.close()
        consumer = await open.subscribe(group("returns.*"))
        await open.publish([message(3), message(4, "returns.late")])
        came = await take(consumer, 3)
        assert sorted(d.message.id for d in came) == ["m1", "m2", "m4"]
        await settle(consumer, came)
        await open.publish([message(5)])
        await nothing(consumer)
        await consumer.close()
        assert not raw().xinfo_groups(open.key("orders.placed")), "it does not hold retention back"
        consumer = await open.subscribe(group("orders.*"))
        await open.publish([message(6)])
        assert [d.message.id for d in await take(consumer, 1)] == ["m6"]


async def test_due_messages_move_once_over_many_processes() -> None:
    name = namespace()
    async with bus(namespace=name) as one, bus(namespace=name) as two, bus(namespace=name) as three:
        consumers = [await each.subscribe(group()) for each in (one, two, three)]
        due = time.time() + 0.5
        await one.publish([message(n, deliver_at=due) for n in range(300)])
        came: list[str] = []

        async def work(consumer: Any) -> None:
            while batch := await consumer.receive(50):
                assert time.time() >= due
                came.extend(d.message.id for d in batch)
                await settle(consumer, batch)

        working = [asyncio.ensure_future(work(consumer)) for consumer in consumers]
        await until(lambda: len(came) >= 300)
        await asyncio.sleep(0.2)
        for consumer in consumers:
            consumer.stop()
        await asyncio.gather(*working)
        assert sorted(came) == sorted(f"m{n}" for n in range(300))


async def test_a_renamed_group_answers_to_both_names() -> None:
    async with bus() as open:
        await (await open.subscribe(group())).close()
        await open.rename("shop.bill", "shop.invoice")
        consumer = await open.subscribe(group(name="shop.invoice"))
        await open.publish([message(1, address="_group.shop.bill"), message(2, address="_group.shop.invoice")])
        assert sorted(d.message.id for d in await take(consumer, 2)) == ["m1", "m2"]
        new = await open.subscribe(group())
        await open.publish([message(3)])
        assert [d.message.id for d in await take(new, 1)] == ["m3"], "a new group with the old name is another"
        assert len(await open.groups()) == 2


async def test_peek_goes_page_by_page_through_equal_positions() -> None:
    async with bus() as open:
        client = raw()
        await open.publish([message(n, f"t.{n}") for n in range(4)])
        for n in range(4):
            client.xadd(open.key(f"t.{n}"), {"body": str(n)}, id="9999999999999-5")
        seen, after = [], 0
        while page := await open.peek("t.*", after=after, limit=3):
            seen += [stored.message.body for stored in page]
            after = page[-1].position
        assert len(seen) == 8


async def test_parked_is_told() -> None:
    async with bus() as open:
        consumer = await open.subscribe(group())
        await open.publish([message(1), message(2)])
        one, _ = await take(consumer, 2)
        await consumer.settle([Settlement(one, Retry(60.0, 1))])
        (info,) = await open.groups()
        assert (info.lag, info.in_flight, info.parked) == (0, 1, 1)
        await consumer.close()
        await open.drop("shop.bill")
        assert not raw().zcard(f"{open.bus}due")
