"""The loop: order per key, slots, waiting in place, deadlines, context variables, prefetch, fairness."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextvars import ContextVar
from typing import Any

import pytest
from tests.kernel.rig import FAST, each, message, stage, until, virtual

from tidings import Backoff, Defer, Delivery, Reject, Retry, Skip
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import Undecodable, WrongReturn
from tidings.kernel.outcome import IN_PLACE
from tidings.kernel.transport import ACK, Release

LEAK: ContextVar[str] = ContextVar("LEAK", default="")


JUNK: Any = None, []


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", ["one", "chunk", "batch"])
@virtual
async def test_whatever_handlers_do_each_key_goes_in_order_and_nothing_is_lost(seed: int, shape: str) -> None:
    """Failing, slow, cancelled, leaking handlers: one of a key at a time, never more at once than allowed."""
    luck = random.Random(seed)
    busy: dict[str, str] = {}
    done: list[str] = []
    now = most = 0
    count, concurrency = 600, luck.choice([1, 4, 16])

    async def handle(delivery: Delivery) -> None:
        nonlocal now, most
        sent = delivery.message
        assert LEAK.get() == ""
        if sent.key is not None:
            assert sent.key not in busy, f"{sent.id} began beside {busy[sent.key]}"
            busy[sent.key] = sent.id
        now += 1
        most = max(most, now)
        try:
            await misbehave(luck.random(), sent.id)
            done.append(sent.id)
        finally:
            now -= 1
            busy.pop(sent.key or "", None)

    async def misbehave(dice: float, id: str) -> None:
        if dice < 0.2:
            await asyncio.sleep(0)
        elif dice < 0.3:
            await asyncio.sleep(dice / 50)
        elif dice < 0.31:
            await asyncio.sleep(100)  # past its deadline
        elif dice < 0.4:
            raise ValueError(id)
        elif dice < 0.43 and shape == "one":
            LEAK.set(id)
        elif dice < 0.45:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(1)
        elif dice < 0.46 and shape == "one":
            raise asyncio.CancelledError
        elif dice < 0.48:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0.001))

    backoff = Backoff(attempts=1000, first=0.05, factor=2, limit=0.8)
    shaped: dict[str, Any] = {"one": handle} if shape == "one" else {"many": each(handle)}
    shaped["batch"] = 20 if shape == "batch" else 1
    async with stage(**shaped, concurrency=concurrency, timeout=2.0, backoff=backoff) as s:
        sent = [message(f"m{n}", luck.choice([None, *(f"k{k}" for k in range(9))])) for n in range(count)]
        await s.publish(*sent)
        await s.settled(count)
        assert s.worker.settling.held == 0
    keys = {m.id: m.key for m in sent}
    assert Counter(s.acked()) == Counter(list(keys))
    assert shape == "batch" or Counter(done) == Counter(list(keys))  # a failed batch runs again
    for key in {k for k in keys.values() if k}:
        assert [id for id in s.acked() if keys[id] == key] == [id for id in keys if keys[id] == key]
    assert most <= concurrency
    assert concurrency == 1 or most > 1
    assert s.worker.stats.failed > 0


@virtual
async def test_waiting_in_place_holds_the_lane_but_not_the_slot() -> None:
    runs: list[str] = []

    async def handle(delivery: Delivery) -> None:
        runs.append(delivery.message.id)
        if delivery.message.id == "bad" and delivery.attempt < 3:
            raise ValueError

    async with stage(handle, concurrency=1, backoff=FAST) as s:
        await s.publish(message("bad", "a"), message("a2", "a"), message("b1", "b"), message("none"))
        await s.settled(4)
        assert runs == ["bad", "b1", "none", "bad", "bad", "a2"]
        assert s.fates("bad") == [ACK]


@virtual
async def test_as_many_waiting_as_there_are_slots_do_not_stop_the_rest() -> None:
    waiting = 16

    async def handle(delivery: Delivery) -> None:
        if delivery.message.id.startswith("bad"):
            raise Retry(0.9)

    async with stage(handle, concurrency=4, backoff=Backoff(attempts=100)) as s:
        await s.publish(*(message(f"bad{n}") for n in range(waiting)), *(message(f"good{n}") for n in range(50)))
        await until(lambda: sum(id.startswith("good") for id in s.acked()) == 50, within=0.8)


@pytest.mark.parametrize("resolution", [1e-9, 0.001])
@virtual
async def test_every_wait_in_place_ends(resolution: float) -> None:
    """Also on a loop that fires its timers a little early, as uvloop's and coarse clocks do."""
    luck, loop = random.Random(1), asyncio.get_running_loop()
    loop._clock_resolution = resolution  # type: ignore[attr-defined]

    async def handle(delivery: Delivery) -> None:
        if delivery.failures < 3:
            raise Retry(luck.random() * IN_PLACE)

    async with stage(handle, backoff=Backoff(attempts=10)) as s:
        for n in range(200):
            await s.publish(message(f"m{n}"))
            await s.settled(n + 1, within=10)


@virtual
async def test_a_longer_wait_goes_back_to_the_transport_and_its_lane_goes_on() -> None:
    runs: list[tuple[str, int]] = []

    async def handle(delivery: Delivery) -> None:
        runs.append((delivery.message.id, delivery.attempt))
        if delivery.message.id == "first" and delivery.attempt == 1:
            raise ValueError("no")

    async with stage(handle, backoff=Backoff(first=1.1, jitter=0)) as s:
        await s.publish(message("first", "k"), message("second", "k"))
        await s.settled(2)
        assert runs == [("first", 1), ("second", 1), ("first", 2)]
        assert s.retries("first") == [(1.1, 1)]


@virtual
async def test_attempts_used_up_dead_letter() -> None:
    async def handle(delivery: Delivery) -> None:
        raise ValueError(f"attempt {delivery.attempt}")

    async with stage(handle, backoff=Backoff(attempts=4, first=0.5, factor=4, jitter=0)) as s:
        body, headers = b'{"n":1}', (("mine", "kept"),)
        await s.publish(message("m", "k", body=body, headers=headers, correlation_id="c"))
        await s.settled(1)
        (letter,) = await s.dead()
        assert s.retries("m") == [(2.0, 2), (8.0, 3)]  # the first failure is in it, though it waited in place
        assert (letter.id, letter.key, letter.topic, letter.body) == ("m", "k", "orders.placed", body)
        assert (letter.correlation_id, letter.header("mine")) == ("c", "kept")
        told = [letter.header(f"tdg{name}") for name in ("group", "reason", "error", "failures", "crashes")]
        assert told == ["shop.bill", "failed", "ValueError", "4", "0"]
        assert letter.header("tdgdetail").endswith("attempt 4")
        assert 'raise ValueError(f"attempt' in letter.header("tdgtraceback")
        assert float(letter.header("tdgdeadat")) == pytest.approx(current_clock().now(), abs=1)
        assert letter.header("tdghost")
        assert (s.worker.stats.failed, s.worker.stats.dead, s.worker.stats.handled) == (4, 1, 0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Reject("never"), "rejected"),
        (Undecodable("no JSON"), "undecodable"),
        (WrongReturn("an int"), "wrong return type"),
        (KeyError("given up"), "rejected"),
    ],
)
@virtual
async def test_some_errors_are_dead_at_once(error: Exception, reason: str) -> None:
    runs: list[int] = []

    async def handle(delivery: Delivery) -> None:
        runs.append(delivery.attempt)
        raise error

    async with stage(handle, backoff=Backoff(give_up=(LookupError,))) as s:
        await s.publish(message("m"))
        await s.settled(1)
        (letter,) = await s.dead()
        assert letter.header("tdgreason") == reason
        assert letter.header("tdgfailures") == "0"
        assert runs == [1]


@virtual
async def test_skip_and_defer_and_retry_after() -> None:
    runs: list[tuple[str, int, float]] = []
    began = current_clock().now()

    async def handle(delivery: Delivery) -> None:
        id, seen = delivery.message.id, [run[0] for run in runs]
        runs.append((id, delivery.attempt, round(current_clock().now() - began)))
        if id == "skipped":
            raise Skip("seen before")
        if id == "deferred" and seen.count(id) < 2:
            raise Defer("5m")
        if id == "retried" and seen.count(id) < 2:
            raise Retry("20s")

    async with stage(handle) as s:
        await s.publish(message("skipped"), message("deferred"), message("retried"))
        await s.settled(3, within=1000)
        assert [run[1:] for run in runs if run[0] == "skipped"] == [(1, 0)]
        assert [run[1:] for run in runs if run[0] == "deferred"] == [(1, 0), (1, 300), (1, 600)]
        assert [run[1:] for run in runs if run[0] == "retried"] == [(1, 0), (2, 20), (3, 40)]
        assert s.fates("deferred") == [Release(300.0), Release(300.0), ACK]
        assert not await s.dead()
        assert (s.worker.stats.skipped, s.worker.stats.released) == (1, 2)


@pytest.mark.parametrize("error", [Defer(JUNK), Retry(JUNK), Defer("soon"), Unprintable(), Retry(-1)], ids=repr)
@virtual
async def test_nothing_a_handler_raises_ends_its_worker(error: Any) -> None:
    async def handle(delivery: Delivery) -> None:
        if delivery.message.id == "odd":
            raise error

    async with stage(handle, concurrency=1) as s:
        await s.publish(message("odd"), message("next"))
        await s.settled(2)
        assert [letter.id for letter in await s.dead()] == ["odd"]


@virtual
async def test_expired_before_and_after_a_failure() -> None:
    runs: list[str] = []
    now = current_clock().now()

    async def handle(delivery: Delivery) -> None:
        runs.append(delivery.message.id)
        if delivery.message.id == "late":
            raise Retry("10s")

    async with stage(handle) as s:
        await s.publish(message("stale", expires_at=now - 1), message("late", expires_at=now + 5))
        await s.publish(message("fresh", expires_at=now + 5))
        await s.settled(3)
        assert sorted(runs) == ["fresh", "late"]
        (letter,) = await s.dead()
        assert (letter.id, letter.header("tdgreason"), letter.header("tdgfailures")) == ("late", "expired", "1")
        assert s.fates("stale") == [ACK]
        assert s.worker.stats.expired == 2


@virtual
async def test_past_its_deadline_a_handler_is_cancelled_and_counts_as_failed() -> None:
    runs: list[int] = []

    async def handle(delivery: Delivery) -> None:
        runs.append(delivery.attempt)
        if delivery.message.id == "hung" and delivery.attempt < 3:
            await asyncio.sleep(1000)

    async with stage(handle, concurrency=1, timeout=8.0) as s:
        await s.publish(message("hung"), message("next"))
        await s.settled(2)
        assert sorted(runs) == [1, 1, 2, 3]
        assert s.worker.stats.failed == 2
        assert not await s.dead()


@virtual
async def test_a_handler_may_swallow_its_deadline() -> None:
    async def handle(delivery: Delivery) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            seen.append(task)

    seen: list[asyncio.Task[Any]] = []
    async with stage(handle, concurrency=1, timeout=8.0) as s:
        await s.publish(message("a"), message("b"))
        await s.settled(2)
        assert len(seen) == 2
        assert not any(task.cancelling() for task in seen)
        assert s.worker.stats.failed == 0


@virtual
async def test_a_handler_may_turn_its_deadline_into_another_error() -> None:
    """The slot is as good as new afterwards: a later handler may raise ``CancelledError`` itself."""
    slots: list[Any] = []

    async def handle(delivery: Delivery) -> None:
        if delivery.message.id == "hung":
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                slots.append(asyncio.current_task())
                raise ValueError("turned") from None
        if delivery.message.id == "cancels itself" and delivery.attempt == 1:
            slots.append(asyncio.current_task())
            raise asyncio.CancelledError

    async with stage(handle, concurrency=1, timeout=8.0, backoff=Backoff(attempts=2, first=0.1)) as s:
        await s.publish(message("hung"))
        await s.settled(1)
        await s.publish(message("cancels itself"), message("next"))
        await s.settled(3)
        assert slots[0] is slots[-1], "inconclusive: not the same slot"
        assert [letter.id for letter in await s.dead()] == ["hung"]


@virtual
async def test_a_handler_may_raise_cancelled_error_itself() -> None:
    async def handle(delivery: Delivery) -> None:
        if delivery.attempt < 3:
            awaited = asyncio.ensure_future(asyncio.sleep(10))
            awaited.cancel()
            await awaited

    async with stage(handle, concurrency=1) as s:
        await s.publish(message("m"), message("n"))
        await s.settled(2)
        assert s.worker.stats.failed == 4


@virtual
async def test_leaked_context_variables_never_reach_another_message() -> None:
    seen: list[str] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(LEAK.get())
        LEAK.set(delivery.message.id)
        if delivery.message.id == "m1" and delivery.attempt == 1:
            raise ValueError

    async with stage(handle, concurrency=2) as s:
        await s.publish(*(message(f"m{n}") for n in range(50)))
        await s.settled(50)
        assert seen == [""] * 51


@virtual
async def test_handlers_run_at_once_up_to_the_concurrency() -> None:
    now = most = 0
    gate = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if most == 5:
            gate.set()
        await gate.wait()
        now -= 1

    async with stage(handle, concurrency=5) as s:
        await s.publish(*(message() for _ in range(100)))
        await s.settled(100)
        assert most == 5


@virtual
async def test_what_is_held_never_exceeds_the_prefetch() -> None:
    gate = asyncio.Event()
    most = 0

    async def handle(delivery: Delivery) -> None:
        nonlocal most
        most = max(most, s.worker.settling.held)
        await gate.wait()

    async with stage(handle, concurrency=3) as s:
        await s.publish(*(message() for _ in range(5000)))
        await until(lambda: most > 0)
        await asyncio.sleep(60)
        assert most == 3, "a slow subscription takes no more than it can run"
        gate.set()
        await s.settled(5000)
        assert 3 < max(s.tap.limits) <= 1024
        assert most <= 1024


@virtual
async def test_paused_it_starts_nothing() -> None:
    runs: list[str] = []

    async def handle(delivery: Delivery) -> None:
        runs.append(delivery.message.id)

    async with stage(handle, concurrency=2) as s:
        await s.publish(message("before"))
        await s.settled(1)
        s.worker.pause()
        await s.publish(*(message(f"m{n}") for n in range(10)))
        await asyncio.sleep(300)
        assert runs == ["before"]
        s.worker.pause(False)
        await s.settled(11)
        assert sorted(s.tap.extended) == sorted(set(s.tap.extended))  # what was in hand was kept by its lease
        assert s.events["recovered"] == 0


@virtual
async def test_leases_of_all_in_hand_are_renewed_but_not_past_the_deadline() -> None:
    """A handler that cannot be cancelled is left to its lease, which then ends."""
    gate = asyncio.Event()
    runs: list[str] = []

    async def handle(delivery: Delivery) -> None:
        runs.append(delivery.message.id)
        if delivery.message.id != "other" and len(runs) <= 2:
            await gate.wait()

    async with stage(handle, concurrency=1, timeout=100.0, cancellable=False) as s:
        s.worker.prefetch = 8
        await s.publish(message("hung", "k"), message("queued", "k"))
        await asyncio.sleep(90)
        assert s.events["recovered"] == 0
        assert {"hung", "queued"} <= set(s.tap.extended)
        await asyncio.sleep(60)
        assert s.events["recovered"] == 1
        assert runs == ["hung"]
        gate.set()
        await s.settled(2)
        assert s.worker.stats.fenced == 1


@virtual
async def test_a_busy_subscription_does_not_starve_another() -> None:
    """Of one loop: while one has an endless backlog and never suspends, the other gets its turns."""
    turns = Counter[str]()

    async def greedy(delivery: Delivery) -> None:
        turns["greedy"] += 1
        loop.advance(0.0001)  # a handler of 0.1 ms

    async def modest(delivery: Delivery) -> None:
        turns["modest"] += 1
        loop.advance(0.0001)

    loop: Any = asyncio.get_running_loop()
    shared: set[Any] = set()
    async with stage(greedy, busy=shared) as one, stage(modest, busy=shared) as other:
        await one.publish(*(message() for _ in range(20_000)))
        for n in range(100):
            await other.publish(message())
            before = turns["greedy"]
            for _ in range(100):
                await asyncio.sleep(0)
                if turns["modest"] > n:
                    break
            assert turns["modest"] > n
            assert turns["greedy"] - before <= 40  # four slices of 1 ms
        assert turns["greedy"] > 100, "inconclusive: the busy one was not busy"
        await one.settled(20_000)


@virtual
async def test_sixteen_workers_of_one_subscription_get_one_slice() -> None:
    turns = Counter[str]()
    loop: Any = asyncio.get_running_loop()

    async def greedy(delivery: Delivery) -> None:
        turns["greedy"] += 1
        loop.advance(0.0001)
        if turns["greedy"] % 3 == 0:
            await asyncio.sleep(0)

    async with stage(greedy, concurrency=16) as s:
        await s.publish(*(message() for _ in range(5000)))
        most = 0
        while len(s.acked()) < 5000:
            before = turns["greedy"]
            await asyncio.sleep(0.0001)
            most = max(most, turns["greedy"] - before)
        assert 0 < most <= 40


@virtual
async def test_ordered_a_failure_holds_its_key_and_nothing_else() -> None:
    runs: list[str] = []

    async def handle(delivery: Delivery) -> None:
        runs.append(delivery.message.id)
        if delivery.message.id == "a0" and delivery.attempt < 3:
            raise Retry("5s")

    async with stage(handle, ordered=True, backoff=Backoff(attempts=5)) as s:
        s.worker.prefetch = 64
        await s.publish(*(message(f"{key}{n}", key) for n in range(4) for key in "ab"))
        await s.settled(8)
        assert [id for id in runs if id[0] == "a"] == ["a0", "a0", "a0", "a1", "a2", "a3"]
        assert [id for id in runs if id[0] == "b"] == ["b0", "b1", "b2", "b3"]
        assert s.worker.settling.held == 0
