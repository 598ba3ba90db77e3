"""The checker: a good history passes, and each rule is broken by a history that breaks that one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tidings.kernel.message import derived_id
from tidings.testing.faults import Fate, Group, Line, Scenario, Verdict, judge

GROUPS = (
    Group(name="bill", to="orders.billed"),
    Group(name="book", ordered=True),
    Group(name="sink", topic="orders.billed"),
)
FATES = (Fate(group="book", at=(5,), rejects=True),)
SCENARIO = Scenario(url="memory://", groups=GROUPS, messages=8, publishers=2, keys=2, delayed=4, fates=FATES)
COLUMNS = {"bill": "faults.bill", "book": "faults.book", "sink": "faults.sink"}


def id_in(group: str, n: int) -> str:
    return derived_id(f"m{n:06d}", "faults.bill", "orders.billed", 0) if group == "sink" else f"m{n:06d}"


class Past:
    """A history in the making; time passes by itself, 10 ms a line."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def add(self, what: str, process: str = "c0", **fields: Any) -> None:
        at = len(self.lines) * 0.01 + 1.0
        pid = fields.pop("pid", {"c0": 10, "c1": 11}.get(process, 1))
        self.lines.append(Line(what=what, at=at, wall=at, process=process, pid=pid, **fields))

    def of(self, what: str, group: str, n: int, process: str = "c0", **fields: Any) -> None:
        about = {"id": id_in(group, n), "key": SCENARIO.key(n), "n": n}
        self.add(what, process, group=COLUMNS.get(group, group), **about, **fields)

    def publish(self, n: int, what: str = "accepted") -> None:
        due = {"due": 1.05} if SCENARIO.is_delayed(n) else {}
        for each in ("try", what) if what else ("try",):
            self.of(each, "", n, "p0", **due)

    def handle(self, group: str, n: int, process: str = "c0", settled: str = "ack") -> None:
        for what in ("received", "begin", "end"):
            self.of(what, group, n, process)
        self.settle(group, n, process, settled)

    def settle(self, group: str, n: int, process: str = "c0", detail: str = "ack") -> None:
        if detail:
            what = "unsettled" if detail == "fenced" else "settled"
            self.of(what, group, n, process, detail=detail)

    def bury(self, number: int, **told: Any) -> None:
        letter = {"reason": "rejected", "failures": 0, "crashes": 0, "n": number, **told}
        self.of("letter", "book", number, detail=msgspec.json.encode(letter).decode())

    def store(self, n: int) -> None:
        self.add("stored", group="orders.billed", id=id_in("sink", n))

    def both_at_once(self, one: int, other: int) -> None:
        """Two messages of an ordered group, of different keys, in hand at the same time."""
        for what in ("begin", "end"):
            for n in (one, other):
                self.of(what, "book", n)
        self.settle("book", one)
        self.settle("book", other)


def good(*, leave_out: tuple[str, ...] = ()) -> Past:
    """Eight messages, three groups; one is rejected by the second. ``leave_out``: what another test brings itself."""
    past = Past()
    for n in range(8):
        past.publish(n)
    past.both_at_once(0, 1)
    for n in range(2, 8):
        if f"book {n}" in leave_out:
            continue
        if n == 5:
            past.of("begin", "book", n)
            past.of("reject", "book", n)
            past.settle("book", n, detail="dead")
        else:
            past.handle("book", n)
    for n in range(8):
        past.handle("bill", n)
        past.handle("sink", n)
        if f"stored {n}" not in leave_out:
            past.store(n)
    if "letter" not in leave_out:
        past.bury(5)
    return past


def verdict(past: Past, **changed: Any) -> Verdict:
    return judge(past.lines, msgspec.structs.replace(SCENARIO, **changed))


def broken(past: Past, **changed: Any) -> set[str]:
    return {violation.rule for violation in verdict(past, **changed).violations}


def test_a_good_history_passes() -> None:
    found = verdict(good())
    assert found.held, found
    assert (found.accepted, found.ended, found.duplicated, found.bound, found.lost) == (8, 23, 0, 0, 0)


def test_a_good_history_with_a_crash_passes() -> None:
    """c1 ended one and began another, and was killed: c0 gets both; nobody knows what became of a publish."""
    past = good(leave_out=("book 7",))
    past.publish(7, what="")
    for what in ("received", "begin", "end"):
        past.of(what, "book", 7, "c1")
    past.add("fault", "c1", detail="killed")
    past.add("exited", "c1", n=-9)
    past.handle("book", 7)
    found = verdict(past, expects=("killed", "repeated"))
    assert found.held, found
    assert (found.duplicated, found.bound) == (1, 3 * (8 + 512))
    assert found.recovered == pytest.approx(0.05)


def test_nothing_accepted_is_inconclusive() -> None:
    assert broken(Past()) == {"nothing"}


def test_a_fault_that_was_not_seen_is_inconclusive() -> None:
    assert broken(good(), expects=("killed",)) == {"nothing"}


def test_one_key_at_a_time_is_inconclusive() -> None:
    past = Past()
    past.publish(0)
    past.handle("book", 0)
    assert broken(past, groups=(GROUPS[1],)) == {"nothing"}


def test_a_fail_point_that_was_not_passed_is_inconclusive() -> None:
    past = good()
    past.add("armed", "c1", detail="spi.settle.before=kill@3 begin=error")
    past.add("point", "c1", detail="begin")
    assert [v.what for v in verdict(past).of("missed")] == ["c1 was never at spi.settle.before"]
    past.add("point", "c1", detail="spi.settle.before")
    assert broken(past) == set()


@pytest.mark.parametrize("points", [{"c0": ("spi.setle.before=kill",)}, {"x9": ("spi.settle.before=kill",)}])
def test_so_are_a_point_and_a_process_that_do_not_exist(points: dict[str, tuple[str, ...]]) -> None:
    assert broken(good(), points=points) == {"missed"}


def test_lost() -> None:
    past = good()
    past.lines = [line for line in past.lines if not (line.group == "faults.bill" and line.id == id_in("bill", 2))]
    found = verdict(past)
    assert (found.lost, {violation.rule for violation in found.violations}) == (1, {"lost"})


def test_what_the_bus_still_has_is_late_and_not_lost() -> None:
    for left, rules, lost in ((3, {"stuck"}, 0), (-1, {"stuck"}, 0), (0, {"stuck", "lost"}, 1)):
        past = good()
        past.lines = [line for line in past.lines if not (line.group == "faults.bill" and line.id == id_in("bill", 2))]
        past.add("stuck", "run", why="not over within 15 s", n=left)
        found = verdict(past)
        assert ({violation.rule for violation in found.violations}, found.lost) == (rules, lost)
        assert "not over within 15 s" in str(found)


def test_lost_from_the_dead_letters() -> None:
    assert broken(good(leave_out=("letter",))) == {"lost"}


def test_a_message_may_be_lost_that_was_not_accepted() -> None:
    past = good()
    past.lines = [line for line in past.lines if line.id not in (id_in("bill", 4), id_in("sink", 4))]
    past.publish(4, what="unknown")
    assert broken(past) == set()


def test_invented() -> None:
    past = good()
    past.lines = [line for line in past.lines if not (line.what in ("try", "accepted") and line.n == 6)]
    assert broken(past) == {"invented", "chain"}


def test_order() -> None:
    past = good(leave_out=("book 6", "book 4"))
    past.handle("book", 6)
    past.handle("book", 4)
    found = verdict(past)
    assert (found.disorder, {violation.rule for violation in found.violations}) == (1, {"order"})


def test_two_of_a_key_at_once() -> None:
    past = good(leave_out=("book 4", "book 6"))
    past.of("begin", "book", 4)
    past.of("begin", "book", 6, "c1")
    past.of("end", "book", 4)
    past.of("end", "book", 6, "c1")
    assert broken(past) == {"overlap"}


def test_a_frozen_process_may_overlap_with_its_heir() -> None:
    past = good(leave_out=("book 6",))
    past.of("begin", "book", 6, "c1")
    past.add("fault", "c1", detail="frozen")
    past.of("begin", "book", 6)
    past.of("end", "book", 6)
    past.of("end", "book", 6, "c1")
    past.settle("book", 6)
    past.settle("book", 6, "c1", detail="fenced")
    assert broken(past, expects=("frozen", "fenced")) == set()


def test_repeated_without_a_fault() -> None:
    past = good()
    past.handle("bill", 1, "c1", settled="")
    assert broken(past) == {"repeated", "duplicates"}


def test_two_claim_at_once_and_one_is_fenced() -> None:
    """A fence excuses nobody: without a fault nobody may have got what another one has."""
    past = good()
    for n in range(8):
        past.handle("bill", n, "c1", settled="fenced")
    found = verdict(past)
    assert {violation.rule for violation in found.violations} == {"repeated", "duplicates", "fenced"}
    assert len(found.of("repeated")) == len(found.of("fenced")) == 8


def test_what_the_worker_dropped_by_itself_is_fenced_too() -> None:
    past = good()
    past.add("total", "c1", group="faults.bill", detail="fenced", n=3)
    assert broken(past) == {"fenced"}
    past.add("fault", "c1", detail="frozen")
    assert broken(past) == set()


@pytest.mark.parametrize(("why", "rules"), [("it was silent", set()), ("faults.bill", {"repeated", "duplicates"})])
def test_a_process_that_was_silent_for_a_lease_has_lost_what_it_had(why: str, rules: set[str]) -> None:
    """An event that names a group counts settlements: it excuses nothing."""
    past = good()
    past.handle("bill", 1, "c1", settled="")
    past.add("event", "c1", detail="fenced", n=1, why=why)
    assert broken(past) == rules


def test_an_error_at_a_fail_point_costs_a_process_nothing() -> None:
    past = good()
    past.add("armed", "c1", detail="commit.before=error")
    past.add("point", "c1", detail="commit.before")
    past.handle("bill", 1, "c1", settled="")
    assert broken(past) == {"repeated", "duplicates"}


def test_more_duplicates_than_may_be() -> None:
    past = good()
    past.add("fault", "c1", detail="killed")
    past.add("exited", "c1", n=-9)
    past.of("received", "bill", 1, "c1")
    for _ in range(3 * 520 + 1):
        past.of("end", "bill", 1, "c1")
    found = verdict(past)
    assert (found.duplicated, found.bound) == (3 * 520 + 1, 3 * 520)
    assert {violation.rule for violation in found.violations} == {"duplicates"}


def test_settled_and_delivered_again() -> None:
    """Also when the process has died since: what was settled is not delivered to anybody."""
    past = good(leave_out=("book 7",))
    past.handle("book", 7, "c1")
    past.add("exited", "c1", n=-9)
    past.handle("book", 7)
    assert broken(past) == {"committed"}


def twice_beside_a_hurt_process(*, in_hand: bool) -> Past:
    """Two sound processes settle one message, which a killed one had or had not received."""
    past = good(leave_out=("book 7",))
    if in_hand:
        past.of("received", "book", 7, "c2", pid=12)
    past.add("fault", "c2", pid=12, detail="killed")
    past.add("exited", "c2", pid=12, n=-9)
    past.handle("book", 7, "c1")
    past.handle("book", 7)
    return past


def test_a_copy_and_its_original_may_both_come_of_a_process_that_died_between_them() -> None:
    past = twice_beside_a_hurt_process(in_hand=True)
    assert broken(past) == {"committed", "repeated"}
    assert broken(past, atomic=False) == set()
    assert broken(twice_beside_a_hurt_process(in_hand=False), atomic=False) >= {"committed", "repeated"}


def test_an_input_that_was_handled_twice_may_have_two_outputs_unless_both_are_one_transaction() -> None:
    past = good()
    for group in ("bill", "sink"):
        past.of("received", group, 2, "c1")
    past.add("fault", "c1", detail="killed")
    past.add("exited", "c1", n=-9)
    past.of("end", "bill", 3, "c1")
    past.handle("sink", 3)
    assert broken(past) >= {"committed", "repeated"}
    assert broken(past, atomic=False) == set()


def test_a_killed_broker_may_forget_what_it_had_not_stored() -> None:
    past = good(leave_out=("book 7",))
    past.handle("book", 7, "c1")
    for name, pid in (("c0", 10), ("c1", 11)):
        past.add("fault", name, pid=pid, detail="broker killed")
    past.handle("book", 7)
    assert broken(past) == {"committed"}
    assert broken(past, lapse=1.0) == set()


def test_a_late_settlement_that_was_not_fenced() -> None:
    past = good(leave_out=("book 7",))
    past.of("begin", "book", 7, "c1")
    past.add("fault", "c1", detail="frozen")
    past.handle("book", 7)
    past.of("end", "book", 7, "c1")
    past.settle("book", 7, "c1")
    assert broken(past) == {"committed"}


def test_an_output_is_missing() -> None:
    assert broken(good(leave_out=("stored 3",))) == {"chain"}


def test_an_output_is_there_twice() -> None:
    past = good()
    past.store(3)
    assert broken(past) == {"chain"}
    assert broken(past, atomic=False) == set()


def test_a_letter_is_there_twice() -> None:
    past = good()
    past.bury(5)
    assert broken(past) == {"letters"}


@pytest.mark.parametrize("told", [{"reason": "failed"}, {"n": 4}])
def test_a_letter_says_something_else(told: dict[str, Any]) -> None:
    past = good(leave_out=("letter",))
    past.bury(5, **told)
    assert broken(past) == {"letters"}


def test_a_letter_miscounts() -> None:
    past = good(leave_out=("letter",))
    past.bury(5, reason="crashed", crashes=2)
    fates = (Fate(group="book", at=(5,), dies=True),)
    assert broken(past, fates=fates, attempts=3) == {"letters"}


def test_a_letter_of_an_innocent() -> None:
    past = good()
    past.bury(4)
    assert broken(past) == {"letters"}


def test_poison_that_never_ends() -> None:
    past = good()
    for _ in range(4):
        past.of("die", "bill", 1, "c1")
    assert broken(past, attempts=3) == set()
    past.of("die", "bill", 1, "c1")
    assert broken(past, attempts=3) == {"poison"}


def test_early() -> None:
    past = good()
    past.lines = [msgspec.structs.replace(line, due=9.0) if line.due else line for line in past.lines]
    assert broken(past) == {"early"}
    assert broken(past, steps=True) == {"early"}, "the clock was stepped, and nobody said so"
    past.add("event", detail="clock", n=1)
    assert broken(past, steps=True) == set()
