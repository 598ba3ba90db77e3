"""A seek brings everything back once: also what was to be tried again, or is in the hands of one who is gone."""

from __future__ import annotations

import time
from typing import Any

from tests.transports.consuming import nothing, settle, take
from tests.transports.redis.helpers import bus, group, message, raw

from tidings.kernel.transport import Delivery, Release, Retry, Settlement
from tidings.transports.redis.transport import RedisTransport


async def came(open: RedisTransport, count: int) -> list[tuple[str, int]]:
    """What a new member gets: ids and failures; nothing more than ``count``."""
    consumer = await open.subscribe(group())
    found = await take(consumer, count)
    await settle(consumer, found)
    await nothing(consumer)
    await consumer.close()
    return sorted((each.message.id, each.failures) for each in found)


async def parked(open: RedisTransport) -> int:
    (info,) = await open.groups("shop.bill")
    return info.parked


def once(count: int) -> list[tuple[str, int]]:
    return [(f"m{n}", 0) for n in range(count)]


async def test_what_was_to_be_tried_again_comes_once() -> None:
    async with bus() as open:
        consumer = await open.subscribe(group())
        await open.publish([message(n) for n in range(5)])
        later, soon, given, again, done = await take(consumer, 5)
        actions: dict[Any, Retry | Release] = {later.token: Retry(60.0, 1), soon.token: Retry(0.0, 1)}
        actions |= {given.token: Release(60.0), again.token: Retry(0.0, 1)}
        assert not await consumer.settle(
            [Settlement(each, actions[each.token]) for each in (later, soon, given, again)]
        )
        await settle(consumer, [done])
        copies = {each.message.id: each for each in await take(consumer, 2)}
        assert not await consumer.settle([Settlement(copies["m3"], Retry(60.0, 2))])
        await consumer.close()  # which gives m1 back: a copy of a copy
        assert await parked(open) == 3
        await open.seek("shop.bill", 0.0)
        assert await parked(open) == 0
        assert await came(open, 5) == once(5)


async def test_what_a_seek_does_not_bring_back_is_still_tried_again() -> None:
    async with bus() as open:
        consumer = await open.subscribe(group())
        await open.publish([message(n) for n in range(2)])
        gone, old = await take(consumer, 2)
        assert not await consumer.settle([Settlement(each, Retry(60.0, 1)) for each in (gone, old)])
        await consumer.close()
        raw().xdel(*gone.token)
        await open.seek("shop.bill", time.time() + 60.0)
        assert await parked(open) == 2
        await open.seek("shop.bill", 0.0)
        assert await parked(open) == 1
        assert await came(open, 1) == [("m1", 0)]


async def test_what_the_dead_hold_comes_once_and_is_theirs_no_more() -> None:
    async with bus() as open, bus(namespace=open.options.namespace) as other:
        dead = await other.subscribe(group())
        await open.publish([message(n) for n in range(3)])
        first, *rest = await take(dead, 3)
        assert not await dead.settle([Settlement(first, Retry(0.0, 1))])
        (copy,) = await take(dead, 1)
        await dead.leave()  # as if its process had died
        await open.seek("shop.bill", 0.0)
        consumer = await open.subscribe(group())
        found: list[Delivery] = await take(consumer, 3)
        assert sorted(each.message.id for each in found) == ["m0", "m1", "m2"]
        late = await dead.settle([Settlement(each) for each in (copy, *rest)])
        assert [failure.kind for failure in late] == ["fenced"] * 3
        assert raw().xpending(open.key("orders.placed"), "shop.bill")["pending"] == 3
        await settle(consumer, found)
        await nothing(consumer)


async def test_a_seek_forgets_whose_start_was_noted() -> None:
    async with bus(lease=0.3) as open, bus(namespace=open.options.namespace, lease=0.3) as other:
        dead = await other.subscribe(group())
        await open.publish([message()])
        (held,) = await take(dead, 1)
        assert await dead.mark(held)
        await dead.leave()
        await open.seek("shop.bill", 0.0)
        dead = await other.subscribe(group())
        await take(dead, 1)
        await dead.leave()
        consumer = await open.subscribe(group())
        (last,) = await take(consumer, 1)
        assert (last.suspect, last.crashes) == (True, 0), "a crash of before the seek is counted"


async def test_what_the_dead_hold_of_a_group_that_was_dropped_is_theirs_no_more() -> None:
    async with bus() as open, bus(namespace=open.options.namespace) as other:
        dead = await other.subscribe(group())
        await open.publish([message()])
        held = await take(dead, 1)
        await dead.leave()
        await open.drop("shop.bill")
        consumer = await open.subscribe(group(start=0.0))
        found = await take(consumer, 1)
        assert [failure.kind for failure in await dead.settle([Settlement(each) for each in held])] == ["fenced"]
        assert raw().xpending(open.key("orders.placed"), "shop.bill")["pending"] == 1
        await settle(consumer, found)
