"""Lanes: whatever happens to deliveries, of a key at most one is out, in order, and none is lost or doubled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tidings import Delivery, Message
from tidings.kernel.lanes import Lanes
from tidings.kernel.transport import Session

SESSION = Session()
KEYS = st.sampled_from([None, None, "a", "b", "c"])


def delivery(number: int, key: str | None = None, suspect: bool = False) -> Delivery:
    return Delivery(Message("t", id=str(number), key=key), SESSION, suspect=suspect)


def numbers(deliveries: Sequence[Delivery]) -> list[int]:
    return [int(each.message.id) for each in deliveries]


class LanesMachine(RuleBasedStateMachine):
    """A worker's life with its lanes, and a plain model of it: who is in, running, waiting; and what each key saw."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes()
        self.count = 0
        self.now = 0.0
        self.running: list[Delivery] = []
        self.waiting: list[Delivery] = []
        self.inside: Counter[str] = Counter()
        self.left: dict[str, int] = {}  # by key: the number of the last that left

    def leave(self, gone: Delivery) -> None:
        self.inside[gone.message.id] -= 1
        assert self.inside[gone.message.id] == 0
        del self.inside[gone.message.id]
        if gone.message.key is not None:
            number = int(gone.message.id)
            assert number > self.left.get(gone.message.key, -1), "arrival order of a key"
            self.left[gone.message.key] = number

    @rule(keys=st.lists(st.tuples(KEYS, st.integers(0, 9)), max_size=8))
    def add(self, keys: list[tuple[str | None, int]]) -> None:
        batch = [delivery(self.count + n, key, luck == 0) for n, (key, luck) in enumerate(keys)]
        self.count += len(batch)
        self.inside.update(d.message.id for d in batch)
        self.lanes.add(batch)

    @rule(limit=st.integers(1, 5), runs=st.booleans())
    def take(self, limit: int, runs: bool) -> None:
        free = len(self.lanes.runs())
        taken = self.lanes.take(limit, runs=runs)
        assert len(taken) == min(limit, free) if runs else len(taken) <= limit
        keys = Counter(d.message.key for d in taken if d.message.key is not None)
        assert runs or max(keys.values(), default=0) <= 1
        out = {d.message.key for d in (*self.running, *self.waiting)}
        assert not out & keys.keys()
        for key in keys:
            run = numbers([d for d in taken if d.message.key == key])
            assert run == sorted(run)
        if runs:  # a batch: its keys' lanes are left together
            firsts = {d.message.key or d.message.id: d for d in taken}
            for each in taken:
                if each not in firsts.values():
                    self.leave(each)
            taken = list(firsts.values())
        self.running += taken

    @precondition(lambda self: self.lanes.ready)
    @rule()
    def popleft(self) -> None:
        """As the loop of single handlers takes."""
        self.running.append(self.lanes.ready.popleft())

    @precondition(lambda self: self.lanes.suspects)
    @rule()
    def recover(self) -> None:
        self.lanes.ready.appendleft(self.lanes.suspects.popleft())

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        ended = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.leave(ended)
        self.lanes.done(ended)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), wait=st.floats(0, 5))
    def wait(self, data: st.DataObject, wait: float) -> None:
        failed = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.waiting.append(failed)
        self.lanes.wait(failed, self.now + wait)

    @rule(passed=st.floats(0, 5))
    def resume(self, passed: float) -> None:
        self.now += passed
        before = self.lanes.waiting
        self.lanes.resume(self.now)
        resumed = before - self.lanes.waiting
        heads = list(self.lanes.ready)[:resumed]
        for each in heads:
            self.waiting.remove(each)
        assert len(self.waiting) == self.lanes.waiting

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        """Taken, not run: back to its place, and its lane goes on."""
        back = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        assert self.lanes.requeue([back]) == []
        if back.message.key is not None:
            self.lanes.done(back)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        """An ordered group's failure: all of its key leave with it."""
        failed = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        held = self.lanes.hold(failed)
        assert numbers(held) == sorted(numbers(held))
        assert all(each.message.key == failed.message.key for each in held)
        for each in (failed, *held):
            self.leave(each)
        assert self.lanes.requeue([failed]) == ([failed] if failed.message.key is not None else [])
        if failed.message.key is None:
            self.inside[failed.message.id] += 1

    @rule()
    def drain(self) -> None:
        fresh, waiting = self.lanes.drain()
        assert Counter(d.message.id for d in waiting) == Counter(d.message.id for d in self.waiting)
        self.waiting.clear()
        for each in (*fresh, *waiting):
            assert self.inside.pop(each.message.id, 0) == 1
        assert sorted(self.inside) == sorted(d.message.id for d in self.running), "only what runs is left"
        assert list(self.lanes) == []
        assert len(self.lanes.runs()) == 0

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        held = Counter(d.message.id for d in (*self.lanes, *self.running))
        assert held == +self.inside

    @invariant()
    def one_of_a_key_is_out(self) -> None:
        lanes = self.lanes
        out = Counter(d.message.key for d in (*lanes.ready, *lanes.suspects, *self.running, *self.waiting))
        assert all(count == 1 for key, count in out.items() if key is not None)

    @invariant()
    def fresh_is_what_could_be_taken(self) -> None:
        """All that is ready, and what stands behind it, up to the first suspect of its key."""
        lanes = self.lanes
        keys = {d.message.key for d in lanes.ready} - {None}
        behind: dict[Any, list[Delivery]] = {key: [] for key in keys}
        suspected = set()
        for each in lanes:
            key = each.message.key
            if key not in keys or any(each is d for d in lanes.ready):
                continue
            if each.suspect:
                suspected.add(key)
            if key not in suspected:
                behind[key].append(each)
        assert len(lanes.runs()) == len(lanes.ready) + sum(map(len, behind.values()))


LanesMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLanes = LanesMachine.TestCase


def test_waiters_come_before_what_arrived_later() -> None:
    lanes = Lanes()
    first, second = delivery(1, "a"), delivery(2, "b")
    lanes.add([first, second])
    for each in lanes.take(2, runs=False):
        lanes.wait(each, until=float(each.message.id))
    lanes.add([delivery(3), delivery(4, "a")])
    lanes.resume(0.5)
    assert numbers(list(lanes.ready)) == [3]
    lanes.resume(1.0)
    assert numbers(list(lanes.ready)) == [1, 3]
    lanes.resume(2.0)
    assert numbers(list(lanes.ready)) == [2, 1, 3]


def test_a_suspect_ends_a_run() -> None:
    lanes = Lanes()
    lanes.add([delivery(1, "a"), delivery(2, "a"), delivery(3, "a", suspect=True), delivery(4, "a")])
    taken = lanes.take(10, runs=True)
    assert numbers(taken) == [1, 2]
    lanes.done(taken[-1])
    assert numbers(list(lanes.suspects)) == [3]
    assert not lanes.ready
