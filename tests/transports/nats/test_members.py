"""Members that stop, groups that are made anew: what the server and its client make hard to see."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.transports.consuming import nothing, settle, take, until
from tests.transports.nats.helpers import bus, group, in_flight, message, raw

from tidings.kernel.errors import BusError
from tidings.kernel.topics import DEAD
from tidings.kernel.transport import Release, Retry
from tidings.transports.nats.connection import Ear
from tidings.transports.nats.frames import Frame

NOISE = 200_000 * Frame("nobody", b"", b"").to("")  # what the server has to read for a while


async def test_a_flush_is_answered_when_all_that_was_written_before_is_read() -> None:
    """By itself the client writes its PING past what waits to be written."""
    async with bus() as b, raw() as other:

        async def hear(msg: Any) -> None:
            await msg.respond(b"here")

        await b.write(NOISE)
        await b.listen(Ear(f"{b.prefix}there", "", hear))
        await b.client.flush()
        assert (await other.request(f"{b.prefix}there", timeout=5)).data == b"here"


async def test_what_comes_to_a_member_that_is_stopping_comes_back_at_once() -> None:
    """Answered before the server had read that we stop, the flush let us go; what was delivered then was nobody's.

    The member has asked for what goes back to its group; what it gives back itself is the answer.
    """
    async with bus() as b:
        old = await b.subscribe(group())
        assert not await b.publish([message(n) for n in range(40)])
        held = await take(old, 40)
        receiving = asyncio.ensure_future(old.receive(10))
        while not (await b.ask("consumer_info", b.name, "shop~bill@again")).num_waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        old.stop()
        tasks = [b.run(b.write(NOISE)), b.run(settle(old, held, action=Release())), b.run(b.write(NOISE))]
        await asyncio.gather(*tasks)
        assert list(await receiving) == []
        await old.close()
        new = await b.subscribe(group())
        came = await take(new, 40)
        assert not any(delivery.suspect for delivery in came)
        await settle(new, came)
        assert await in_flight(b, "shop~bill@again") == 0


async def test_a_group_that_is_made_anew_settles_the_same_messages_again() -> None:
    """The server remembers the ids of the old group's copies: under the same ones the new group's would be lost."""
    async with bus() as b:
        assert not await b.publish([message(1, id="mine")])
        for _ in range(2):
            consumer = await b.subscribe(group(start=0.0))
            await settle(consumer, await take(consumer, 1), action=Retry(0.0, 1))
            (again,) = await take(consumer, 1)
            assert (again.message.id, again.failures) == ("mine", 1)
            letter = message(1, id="mine", address=DEAD + "shop.bill")
            await settle(consumer, [again], outgoing=(letter,))
            await consumer.close()
            await b.drop("shop.bill")
        assert len(await b.peek(DEAD + "shop.bill")) == 2


async def test_a_group_that_is_made_anew_has_no_crashes() -> None:
    async with bus(lease="1s") as b:
        assert not await b.publish([message(1)])
        for _ in range(2):
            dies, lives = await b.subscribe(group(start=0.0)), await b.subscribe(group(start=0.0))
            (first,) = await take(dies, 1)
            (suspect,) = await take(lives, 1)
            assert (suspect.suspect, suspect.crashes) == (True, 0)
            assert await lives.mark(suspect)
            lives.stop()  # and never settles it
            (crashed,) = await take(dies, 1)
            assert crashed.crashes == 1, "the mark was not stored"
            b.consumers.clear()  # as if both had died: what they hold is not given back
            await b.drop("shop.bill")
        assert not first.session.alive


async def test_a_change_is_not_forgotten_when_it_cannot_be_looked_up() -> None:
    async with bus() as b:
        old: Any = await b.subscribe(group("orders.>"))
        new = await b.subscribe(group("bills.>"))
        await until(lambda: old.changed)
        info = await b.ask("consumer_info", b.name, "shop~bill@again")
        await b.ask("delete_consumer", b.name, "shop~bill@again")
        with pytest.raises(BusError, match="dropped"):
            await old.receive(1)
        await b.ask("add_consumer", b.name, info.config)
        assert not await b.publish([message(1, "bills.sent")])
        assert [delivery.message.topic for delivery in await take(old, 1)] == ["bills.sent"]
        await nothing(new)
