"""Suspects, whose last holder died: marked, one at a time per process, and counted when they kill again."""

from __future__ import annotations

import asyncio

from tests.kernel.rig import FAST, GROUP, message, stage, until, virtual

from tidings import Backoff, Delivery
from tidings.kernel.recovery import PERMIT
from tidings.kernel.transport import ACK, Release, Subscription
from tidings.transports.memory import Memory, MemoryTransport


async def victim(name: str, *ids: str, marked: tuple[str, ...] = ()) -> MemoryTransport:
    """A member that received these and died; the store stays, held by what is returned."""
    keeper, dead = Memory(name=name).transport(), Memory(name=name).transport()
    for transport in (keeper, dead):
        await transport.open(lambda event: None)
    consumer = await dead.subscribe(Subscription(app="shop", pattern="orders.>", group=GROUP))
    assert not await keeper.publish([message(id, id[0] if id[0] != "n" else None) for id in ids])
    for delivery in await consumer.receive(100):
        if delivery.message.id in marked:
            await consumer.mark(delivery)
    dead.abandon()
    return keeper


@virtual
async def test_suspects_run_one_at_a_time_and_the_rest_as_ever() -> None:
    keeper = await victim("one-by-one", "n1", "n2", "n3")
    now, most, together = set[str](), 0, 0

    async def handle(delivery: Delivery) -> None:
        nonlocal most, together
        now.add(delivery.message.id)
        most = max(most, sum(id.startswith("n") for id in now))
        together = max(together, len(now))
        await asyncio.sleep(0.5)
        now.discard(delivery.message.id)

    async with stage(handle, name="one-by-one") as s:
        await s.publish(*(message(f"fresh{n}") for n in range(5)))
        await s.settled(8)
        assert most == 1
        assert together > 2
        assert s.worker.stats.handled == 8
    await keeper.close()


@virtual
async def test_over_all_groups_of_a_process() -> None:
    keepers = [await victim(name, "n1", "n2") for name in ("bus-one", "bus-two")]
    now = most = 0

    async def handle(delivery: Delivery) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.5)
        now -= 1

    async with stage(handle, name="bus-one") as one, stage(handle, name="bus-two") as two:
        await one.settled(2)
        await two.settled(2)
        assert most == 1
    for keeper in keepers:
        await keeper.close()


@virtual
async def test_a_paused_group_does_not_hold_up_the_others() -> None:
    keepers = [await victim(name, "n1") for name in ("paused", "running")]

    async def handle(delivery: Delivery) -> None: ...

    async with stage(handle, name="paused") as paused:
        paused.worker.pause()
        await asyncio.sleep(1)
        async with stage(handle, name="running") as running:
            await running.settled(1, within=60)
        paused.worker.pause(False)
        await paused.settled(1)
    for keeper in keepers:
        await keeper.close()


@virtual
async def test_pausing_while_suspects_wait_does_not_hold_up_the_others() -> None:
    keepers = [await victim(name, "n1", "n2", "n3") for name in ("paused-late", "running-on")]

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(1)

    async with stage(handle, name="paused-late") as paused:
        await until(lambda: len(paused.worker.slots) > 0 and paused.worker.settling.suspect is not None)
        paused.worker.pause()
        async with stage(handle, name="running-on") as running:
            await running.settled(3, within=60)
        paused.worker.pause(False)
        await paused.settled(3)
    for keeper in keepers:
        await keeper.close()


@virtual
async def test_a_suspect_whose_session_ends_before_it_starts_gives_the_permit_back() -> None:
    keepers = [await victim(name, "n1") for name in ("lost", "next")]
    gate = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        if delivery.message.id == "first":
            await gate.wait()

    async with stage(handle, name="lost", concurrency=1) as lost:
        lost.worker.prefetch = 8
        with PERMIT:  # somebody else's suspect runs
            await lost.publish(message("first"))
            await until(lambda: any(slot.since for slot in lost.worker.slots))
        await until(lambda: lost.worker.settling.suspect is not None)
        assert [held.message.id for held in lost.worker.lanes] == ["n1"]
        for held in lost.worker.lanes:
            held.session.alive = False
        gate.set()
        await until(lambda: lost.worker.stats.fenced >= 1)
        async with stage(handle, name="next") as other:
            await other.settled(1, within=60)
    for keeper in keepers:
        await keeper.close()


@virtual
async def test_a_suspect_is_kept_while_it_is_marked_however_long_that_takes() -> None:
    """Kafka commits a mark, which waits while its group shares out its partitions anew: for longer than a lease."""
    keeper = await victim("slow-mark", "n1")
    runs: list[str] = []

    async def handle(delivery: Delivery) -> None:
        runs.append(delivery.message.id)

    async with stage(handle, name="slow-mark") as s:
        s.tap.mark_takes = 3 * s.tap.lease
        await s.settled(1)
        assert (s.events["recovered"], s.worker.stats.fenced, runs) == (0, 0, ["n1"])
        assert not s.worker.lanes.marking
    await keeper.close()


@virtual
async def test_pausing_while_a_suspect_is_marked_gives_it_back_once_and_afterwards() -> None:
    keeper = await victim("paused-marking", "n1", "n2")

    async def handle(delivery: Delivery) -> None: ...

    async with stage(handle, name="paused-marking") as s:
        s.tap.mark_takes = 10.0
        await until(lambda: bool(s.worker.lanes.marking))
        s.worker.pause()
        await asyncio.sleep(5)
        assert (s.fates("n1"), s.fates("n2")[:1]) == ([], [Release()])
        await asyncio.sleep(10)
        assert s.fates("n1") == [Release()]
        s.tap.mark_takes = 0.0
        s.worker.pause(False)
        await s.settled(2)
        assert [s.fates(id)[-1] for id in ("n1", "n2")] == [ACK, ACK]
    await keeper.close()


@virtual
async def test_stopping_while_a_suspect_is_marked_gives_it_back_before_the_consumer_is_closed() -> None:
    keeper = await victim("stopped-marking", "n1")
    runs: list[str] = []

    async def handle(delivery: Delivery) -> None:
        runs.append(delivery.message.id)

    async with stage(handle, name="stopped-marking") as s:
        s.tap.mark_takes = 5.0
        await until(lambda: bool(s.worker.lanes.marking))
        s.worker.stop()
        await s.running
        assert (s.fates("n1"), runs, PERMIT.locked()) == ([Release()], [], False)
    await keeper.close()


@virtual
async def test_what_killed_its_process_is_counted_and_its_neighbours_are_not() -> None:
    keeper = await victim("crashed", "n1", "n2", marked=("n1",))
    attempts: dict[str, int] = {}

    async def handle(delivery: Delivery) -> None:
        attempts[delivery.message.id] = delivery.attempt

    async with stage(handle, name="crashed") as s:
        await s.settled(2)
        assert attempts == {"n1": 2, "n2": 1}
    await keeper.close()


@virtual
async def test_what_crashed_too_often_is_dead_without_running() -> None:
    keeper = await victim("poison", "n1", "n2", marked=("n1",))
    runs: list[str] = []

    async def handle(delivery: Delivery) -> None:
        runs.append(delivery.message.id)

    async with stage(handle, name="poison", backoff=Backoff(attempts=1)) as s:
        await s.settled(2)
        assert runs == ["n2"]
        (letter,) = await s.dead()
        assert (letter.id, letter.header("tdgreason"), letter.header("tdgcrashes")) == ("n1", "crashed", "1")
    await keeper.close()


@virtual
async def test_a_failing_suspect_keeps_its_lane_and_the_permit_until_it_is_settled() -> None:
    keeper = await victim("failing", "a1", "a2", "b1")
    runs: list[str] = []

    async def handle(delivery: Delivery) -> None:
        runs.append(delivery.message.id)
        if delivery.message.id == "a1" and delivery.attempt < 3:
            raise ValueError

    async with stage(handle, name="failing", backoff=FAST) as s:
        await s.settled(3)
        assert runs[:3] == ["a1", "a1", "a1"]
        assert runs.index("a2") > 2
        assert [s.fates(id) for id in ("a1", "a2", "b1")] == [[ACK]] * 3
    await keeper.close()
