"""What the bus does, through its SPI, in one process."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tests.transports.consuming import nothing, settle, take, until
from tests.transports.sqlite.helpers import bodies, bus, group, message

from tidings.kernel.errors import BusError, BusFull, NoAnswerer, NotFound
from tidings.kernel.message import Message
from tidings.kernel.transport import Event, Inspectable, Manageable, Release, Retry, Settlement
from tidings.schedule import Ticking


async def test_a_group_gets_what_is_published_once(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        consumer, other = await b.subscribe(group()), await b.subscribe(group(name="shop.ship"))
        assert not await b.publish([message(n) for n in range(250)])
        got = await take(consumer, 250)
        assert bodies(got) == list(range(250))
        await settle(consumer, got)
        assert bodies(await take(other, 250)) == list(range(250))
        await nothing(consumer)


async def test_a_message_comes_back_as_it_was(tmp_path: Path) -> None:
    full = Message(
        "orders.e",
        body=b"\0\xff",
        id="i",
        key="ключ",
        time=12.5,
        type="t",
        source="s",
        content_type="x/y",
        headers=(("a", "ü"),),
        priority=3,
        expires_at=time.time() + 99,
        correlation_id="c",
        causation_id="d",
        address="_group.shop.bill",
    )
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group("else.>"))
        await b.publish([full])
        (got,) = await take(consumer, 1)
        assert got.message == full
        (stored,) = await b.peek("_group.>")
        assert stored.message == full


async def test_concurrent_publishes_are_committed_together(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        await asyncio.gather(*(b.publish([message(n)]) for n in range(500)))
        assert sorted(bodies(await take(consumer, 500))) == list(range(500))


async def test_nothing_is_lost_when_the_bus_is_closed_and_opened(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        await b.publish([message(n) for n in range(10)])
        await settle(consumer, (await take(consumer, 10))[:4])
        await consumer.close()
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        got = await take(consumer, 6)
        assert sorted(bodies(got)) == [4, 5, 6, 7, 8, 9]
        assert all(d.attempt == 1 and not d.suspect for d in got)


@pytest.mark.parametrize("limit", [1, 7])
async def test_retry_and_release_count_as_told(tmp_path: Path, limit: int) -> None:
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        await b.publish([message(n) for n in range(3)])
        first = await take(consumer, 3)
        actions = [Retry(0.0, 2, "why"), Release(), Retry(0.15, 1)]
        before = time.time()
        assert not await consumer.settle([Settlement(d, a) for d, a in zip(first, actions, strict=True)])
        again = await take(consumer, 3, limit)
        assert time.time() - before >= 0.14
        assert {int(d.message.body): d.failures for d in again} == {0: 2, 1: 0, 2: 1}
        await settle(consumer, again)
        (info,) = await b.groups()
        assert (info.lag, info.in_flight, info.parked) == (0, 0, 0)


async def test_a_settlement_is_accepted_once(tmp_path: Path) -> None:
    told: list[Event] = []
    async with bus(tmp_path, told) as b:
        consumer, out = await b.subscribe(group()), await b.subscribe(group("out.>", "shop.out"))
        await b.publish([message(n) for n in range(3)])
        got = await take(consumer, 3)
        again = [Settlement(got[0]), Settlement(got[0]), Settlement(got[1], outgoing=(message(9, "out.x"),))]
        failures = await consumer.settle(again)
        assert [(f.index, f.kind) for f in failures] == [(1, "fenced")]
        failures = await consumer.settle([Settlement(got[1], outgoing=(message(8, "out.x"),)), Settlement(got[2])])
        assert [(f.index, f.kind) for f in failures] == [(0, "fenced")]
        assert bodies(await take(out, 1)) == [9]
        await nothing(out)
    assert [e.kind for e in told] == ["fenced", "fenced"]


async def test_an_output_that_is_refused_settles_nothing(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        await b.publish([message(0), message(1)])
        got = await take(consumer, 2)
        large = Message("out.x", body=bytes(b.capabilities.max_payload + 1))
        failures = await consumer.settle([Settlement(got[0], outgoing=(large,)), Settlement(got[1])])
        assert [(f.index, f.kind) for f in failures] == [(0, "rejected")]
        await settle(consumer, got[:1])


async def test_priorities_delays_and_private_address(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        now = time.time()
        late = message(7, deliver_at=now + 0.3)
        await b.publish([message(1), late, message(2, priority=9), message(3, priority=4)])
        assert bodies(await take(consumer, 3)) == [2, 3, 1]
        (got,) = await take(consumer, 1)
        assert got.message.deliver_at == late.deliver_at
        assert 0.0 <= time.time() - now - 0.3 < 0.2
        await b.publish([message(5, address="_group.shop.other"), message(6, address="_group.shop.bill")])
        assert bodies(await take(consumer, 1)) == [6]


async def test_start_positions(tmp_path: Path) -> None:
    async with bus(tmp_path, segment_rows=7) as b:
        await b.publish([message(n) for n in range(20)])
        await asyncio.sleep(0.02)
        middle = time.time()
        await b.publish([message(n) for n in range(20, 40)])
        await b.publish([message(-1, address="_group.g.new")])
        new = await b.subscribe(group(name="g.new"))
        first = await b.subscribe(group(name="g.first", start=0.0))
        since = await b.subscribe(group(name="g.since", start=middle))
        await b.publish([message(99)])
        assert bodies(await take(first, 41)) == [*range(40), 99]
        assert bodies(await take(since, 21)) == [*range(20, 40), 99]
        assert sorted(bodies(await take(new, 2))) == [-1, 99]


async def test_a_changed_pattern_neither_repeats_nor_loses(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group("a.*"))
        await b.publish([message(1, "a.x"), message(2, "b.x")])
        await consumer.close()
        consumer = await b.subscribe(group("b.*"))
        await b.publish([message(3, "a.x"), message(4, "b.x")])
        assert bodies(await take(consumer, 2)) == [1, 4]


async def test_patterns_change_back_and_forth(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        seen: list[int] = []
        for n, pattern in enumerate(["a.*", "b.*", "a.*", "*.x"]):
            consumer = await b.subscribe(group(pattern))
            await b.publish([message(10 * n + 1, "a.x"), message(10 * n + 2, "b.x")])
            expected = 2 if pattern == "*.x" else 1
            got = await take(consumer, expected)
            await settle(consumer, got)
            seen += bodies(got)
            await consumer.close()
        assert seen == [1, 12, 21, 31, 32]


async def test_new_topics_under_a_wildcard(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        all_, some = await b.subscribe(group(">", "g.all")), await b.subscribe(group("new.*.x", "g.some"))
        for n in range(30):
            await b.publish([message(n, f"new.t{n}.x"), message(n, f"new.t{n}"), message(n, "_dead.g.other")])
        assert len(await take(all_, 60)) == 60
        assert bodies(await take(some, 30)) == list(range(30))
        await nothing(all_)


async def test_rare_topics_in_a_large_log(tmp_path: Path) -> None:
    """Found by index once rows prove too many; and by rows again when they are ours."""
    async with bus(tmp_path, segment_rows=3000) as b:
        rare = await b.subscribe(group("rare.*", "g.rare"))
        two = await b.subscribe(group("*.x", "g.two"))
        for n in range(20):
            await b.publish([message(0, "noise.y") for _ in range(999)] + [message(n, "rare.x")])
        await b.publish([message(n, "rare.x") for n in range(20, 2000)])
        assert bodies(await take(rare, 2000)) == list(range(2000))
        assert bodies(await take(two, 2000)) == list(range(2000))


async def test_live_consumers_get_copies_and_tell_what_they_drop(tmp_path: Path) -> None:
    told: list[Event] = []
    async with bus(tmp_path, told) as b:
        await b.publish([message(0)])
        live = await b.subscribe(group(name=None))  # type: ignore[arg-type]
        await b.publish([message(n) for n in range(1, 4)])
        got = await take(live, 3)
        assert bodies(got) == [1, 2, 3]
        assert not await live.settle(
            [Settlement(got[0], outgoing=(message(5, "out.x"),)), Settlement(got[1], Release())]
        )
        assert [s.message.topic for s in await b.peek("out.>")] == ["out.x"]
        for _ in range(3):
            await b.publish([message(n) for n in range(1000)])
        await until(lambda: sum(e.count for e in told if e.kind == "dropped") == 3000 - 1024)
        assert bodies(await take(live, 1024, 5000)) == list(range(976, 1000)) + list(range(1000))
        waiting = asyncio.ensure_future(live.receive(1))
        await asyncio.sleep(0)
        await live.close()
        assert list(await waiting) == []


async def test_requests_need_an_answerer(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        ask = Message("prices", address="_request.prices", body=b"1", reply_to="_reply.me")
        (failure,) = await b.publish([ask])
        assert isinstance(failure.error, NoAnswerer)
        assert [f.kind for f in await b.publish([message(1), ask])] == ["rejected", "rejected"]
        assert await b.peek(">") == []
        consumer = await b.subscribe(group("_request.prices", "prices"))
        assert not await b.publish([ask])
        (got,) = await take(consumer, 1)
        assert (got.message.topic, got.message.reply_to) == ("prices", "_reply.me")
        await consumer.close()
        assert await b.publish([ask])


async def test_many_dead_letters_reach_a_group_that_reads_them(tmp_path: Path) -> None:
    """They stand in a table of their own, and are read together with what else the pattern matches."""
    async with bus(tmp_path) as b:
        letters = await b.subscribe(group("_dead.>", "ops.letters", start=0.0))
        sent = [message(n, address="_dead.shop.bill") for n in range(300)]
        for at in range(0, 300, 60):
            await b.publish([*sent[at : at + 60], *(message(n, "orders.other") for n in range(40))])
        got = await take(letters, 300)
        assert bodies(got) == list(range(300))
        await settle(letters, got)


async def test_dead_letters_stay_and_can_be_read(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        await b.publish([message(1), message(2)])
        got = await take(consumer, 2)
        letter = message(1, address="_dead.shop.bill", headers=(("why", "bad"),))
        assert not await consumer.settle([Settlement(got[0], outgoing=(letter,)), Settlement(got[1])])
        (stored,) = await b.peek("_dead.shop.bill")
        assert stored.message == letter
        assert [g.dead for g in await b.groups()] == [1]
        reader = await b.subscribe(group("_dead.shop.bill", "ops", start=0.0))
        assert bodies(await take(reader, 1)) == [1]
        await b.publish([message(3, address="_dead.shop.bill")])
        assert bodies(await take(reader, 1)) == [3]


async def test_looking_inside(tmp_path: Path) -> None:
    async with bus(tmp_path, segment_rows=4) as b:
        assert isinstance(b, Inspectable)
        assert isinstance(b, Manageable)
        assert isinstance(b, Ticking)
        consumer = await b.subscribe(group())
        await b.publish([message(n) for n in range(9)])
        await b.publish([message(n, "other.x") for n in range(3)])
        got = await take(consumer, 5)
        await consumer.settle([Settlement(got[0]), Settlement(got[1], Retry(60, 1))])
        (info,) = await b.groups("shop.*")
        assert (info.name, info.app, info.pattern, info.members) == ("shop.bill", "shop", "orders.>", 1)
        assert (info.lag, info.in_flight, info.parked, info.dead) == (4, 3, 1, 0)
        assert info.oldest is not None
        assert [(t.name, t.messages) for t in await b.topics()] == [("orders.placed", 9), ("other.x", 3)]
        page = await b.peek("orders.>", limit=6)
        rest = await b.peek("orders.>", after=page[-1].position)
        assert [int(s.message.body) for s in [*page, *rest]] == list(range(9))
        assert bodies(await take(consumer, 4)) == [5, 6, 7, 8]


async def test_mending_groups(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        await b.publish([message(n) for n in range(5)])
        got = await take(consumer, 5)
        await consumer.settle([Settlement(got[0], Retry(60, 1))])
        for step in (b.seek("shop.bill", 0.0), b.rename("shop.bill", "shop.b"), b.drop("shop.bill")):
            with pytest.raises(BusError):
                await step
        with pytest.raises(NotFound):
            await b.drop("shop.bil")
        await consumer.close()
        await b.seek("shop.bill", 0.0)
        await b.rename("shop.bill", "shop.invoice")
        consumer = await b.subscribe(group(name="shop.invoice"))
        assert bodies(await take(consumer, 5)) == [0, 1, 2, 3, 4]
        await b.publish([message(7, address="_group.shop.bill"), message(8, address="_group.shop.invoice")])
        assert bodies(await take(consumer, 2)) == [7, 8]
        await consumer.close()
        await b.drop("shop.invoice")
        assert await b.groups() == []


async def test_a_tick_is_won_once(tmp_path: Path) -> None:
    async with bus(tmp_path) as b, bus(tmp_path) as c:
        won = await asyncio.gather(*(x.tick("t", 100.0) for x in (b, c, b, c)))
        assert sorted(won) == [False, False, False, True]
        assert not await b.tick("t", 99.0)
        assert await c.tick("t", 101.0)


async def test_two_buses_on_one_file_share_the_work_and_wake_each_other(tmp_path: Path) -> None:
    async with bus(tmp_path) as b, bus(tmp_path) as c, bus(tmp_path) as publisher:
        one, two = await b.subscribe(group()), await c.subscribe(group())
        tasks = [asyncio.ensure_future(take(x, 50, 1)) for x in (one, two)]
        for n in range(100):
            await publisher.publish([message(n)])
        got = [d for found in await asyncio.gather(*tasks) for d in found]
        assert sorted(bodies(got)) == list(range(100))


async def test_what_is_not_extended_for_a_lease_comes_back_as_suspect(tmp_path: Path) -> None:
    told: list[Event] = []
    async with bus(tmp_path, told, lease="300ms") as b:
        consumer = await b.subscribe(group())
        await b.publish([message(n) for n in range(3)])
        held = await take(consumer, 3)
        waiting = asyncio.ensure_future(take(consumer, 1))
        while not waiting.done():
            await consumer.extend(held[:2])
            await asyncio.sleep(0.05)
        (lost,) = await waiting
        assert bodies([lost]) == [2]
        assert lost.suspect
        assert not held[2].session.alive
        assert held[0].session.alive
        assert [f.kind for f in await consumer.settle([Settlement(held[2])])] == ["fenced"]
        await settle(consumer, held[:2])
        assert await consumer.mark(lost)
        await settle(consumer, [lost])
        assert not await consumer.mark(lost)
        assert "recovered" in {e.kind for e in told}


async def test_stop_ends_receive_and_settling_goes_on(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        await b.publish([message(1)])
        got = await take(consumer, 1)
        waiting = asyncio.ensure_future(consumer.receive(1))
        await asyncio.sleep(0.01)
        consumer.stop()
        assert list(await waiting) == []
        await settle(consumer, got)
        await consumer.close()
        await consumer.close()
        assert [g.members for g in await b.groups()] == [0]


async def test_ordered_groups_hold_a_key(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group(ordered=True))
        await b.publish([message(n, key="ab"[n % 2]) for n in range(6)])
        got = await take(consumer, 6)
        a, rest = [d for d in got if d.message.key == "a"], [d for d in got if d.message.key == "b"]
        held = [Settlement(a[0], Retry(0.1, 1)), *(Settlement(d, Release()) for d in a[1:])]
        assert not await consumer.settle([*held, *(Settlement(d) for d in rest)])
        await b.publish([message(6, key="a"), message(7, key="b")])
        order = []
        for _ in range(5):
            (delivery,) = await take(consumer, 1, 1)
            order.append(int(delivery.message.body))
            await settle(consumer, [delivery])
        assert order == [7, 0, 2, 4, 6]


async def test_ordered_groups_share_slots(tmp_path: Path) -> None:
    async with bus(tmp_path) as b, bus(tmp_path) as c:
        one, two = await b.subscribe(group(ordered=True)), await c.subscribe(group(ordered=True))
        seen: dict[str, list[int]] = {}
        keys: list[set[str]] = [set(), set()]

        async def work(index: int, consumer: object) -> None:
            while got := await consumer.receive(10):  # type: ignore[attr-defined]
                for d in got:
                    seen.setdefault(d.message.key, []).append(int(d.message.body))
                    keys[index].add(d.message.key)
                await settle(consumer, got)

        tasks = [asyncio.ensure_future(work(i, x)) for i, x in enumerate((one, two))]
        for n in range(40):
            await b.publish([message(n, key=f"k{k}") for k in range(20)])
        await until(lambda: sum(map(len, seen.values())) == 800)
        assert all(found == list(range(40)) for found in seen.values())
        assert all(keys)
        one.stop()
        two.stop()
        await asyncio.gather(*tasks)


async def test_slots_of_one_who_leaves_are_taken_by_one_who_waits(tmp_path: Path) -> None:
    async with bus(tmp_path) as b, bus(tmp_path) as c:
        one, two = await b.subscribe(group(ordered=True)), await c.subscribe(group(ordered=True))
        await b.publish([message(n, key=f"k{n}") for n in range(200)])
        held = await take(one, 1, 1)
        got: list[str] = []

        async def collect() -> None:
            while batch := await two.receive(50):
                got.extend(d.message.key for d in batch)
                await settle(two, batch)

        collecting = asyncio.ensure_future(collect())
        await until(lambda: two.future is not None and got)  # its own slots are done: it waits
        assert held[0].message.key not in got
        assert len(got) < 199
        await settle(one, held)
        await one.close()
        await until(lambda: len(got) == 199)
        assert {*got, held[0].message.key} == {f"k{n}" for n in range(200)}
        two.stop()
        await collecting


async def test_a_pattern_left_before_anything_was_published_is_left(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        await (await b.subscribe(group("*.placed"))).close()
        consumer = await b.subscribe(group("returns.*"))
        await b.publish([message(1, "orders.placed"), message(2, "returns.late")])
        assert bodies(await take(consumer, 1)) == [2]
        await nothing(consumer)


async def test_a_flood_from_elsewhere_wakes_everybody(tmp_path: Path) -> None:
    async with bus(tmp_path) as b, bus(tmp_path) as c:
        consumer = await b.subscribe(group())
        waiting = asyncio.ensure_future(take(consumer, 25_000, 5000))
        await c.publish([message(n) for n in range(25_000)])
        assert bodies(await waiting) == list(range(25_000))


async def test_a_group_may_become_ordered(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        for n, ordered in enumerate([False, True, False]):
            consumer = await b.subscribe(group(ordered=ordered))
            await b.publish([message(n, key="k")])
            got = await take(consumer, 1)
            assert bodies(got) == [n]
            await settle(consumer, got)
            await consumer.close()


async def test_a_full_bus_refuses_and_recovers(tmp_path: Path) -> None:
    async with bus(tmp_path, max_size="1MiB") as b:
        consumer = await b.subscribe(group())
        block = [Message("orders.x", body=bytes(10_000)) for _ in range(10)]

        async def flood() -> None:
            for _ in range(30):
                await b.publish(block)

        with pytest.raises(BusFull):
            await flood()
        count = (await b.groups())[0].lag
        assert 80 <= count <= 110
        got = await take(consumer, count)
        letter = message(1, address="_dead.shop.bill")
        assert not await consumer.settle([Settlement(d, outgoing=(letter,)) for d in got])
        await b.publish(block)
        assert len(await take(consumer, 10)) == 10
