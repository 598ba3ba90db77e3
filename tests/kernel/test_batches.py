"""Batches: how they fill, a key's run in order, and what of one fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import pytest
from tests.kernel.rig import FAST, message, stage, until, virtual

from tidings import Backoff, Delivery, Message, Reject
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import HandlerCrashed, Undecodable
from tidings.kernel.handler import Many, Outcome
from tidings.kernel.transport import ACK

LEAK: ContextVar[str] = ContextVar("LEAK", default="")


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]


def counting(calls: list[list[str]], **bad: BaseException) -> Many:
    """A batch handler that writes down its calls; as a user's function it fails as a whole when it meets a bad item."""

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        calls.append(ids(deliveries))
        for delivery in deliveries:
            if delivery.message.id in bad:
                raise bad[delivery.message.id]
        return [()] * len(deliveries)

    return many


@virtual
async def test_a_batch_waits_for_more_up_to_within() -> None:
    calls: list[list[str]] = []
    async with stage(many=counting(calls), batch=10, within=0.5, concurrency=1) as s:
        began = current_clock().monotonic()
        await s.publish(*(message(f"a{n}") for n in range(3)))
        await asyncio.sleep(0.1)
        await s.publish(*(message(f"b{n}") for n in range(3)))
        await s.settled(6)
        assert current_clock().monotonic() - began == pytest.approx(0.5, abs=0.05)
        assert calls == [["a0", "a1", "a2", "b0", "b1", "b2"]]
        await s.publish(*(message(f"c{n}") for n in range(10)))  # full: no wait
        began = current_clock().monotonic()
        await s.settled(16)
        assert current_clock().monotonic() - began < 0.1
        await s.publish(message("d"))
        await s.settled(17)
        assert [len(call) for call in calls] == [6, 10, 1]


@virtual
async def test_a_batch_fills_though_a_hot_key_has_a_queue() -> None:
    """What stands behind a running one of its key cannot be taken, and does not count."""
    calls: list[list[str]] = []
    gate = asyncio.Event()

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        calls.append(ids(deliveries))
        if "hot0" in calls[-1]:
            await gate.wait()
        return [()] * len(deliveries)

    async with stage(many=many, batch=5, within=1.0, concurrency=2) as s:
        s.worker.prefetch = 256
        await s.publish(*(message(f"hot{n}", "hot") for n in range(20)))
        await until(lambda: bool(calls))
        await s.publish(message("x0"))
        await asyncio.sleep(0.5)
        await s.publish(message("x1"))
        await until(lambda: len(calls) == 2, within=2)
        assert calls == [[f"hot{n}" for n in range(5)], ["x0", "x1"]]
        gate.set()
        await s.settled(22)


@virtual
async def test_a_batch_takes_a_keys_run_in_order() -> None:
    calls: list[list[str]] = []
    async with stage(many=counting(calls), batch=100, concurrency=4) as s:
        s.worker.prefetch = 1024
        await s.publish(*(message(f"{key}{n}", key) for n in range(30) for key in "abc"))
        await s.settled(90)
        for key in "abc":
            came = [id for call in calls for id in call if id[0] == key]
            assert came == [f"{key}{n}" for n in range(30)]
        assert max(map(len, calls)) > 3, "inconclusive: no run was taken"


@virtual
async def test_a_batch_is_in_the_order_in_which_its_messages_came() -> None:
    calls: list[list[str]] = []
    async with stage(many=counting(calls), batch=5, within=0.1, concurrency=1) as s:
        keys = ["a", "b", "a", None, "b", "a", "c", "a"]
        await s.publish(*(message(f"m{n}", key) for n, key in enumerate(keys)))
        await s.settled(8)
    assert calls == [[f"m{n}" for n in range(5)], [f"m{n}" for n in range(5, 8)]]


@virtual
async def test_what_follows_a_failure_is_not_overtaken_while_its_batch_runs_on() -> None:
    """The failure is tried again, by another task, while the rest of its batch still runs one by one."""
    failed: list[str] = []

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        if len(deliveries) > 1 and "b" in ids(deliveries):
            raise ValueError("as a whole")
        if ids(deliveries) == ["a1"] and not failed:
            failed.append("a1")
            raise ValueError("once")
        if ids(deliveries) == ["b"]:
            await asyncio.sleep(5)
        return [()] * len(deliveries)

    async with stage(many=many, batch=3, within=0.1, concurrency=2, backoff=FAST) as s:
        await s.publish(message("a1", "a"), message("a2", "a"), message("b", "b"), message("a3", "a"))
        await s.settled(4)
        assert [id for id in s.acked() if id != "b"] == ["a1", "a2", "a3"]


@virtual
async def test_a_failing_batch_runs_again_singly_in_place() -> None:
    calls: list[list[str]] = []
    many = counting(calls, m2=ValueError("bad"), m4=Reject("worse"))
    async with stage(many=many, batch=6, within=0.1, backoff=Backoff(attempts=2, first=0.3, jitter=0)) as s:
        await s.publish(*(message(f"m{n}") for n in range(6)))
        await s.settled(6)
        assert calls[0] == [f"m{n}" for n in range(6)]
        assert calls[1:7] == [[f"m{n}"] for n in range(6)]
        assert calls[7:] == [["m2"]]
        letters = {letter.id: letter.header("tdgreason") for letter in await s.dead()}
        assert letters == {"m2": "failed", "m4": "rejected"}
        assert s.worker.stats.handled == 4
        assert s.worker.settling.held == 0


@virtual
async def test_what_follows_a_failure_of_its_key_waits() -> None:
    calls: list[list[str]] = []
    failed: list[str] = []

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        calls.append(ids(deliveries))
        for delivery in deliveries:
            if delivery.message.id == "a1" and len(failed) < 3:
                failed.append("a1")
                raise ValueError
        return [()] * len(deliveries)

    async with stage(many=many, batch=10, within=0.1, backoff=FAST) as s:
        await s.publish(*(message(f"{key}{n}", key) for key in "ab" for n in range(4)))
        await s.settled(8)
        succeeded = [id for id in s.acked() if id[0] == "a"]
        assert succeeded == ["a0", "a1", "a2", "a3"]
        assert ["a2"] not in calls[: calls.index(["a1"]) + 1]
        assert not await s.dead()


@virtual
async def test_partial_says_which_failed() -> None:
    calls: list[list[str]] = []

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        calls.append(ids(deliveries))
        outcomes: list[Outcome] = [()] * len(deliveries)
        if len(calls) == 1:
            outcomes[1], outcomes[3] = ValueError("one"), ValueError("three")
        return outcomes

    async with stage(many=many, batch=5, within=0.1) as s:
        await s.publish(*(message(f"m{n}") for n in range(5)))
        await s.settled(5)
        assert calls[0] == [f"m{n}" for n in range(5)]
        assert sorted(id for call in calls[1:] for id in call) == ["m1", "m3"]


@pytest.mark.parametrize("ordered", [False, True])
@virtual
async def test_two_of_one_key_that_fail_together_stay_in_order(ordered: bool) -> None:
    """``Partial`` names two items of one key: they go on one after the other, as they came."""
    runs: list[str] = []
    busy: set[str] = set()

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        assert not busy.intersection(ids(deliveries))
        runs.extend(ids(deliveries))
        await asyncio.sleep(0.01)
        return [ValueError("no") if d.failures == 0 and d.message.id != "k0" else () for d in deliveries]

    async with stage(many=many, batch=4, within=0.1, backoff=FAST, ordered=ordered) as s:
        await s.publish(*(message(f"k{n}", "k") for n in range(8)))
        await s.settled(8)
        assert s.acked() == [f"k{n}" for n in range(8)]
        assert not await s.dead()
        assert s.worker.settling.held == 0


@virtual
async def test_the_undecodable_one_fails_alone() -> None:
    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        return [Undecodable("no") if d.message.body == b"{" else () for d in deliveries]

    async with stage(many=many, batch=3) as s:
        await s.publish(message("a"), message("b", body=b"{"), message("c"))
        await s.settled(3)
        assert [letter.id for letter in await s.dead()] == ["b"]
        assert s.worker.stats.handled == 2


@virtual
async def test_an_executor_may_stop_early() -> None:
    """What it has not started comes next, in order."""
    calls: list[list[str]] = []

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        calls.append(ids(deliveries))
        return [()] * max(1, len(deliveries) // 2)

    async with stage(many=many, batch=8, concurrency=1) as s:
        s.worker.prefetch = 64
        await s.publish(*(message(f"m{n}", "k" if n % 2 else None) for n in range(16)))
        await s.settled(16)
        done = [call[: max(1, len(call) // 2)] for call in calls]
        assert sorted(id for call in done for id in call) == sorted(f"m{n}" for n in range(16))
        keyed = [id for call in done for id in call if int(id[1:]) % 2]
        assert keyed == [f"m{n}" for n in range(1, 16, 2)]
        assert s.worker.settling.held == 0


@virtual
async def test_a_chunk_that_crashes_is_tried_one_by_one() -> None:
    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        if "poison" in ids(deliveries):
            raise HandlerCrashed("exit 1")
        return [()] * len(deliveries)

    async with stage(many=many, batch=10, backoff=FAST) as s:
        await s.publish(*(message(f"m{n}") for n in range(4)), message("poison"))
        await s.settled(5)
        (letter,) = await s.dead()
        assert (letter.id, letter.header("tdgerror"), letter.header("tdgfailures")) == ("poison", "HandlerCrashed", "3")


@virtual
async def test_a_batch_past_its_deadline_is_cancelled_and_run_singly() -> None:
    calls: list[list[str]] = []

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        calls.append(ids(deliveries))
        if "hung" in calls[-1]:
            await asyncio.sleep(1000)
        return [()] * len(deliveries)

    async with stage(many=many, batch=3, within=0.1, timeout=8.0, backoff=Backoff(attempts=2, first=0.1)) as s:
        await s.publish(message("a"), message("hung"), message("b"))
        await s.settled(3)
        assert calls == [["a", "hung", "b"], ["a"], ["hung"], ["b"], ["hung"]]
        (letter,) = await s.dead()
        assert (letter.id, letter.header("tdgerror")) == ("hung", "HandlerTimeout")


@virtual
async def test_variables_leaked_in_a_failing_batch_reach_no_single_run() -> None:
    seen: list[str] = []

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        seen.append(LEAK.get())
        LEAK.set(deliveries[0].message.id)
        if len(deliveries) > 1:
            raise ValueError
        return [()]

    async with stage(many=many, batch=4, within=0.1, concurrency=1) as s:
        await s.publish(*(message(f"m{n}") for n in range(4)))
        await s.settled(4)
        assert seen == [""] * 5


@virtual
async def test_outputs_of_a_batch_are_settled_with_its_last_item() -> None:
    out: Message[Any] = Message("billing.invoiced", body=b"{}", id="out")

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        return [*[()] * (len(deliveries) - 1), (out,)]

    async with stage(many=many, batch=3, within=0.1) as s:
        await s.publish(*(message(f"m{n}") for n in range(3)))
        await s.settled(3)
        assert [(x.delivery.message.id, x.action, x.outgoing) for x in s.tap.settled] == [
            ("m0", ACK, ()),
            ("m1", ACK, ()),
            ("m2", ACK, (out,)),
        ]
