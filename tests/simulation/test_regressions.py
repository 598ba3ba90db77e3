"""Bugs that the simulation found, each as the shortest story that shows it. Their seeds moved when the generator grew;
as planted bugs (``planted.py``) they are looked for in every run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.simulation.__main__ import fault
from tests.simulation.schedule import Schedule
from tests.transports.consuming import take, until
from tests.transports.sqlite.helpers import Bench, bodies, bus, group, message

from tidings.kernel.clock import current_clock
from tidings.kernel.handler import Handler, Outgoing
from tidings.kernel.message import Message
from tidings.kernel.outcome import Backoff
from tidings.kernel.settling import Policy
from tidings.kernel.transport import Delivery, Failure, Session, Settlement
from tidings.kernel.worker import Work, Worker
from tidings.testing.clock import run_virtual
from tidings.transports._records import OVERHEAD, freeze


class Story(Bench):
    """One member, and a group that reads everything."""

    def __init__(self, path: Path, *, ordered: bool = False, **more: Any) -> None:
        super().__init__(path / "bus.db", lease=4.0, **more)
        self.me = self.member()
        self.id = self.do(self.me, self.me.register, group(">", ordered=ordered))

    def publish(self, *messages: Message[Any]) -> None:
        self.do(self.me, self.me.publish, (*freeze(messages, self.now), []))

    def claim(self) -> list[Delivery]:
        taken = self.do(self.me, self.me.claim, self.id, 100)
        fresh = zip(taken.found.numbers, taken.found.messages, strict=True)
        every = [*taken.takes, *((taken.claim, *pair) for pair in fresh)]
        return [Delivery(message, held, seq, held.failures, held.crashes, held.suspect) for held, seq, message in every]

    def settle(self, *settlements: Settlement) -> list[Failure]:
        return list(self.do(self.me, self.me.settle, settlements, {}))

    def weighed(self) -> tuple[int, int]:
        """The size the file remembers, and the size it has."""
        tables = ["delayed", *(f"log_{segment.n}" for segment in self.me.log.segments)]
        sizes = (self.con.execute(f"SELECT sum(length(record) + {OVERHEAD}) FROM {table}").get for table in tables)
        return self.con.execute("SELECT bytes FROM meta").get, sum(size or 0 for size in sizes)


def messages(count: int, **more: Any) -> list[Message[Any]]:
    return [Message("orders.x", body=b"%d" % n, id=f"m{n}", **more) for n in range(count)]


def test_a_segment_does_not_count_what_begins_the_next(tmp_path: Path) -> None:
    story = Story(tmp_path, segment_rows=10)
    for _ in range(3):
        story.publish(*messages(10))
    story.settle(*map(Settlement, story.claim()))
    story.now += 10_000.0
    story.do(story.me, story.me.beat, story.now)
    for _ in range(2):
        story.publish(*messages(3))
        story.do(story.me, story.me.retain)
    told, size = story.weighed()
    assert told == size
    assert size


def test_what_is_delayed_is_still_counted_when_segments_are_dropped(tmp_path: Path) -> None:
    story = Story(tmp_path, segment_rows=10)
    story.publish(*messages(5, deliver_at=story.now + 50_000.0))
    story.publish(*messages(10))
    story.settle(*map(Settlement, story.claim()))
    story.now += 10_000.0
    story.do(story.me, story.me.beat, story.now)
    for _ in range(2):
        story.do(story.me, story.me.retain)
    told, size = story.weighed()
    assert told == size
    assert size
    story.now += 50_000.0
    story.do(story.me, story.me.log.move_due)
    assert story.weighed() == (size, size)


def test_a_late_settlement_of_a_lost_take_leaves_the_take_that_followed(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.publish(*messages(1))
    story.claim()
    before = []
    for _ in range(2):  # it is not extended, goes back, and is taken again by the same process
        story.now += 5.0
        story.do(story.me, story.me.beat, story.now, sweep=True)
        before += story.claim()
    first, second = before
    assert [failure.kind for failure in story.settle(Settlement(first))] == ["fenced"]
    assert story.do(story.me, story.me.mark, second.session, second.token)
    assert story.settle(Settlement(second)) == []
    assert story.con.execute("SELECT count(*) FROM parked").get == 0


@pytest.mark.parametrize("ordered", [False, True])
def test_a_group_that_has_read_nothing_loses_nothing_when_its_order_changes(tmp_path: Path, ordered: bool) -> None:
    story = Story(tmp_path, ordered=ordered)
    story.publish(*messages(3))
    story.do(story.me, story.me.register, group(">", ordered=not ordered))
    assert [delivery.token for delivery in story.claim()] == [1, 2, 3]


def test_what_follows_a_swept_message_of_its_key_goes_back_with_it(tmp_path: Path) -> None:
    story = Story(tmp_path, ordered=True)
    story.publish(*messages(2, key="k"))
    story.publish(Message("orders.x", body=b"", id="other", key="another"))
    first, second, other = story.claim()
    story.now += 5.0
    for delivery in (second, other):
        delivery.session.seen[delivery.token] = story.now  # type: ignore[attr-defined]
    story.do(story.me, story.me.beat, story.now, sweep=True)
    assert [failure.kind for failure in story.settle(Settlement(second))] == ["fenced"]
    assert story.settle(Settlement(other)) == []
    assert [(again.token, again.suspect) for again in story.claim()] == [(first.token, True)]


@pytest.mark.parametrize(("kind", "seed"), [("hung", 0), ("hung", 5), ("zombie", 43)])
def test_a_schedule_that_broke_once(kind: str, seed: int) -> None:
    """A handler that ran long was told that its message was lost, when others of its claim went back."""
    assert fault(Schedule(seed, kind)) == ""


# -- consumers that were not woken -----------------------------------------------------------------------------------


async def received(consumer: Any, story: Any) -> list[Delivery]:
    """What an idle consumer receives when ``story`` is run."""
    task = asyncio.ensure_future(take(consumer, 1))
    await until(lambda: consumer.future is not None and not consumer.more)
    await story
    return await task


async def test_a_renamed_group_is_woken_by_its_old_name(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        await (await b.subscribe(group())).close()
        await b.rename("shop.bill", "shop.pay")
        consumer = await b.subscribe(group(name="shop.pay"))
        again: Message[Any] = Message("orders.x", body=b"", id="again", address="_group.shop.bill")
        (found,) = await received(consumer, b.publish([again]))
        assert found.message.id == "again"


async def test_a_member_is_woken_by_what_a_later_deployment_reads(tmp_path: Path) -> None:
    async with bus(tmp_path) as old, bus(tmp_path) as new:
        consumer: Any = await old.subscribe(group("orders.a"))
        task = asyncio.ensure_future(take(consumer, 1))
        await until(lambda: consumer.future is not None and not consumer.more)
        await (await new.subscribe(group("orders.b"))).close()
        await until(lambda: "orders.b" in consumer.patterns)
        await new.publish([message(1, "orders.b")])
        assert bodies(await task) == [1]


# -- workers that never woke -----------------------------------------------------------------------------------------


class Hands:
    """A consumer that hands out what it is given, one by one, and takes every settlement."""

    lease = float("inf")

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self.stopped = asyncio.Event()
        self.marks: list[bool] = []
        self.settled: list[str] = []

    async def receive(self, limit: int) -> Sequence[Delivery]:
        delivery = asyncio.ensure_future(self.queue.get())
        stopped = asyncio.ensure_future(self.stopped.wait())
        await asyncio.wait({delivery, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if delivery.done():
            return [delivery.result()]
        delivery.cancel()
        return ()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        self.settled += [settlement.delivery.message.id for settlement in settlements]
        return ()

    async def extend(self, deliveries: Sequence[Delivery]) -> None: ...

    async def mark(self, delivery: Delivery) -> bool:
        await asyncio.sleep(0.01)
        return self.marks.pop(0) if self.marks else True

    def stop(self) -> None:
        self.stopped.set()

    async def close(self) -> None: ...


def delivery(id: str, *, suspect: bool = False) -> Delivery:
    return Delivery(Message("orders.x", body=b"", id=id, key="k"), Session(), suspect=suspect)


async def worked(hands: Hands, handle: Any, story: Any) -> None:
    policy = Policy(group="shop.bill", backoff=Backoff(first=0.5, jitter=0.0))
    worker = Worker(hands, Handler(one=handle), Work(policy=policy, concurrency=1), current_clock(), set(), None)
    running = asyncio.get_running_loop().create_task(worker.run())
    try:
        await story()
    finally:
        worker.stop()
        await running


def test_a_worker_goes_on_after_a_suspect_that_was_no_longer_its_own() -> None:
    hands, ran = Hands(), list[str]()

    async def handle(delivery: Delivery) -> Outgoing:
        ran.append(delivery.message.id)
        return ()

    async def story() -> None:
        hands.marks = [False]
        hands.queue.put_nowait(delivery("lost", suspect=True))
        hands.queue.put_nowait(delivery("next"))
        await asyncio.sleep(60.0)
        assert ran == ["next"]

    run_virtual(worked(hands, handle, story))


def test_a_suspect_behind_a_lost_delivery_of_its_key_is_started() -> None:
    hands, ran = Hands(), list[tuple[str, bool]]()

    async def handle(delivery: Delivery) -> Outgoing:
        ran.append((delivery.message.id, delivery.suspect))
        if not delivery.suspect:
            raise ValueError("again, in place")
        return ()

    async def story() -> None:
        lost = delivery("a")
        hands.queue.put_nowait(lost)
        await asyncio.sleep(0.1)  # it waits in place now
        lost.session.alive = False
        hands.queue.put_nowait(delivery("a", suspect=True))
        await asyncio.sleep(60.0)
        assert ran == [("a", False), ("a", True)]
        assert hands.settled == ["a"]

    run_virtual(worked(hands, handle, story))
