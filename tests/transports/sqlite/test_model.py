"""The steps under seeded schedules: members freeze, die, retry and crash; nothing is lost, doubled or out of order.

The same schedules find each planted bug, so they are not vacuous.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.transports.sqlite import helpers
from tests.transports.sqlite.helpers import Bench, group

from tidings.kernel.message import Message
from tidings.kernel.transport import Delivery, Release, Retry, Settlement
from tidings.transports._records import freeze
from tidings.transports.sqlite.claims import Claims
from tidings.transports.sqlite.groups import Held

MESSAGES, ATTEMPTS, KEYS = 60, 3, 5
SEEDS = int(os.environ.get("TIDINGS_SEEDS", "40"))


class NoFence(Claims):
    """A lost claim can still be settled: what it held is done, whoever has it now."""

    def _strike(self, held: Held, numbers: Any) -> set[int]:
        ours = super()._strike(held, numbers)
        for seq in set(numbers) - ours:
            self.run("DELETE FROM parked WHERE grp = ? AND seq = ?", (held.group, seq))
        return set(numbers)


class ResetCount(Claims):
    def expire(self) -> None:
        super().expire()
        self.run("UPDATE parked SET crashes = 0")


class NoHold(Claims):
    """Fresh messages overtake a parked one of their key."""

    def park(self, group: int, numbers: Any, due: float, **more: Any) -> None:
        super().park(group, numbers, due, **more)
        self.run("UPDATE parked SET key = NULL WHERE grp = ?", (group,))


class BusySlots(Claims):
    """A slot is surrendered while something of it is held."""

    def _busy(self, id: int) -> set[int]:
        return set()


class NoMark(Claims):
    def mark(self, held: Held, seq: int) -> bool:
        return True


class Schedule:
    """One seeded run of three members over one group."""

    def __init__(self, path: Path, seed: int, ordered: bool, kind: type[Claims]) -> None:
        self.random, self.ordered, self.kind = random.Random(seed), ordered, kind
        self.bench = Bench(path, segment_rows=self.random.choice((7, 25, 1000)))
        self.con = self.bench.con
        pick = lambda n: {self.random.randrange(1, MESSAGES) for _ in range(n)}  # noqa: E731
        self.poison = pick(2)
        self.bad, self.flaky = pick(2) - self.poison, pick(8)
        self.runs: dict[int, int] = {}
        self.acked: dict[int, int] = {}
        self.dead: dict[int, str] = {}
        self.last: dict[str, int] = {}
        self.hands: dict[Claims, list[Delivery]] = {}
        self.frozen: dict[Claims, float] = {}
        self.group = 0
        for _ in range(3):
            self.spawn()

    def spawn(self) -> None:
        steps = self.bench.member(self.kind)
        steps.gone = self.gone_by_lease(steps)  # type: ignore[method-assign]
        self.hands[steps] = []
        self.group = self.bench.do(steps, steps.register, group(ordered=self.ordered, start=0.0))

    @staticmethod
    def gone_by_lease(steps: Claims) -> Callable[[float], list[int]]:
        """All members share this process, so only silence can tell."""
        query = "SELECT id FROM member WHERE id <> ? AND beat < ?"
        return lambda mono: [id for (id,) in steps.rows(query, (steps.member, mono - steps.lease))]

    def kill(self, steps: Claims) -> None:
        del self.hands[steps]
        self.spawn()

    def run(self) -> str:
        published = 0
        for step in range(4000):
            self.bench.now += self.random.choice((0, 1, 1, 2))
            steps = self.random.choice(list(self.hands))
            if published < MESSAGES and self.random.random() < 0.2:
                published += self.publish(steps, published)
            if self.frozen.get(steps, 0) > self.bench.now:
                continue
            if fault := self.turn(steps, step):
                return fault
            if published == MESSAGES and step > 2600 and len(self.acked | self.dead) == MESSAGES and not self.pending():
                break
        return self.verdict()

    def pending(self) -> bool:
        return bool(self.con.execute("SELECT 1 FROM claim UNION ALL SELECT 1 FROM parked").fetchall())

    def publish(self, steps: Claims, published: int) -> int:
        count = min(self.random.randrange(1, 6), MESSAGES - published)
        keys = [str(self.random.randrange(KEYS)) for _ in range(count)]
        batch = [Message("orders.x", body=b"%d" % (published + i + 1), key=key) for i, key in enumerate(keys)]
        self.bench.do(steps, steps.log.append, *freeze(batch, self.bench.now))
        return count

    def turn(self, steps: Claims, step: int) -> str:
        dice, hand = self.random.random(), self.hands[steps]
        if dice < 0.01 and step < 2500:
            self.frozen[steps] = self.bench.now + self.random.randrange(10, 80)
        elif dice < 0.02 and step < 2500:
            self.kill(steps)
        else:
            if dice < 0.5:
                self.bench.do(steps, steps.beat, self.bench.now)
            if dice < 0.75 and len(hand) < 6:
                self.claim(steps, hand)
            elif hand:
                return self.handle(steps, hand)
        return ""

    def claim(self, steps: Claims, hand: list[Delivery]) -> None:
        taken = self.bench.do(steps, steps.claim, self.group, 4)
        hand[:] = [d for d in hand if d.session.alive or self.kind is NoFence]
        fresh = zip(taken.found.numbers, taken.found.messages, strict=True)
        for held, seq, message in [*taken.takes, *((taken.claim, *pair) for pair in fresh)]:
            hand.append(Delivery(message, held, seq, held.failures, held.crashes, held.suspect))

    def handle(self, steps: Claims, hand: list[Delivery]) -> str:
        heads: dict[Any, Delivery] = {}
        for delivery in sorted(hand, key=lambda d: d.token):
            heads.setdefault(delivery.message.key if self.ordered else delivery.token, delivery)
        delivery = self.random.choice(list(heads.values()))
        hand.remove(delivery)
        n = int(delivery.message.body)
        if delivery.attempt > ATTEMPTS:
            return self.settle(steps, delivery, "dead")
        if delivery.suspect and not self.bench.do(steps, steps.mark, delivery.session, delivery.token):
            return ""
        self.runs[n] = self.runs.get(n, 0) + 1
        if n in self.poison:
            self.kill(steps)
            return ""
        failed = n in self.bad or (n in self.flaky and self.runs[n] < 2)
        if failed and self.ordered:
            for other in [d for d in hand if d.message.key == delivery.message.key]:
                hand.remove(other)
                self.bench.do(steps, steps.settle, [Settlement(other, Release())], {})
        return self.settle(steps, delivery, "retry" if failed else "ack")

    def settle(self, steps: Claims, delivery: Delivery, outcome: str) -> str:
        n, failures = int(delivery.message.body), delivery.failures + 1
        if outcome == "retry" and failures + delivery.crashes >= ATTEMPTS:
            outcome = "failed"
        settlement = (
            Settlement(delivery, Retry(2.0**failures, failures)) if outcome == "retry" else Settlement(delivery)
        )
        if self.bench.do(steps, steps.settle, [settlement], {}):
            return ""
        if outcome in ("dead", "failed"):
            self.dead[n] = "crash" if delivery.crashes else "failed"
        elif outcome == "ack":
            if n in self.acked:
                return f"settled twice: {n}"
            self.acked[n] = 1
            key = str(delivery.message.key)
            if self.ordered and self.last.get(key, 0) > n:
                return f"order of key {key}: {n} after {self.last[key]}"
            self.last[key] = n
        return ""

    def verdict(self) -> str:
        lost = [n for n in range(1, MESSAGES + 1) if n not in self.acked and n not in self.dead]
        innocent = [n for n in self.dead if n not in self.poison | self.bad]
        if lost:
            return f"lost {lost}"
        if innocent:
            return f"innocents dead {innocent}"
        if wrong := [n for n in self.poison if self.dead.get(n) != "crash"]:
            return f"poison survived {wrong}"
        if wrong := [n for n in self.bad if n not in self.dead]:
            return f"bad survived {wrong}"
        return ""


def fails(seed: int, ordered: bool, kind: type[Claims] = Claims) -> str:
    schedule = Schedule(Path(":memory:"), seed, ordered, kind)
    try:
        return schedule.run()
    finally:
        schedule.con.close()


@pytest.fixture(autouse=True)
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedules need no file: the same schema on a connection in memory."""
    import apsw

    from tidings.transports.sqlite import log

    def connect(path: Path) -> apsw.Connection:
        con = apsw.Connection(":memory:")
        con.execute(log.sql("schema"))
        log.Log(con, 0, 0, 0).roll()
        return con

    monkeypatch.setattr(helpers, "connect", connect)


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
def test_no_schedule_breaks_a_promise(ordered: bool) -> None:
    broken = {seed: fault for seed in range(SEEDS) if (fault := fails(seed, ordered))}
    assert broken == {}


@pytest.mark.parametrize(
    ("kind", "ordered"),
    [(NoFence, False), (ResetCount, False), (NoMark, False), (NoFence, True), (NoHold, True), (BusySlots, True)],
)
def test_planted_bugs_are_found(kind: type[Claims], ordered: bool) -> None:
    assert any(fails(seed, ordered, kind) for seed in range(40))
