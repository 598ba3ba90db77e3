"""Judges a history: what must hold whatever was done to the processes.

========== ============================================================================================================
nothing    something was accepted, and the evidence that the scenario expects is there: else the run is inconclusive
missed     and every fail point that was armed was passed
stuck      the run came to its end
lost       each accepted message was handled to the end by every group, or is in the dead letters where it belongs
           (of a run that was stuck: only if the bus has nothing left)
invented   nothing was handled that nobody tried to publish
order      in ordered groups the messages of a key end, each for the first time, in the order of publishing
overlap    and never two of a key at once; several keys at once were seen, or the run is inconclusive
repeated   a message ends twice only if the process of one of its ends lost it: was killed, frozen, silent for a lease;
           or was handling it past the timeout
fenced     and only such a process meets a fence
duplicates and not more often than ``concurrency + 512`` in each group of each such process
committed  no message was settled twice in a group: what was settled is not delivered again, and a lost one is fenced
chain      what a handler returned is downstream once, with its derived id (where settlements are atomic)
letters    dead letters are there once, with reason, counts and the original body; of messages that deserve it only
poison     what kills its process runs at most once more than it has attempts
early      nothing that was delayed came early, unless the clock was stepped and the bus reported it
========== ============================================================================================================

Pure: the same history, the same verdict.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from msgspec import Struct

from tidings.kernel.settling import UNFLUSHED

from .history import Line
from .scenario import Body, Group, Scenario

MOST = 5  # violations of a rule that are printed

Who = tuple[str, int]
"""A process: its name and pid."""


class Violation(Struct, frozen=True):
    """A rule, and what was seen instead."""

    rule: str
    what: str


class Verdict(Struct, kw_only=True):
    """What the checker found. ``recovered``: seconds until all that lost processes had in hand was settled."""

    violations: list[Violation]
    accepted: int
    ended: int
    lost: int
    duplicated: int
    bound: int
    disorder: int
    recovered: float | None
    evidence: Counter[str]

    @property
    def held(self) -> bool:
        return not self.violations

    def of(self, *rules: str) -> list[Violation]:
        return [violation for violation in self.violations if violation.rule in rules]

    def __str__(self) -> str:
        seen = ", ".join(f"{count} {what}" for what, count in sorted(self.evidence.items()))
        rules = dict.fromkeys(violation.rule for violation in self.violations)
        broken = [f"  {v.rule}: {v.what}" for rule in rules for v in self.of(rule)[:MOST]]
        told = (
            f"{self.accepted} accepted, {self.ended} handled, {self.duplicated} of {self.bound} repeated; seen: {seen}"
        )
        return "\n".join([told, *broken])


class Facts:
    """A history, looked at from the sides the rules need."""

    def __init__(self, lines: Sequence[Line], scenario: Scenario) -> None:
        self.lines, self.scenario = lines, scenario
        self.groups = {group.full for group in scenario.groups}
        self.by = defaultdict[str, list[Line]](list)
        for line in lines:
            self.by[line.what].append(line)
        self.tried = {line.id: line for line in self.by["try"]}
        self.accepted = {line.id: line for line in self.by["accepted"]}
        self.ends = defaultdict[tuple[str, str], list[Line]](list)  # by group and id
        for line in self.by["end"]:
            self.ends[line.group, line.id].append(line)
        self.shaken = self._shaken()
        self.stretches = {group.full: _stretches(lines, group) for group in scenario.groups}
        self.overdue = self._overdue()
        self.feeder = {group.to: group for group in scenario.groups if group.to}

    def _shaken(self) -> dict[Who, float]:
        """Processes that may have lost what they had in hand, and since when: 0, if nobody can tell.

        A fence that is no group's is the process's own: all that it had went to others, for it was silent for a lease.
        """
        found: dict[Who, float] = {}
        for line in self.lines:
            hurt = line.what == "fault" or (line.what == "exited" and line.n)
            silent = line.what == "event" and line.detail == "fenced" and line.why not in self.groups
            vague = silent or (line.what == "armed" and ("=stop" in line.detail or "=stall" in line.detail))
            if hurt or vague:
                who = (line.process, line.pid)
                found[who] = min(found.get(who, line.at), 0.0 if vague else line.at)
        return found

    def _overdue(self) -> set[tuple[Who, str, str, float]]:
        """Ends of handlers that ran past their timeout, so that their message was given to others."""
        return {
            ((begin.process, begin.pid), begin.group, begin.id, stretch.end)
            for group in self.scenario.groups
            for stretch in self.stretches[group.full]
            if stretch.end - (begin := stretch.begin).at > group.timeout
        }

    def copies(self, group: str, id: str) -> int:
        """How often a message may be there, unless ``atomic``.

        Once more for each process that was hurt with it in hand: after the copy that goes back, before the settlement.
        And an output once for each time its input was handled.
        """
        if self.scenario.atomic:
            return 1
        times = 1 + len(
            {
                who
                for line in self.by["received"]
                if (who := (line.process, line.pid)) in self.shaken and (line.group, line.id) == (group, id)
            }
        )
        topics = {each.full: each.topic for each in self.scenario.groups}
        feeder = self.feeder.get(topics.get(group, ""))
        if feeder is None:
            return times
        number = next((line.n for line in self.by["begin"] if (line.group, line.id) == (group, id)), -1)
        return max(times, len(self.ends[feeder.full, self.scenario.reaches(feeder, number)]))

    def forgotten(self, settled: Line) -> bool:
        """Whether the broker was killed before it had stored a settlement, which it stores a ``lapse`` later."""
        lapse, slack = self.scenario.lapse, 0.5
        return lapse > 0 and any(-slack <= fault.at - settled.at <= lapse + slack for fault in self.by["fault"])

    def owned(self, stretch: Stretch) -> bool:
        """Whether its process surely still had the message when its handler ended."""
        who = (stretch.begin.process, stretch.begin.pid)
        hung = (who, stretch.begin.group, stretch.begin.id, stretch.end) in self.overdue
        return not hung and (who not in self.shaken or stretch.end < self.shaken[who])

    def expected(self, group: Group, lines: Iterable[Line]) -> dict[str, Line]:
        """What of these publishes reaches a group, by the id it has there."""
        found = ((self.scenario.reaches(group, line.n), line) for line in lines)
        return {id: line for id, line in found if id}


def judge(lines: Sequence[Line], scenario: Scenario) -> Verdict:
    """The verdict on a run."""
    facts = Facts(lines, scenario)
    seen = evidence(facts)
    duplicated, bound = _duplicates(facts)
    found = [
        *_inconclusive(facts, seen),
        *_missed(facts),
        *_invented(facts),
        *_committed(facts),
        *_repeated(facts),
        *_fenced(facts),
        *_poison(facts),
        *_early(facts),
    ]
    lost = [violation for group in scenario.groups for violation in _lost(facts, group)]
    stuck = list(_stuck(facts, lost))
    lost = [] if stuck and facts.by["stuck"][0].n else lost
    disorder = [
        violation for group in scenario.groups for violation in (*_order(facts, group), *_overlap(facts, group))
    ]
    found += [*stuck, *lost, *disorder]
    if duplicated > bound:
        found.append(Violation("duplicates", f"{duplicated} messages ended again, {bound} may"))
    if scenario.peek:
        found += [
            violation for group in scenario.groups for violation in (*_chain(facts, group), *_letters(facts, group))
        ]
    return Verdict(
        violations=found,
        accepted=len(facts.accepted),
        ended=len(facts.by["end"]),
        lost=len(lost),
        duplicated=duplicated,
        bound=bound,
        disorder=len(disorder),
        recovered=_recovered(facts),
        evidence=seen,
    )


# -- whether anything happened


def evidence(facts: Facts) -> Counter[str]:
    """What shows that faults took place: how often each was seen.

    Of processes: ``killed`` (by SIGKILL), ``died`` (any other unclean exit), ``ended``, ``frozen``, ``thawed``,
    ``terminated``, ``members`` (those that handled something). Of messages: ``fenced`` and ``released`` settlements,
    ``suspects`` delivered, ``repeated`` handling, ``failed`` attempts, ``overdue`` ones, ``letters``, ``keys at once``.
    Events of the bus are ``bus clock``; a nemesis may note others.
    """
    seen = Counter[str]()
    for line in facts.by["exited"]:
        seen["killed" if line.n == -9 else "died" if line.n else "ended"] += 1
    for line in (*facts.by["fault"], *facts.by["action"]):
        seen[line.detail] += line.detail != "killed"
    for line in facts.by["event"]:
        seen[f"bus {line.detail}"] += 1
    told = sum(line.n for line in facts.by["total"] if line.detail == "fenced")  # the worker drops some by itself
    seen["fenced"] = max(told, sum(line.detail == "fenced" for line in facts.by["unsettled"]))
    seen["released"] = sum(line.detail == "release" for line in facts.by["settled"])
    seen["suspects"] = sum(line.detail == "suspect" for line in facts.by["received"])
    seen["repeated"] = sum(len(ends) > 1 for ends in facts.ends.values())
    sent = (
        facts.by["letter"] if facts.scenario.peek else [line for line in facts.by["settled"] if line.detail == "dead"]
    )
    seen["failed"], seen["letters"] = len(facts.by["fail"]), len(sent)
    seen["overdue"] = len(facts.overdue)
    seen["members"] = len({(line.process, line.pid) for line in facts.by["end"]})
    seen["keys at once"] = max((_keys_at_once(facts, group) for group in facts.scenario.groups), default=0)
    return +seen


def _inconclusive(facts: Facts, seen: Counter[str]) -> Iterator[Violation]:
    if not facts.accepted:
        yield Violation("nothing", "nothing was accepted")
    for wanted in facts.scenario.expects:
        if not seen[wanted]:
            yield Violation("nothing", f"no evidence of {wanted!r}, only of {', '.join(sorted(seen)) or 'nothing'}")
    for group in facts.scenario.groups:
        if group.ordered and _keys_at_once(facts, group) < 2:
            yield Violation("nothing", f"{group.full} never had two keys in hand at once")


def _missed(facts: Facts) -> Iterator[Violation]:
    """Also the plans of lives that a process never had."""
    plans = [(name, plan) for name, lives in facts.scenario.points.items() for plan in lives]
    plans += [(line.process, line.detail) for line in facts.by["armed"]]
    armed = {(name, part.partition("=")[0]) for name, plan in plans for part in plan.split()}
    for name, point in sorted(armed - {(line.process, line.detail) for line in facts.by["point"]}):
        yield Violation("missed", f"{name} was never at {point}")


# -- nothing lost, nothing invented


def _stuck(facts: Facts, lost: Sequence[Violation]) -> Iterator[Violation]:
    """What a bus still has when the time is over is late, not lost."""
    for line in facts.by["stuck"]:
        left = f"the bus has {line.n} left" if line.n >= 0 else "nobody knows what the bus has left"
        yield Violation("stuck", f"{line.why}; {left}; {len(lost)} not handled: {'; '.join(v.what for v in lost[:3])}")


def _lost(facts: Facts, group: Group) -> Iterator[Violation]:
    buried = {line.id for line in facts.by["letter"] if line.group == group.full}
    for id, line in facts.expected(group, facts.accepted.values()).items():
        dead = facts.scenario.dead(group.name, line.n)
        if not facts.ends[group.full, id] and not dead:
            where = "lies in the dead letters" if id in buried else "was accepted and never handled"
            yield Violation("lost", f"{group.full}: {id} (number {line.n}) {where}")
        if dead and facts.scenario.peek and id not in buried:
            yield Violation("lost", f"{group.full}: {id} (number {line.n}) is not in the dead letters")


def _invented(facts: Facts) -> Iterator[Violation]:
    for group in facts.scenario.groups:
        known = facts.expected(group, facts.tried.values())
        for id in {line.id for line in facts.by["begin"] if line.group == group.full} - known.keys():
            yield Violation("invented", f"{group.full}: {id} was handled, and nobody published it")


# -- order


def _order(facts: Facts, group: Group) -> Iterator[Violation]:
    feeder = facts.feeder.get(group.topic)
    if not group.ordered or not (feeder is None or feeder.ordered):
        return
    last: dict[str | None, tuple[float, int]] = {}
    for id, line in sorted(facts.expected(group, facts.accepted.values()).items(), key=lambda pair: pair[1].n):
        ends = facts.ends[group.full, id]
        if not ends or facts.scenario.is_delayed(line.n):
            continue
        before, earlier = last.get(line.key, (0.0, -1))
        if ends[0].at < before:
            yield Violation("order", f"{group.full}: of key {line.key} number {line.n} ended before number {earlier}")
        last[line.key] = max((before, earlier), (ends[0].at, line.n))


class Stretch(Struct, frozen=True):
    """One handler's time with one message."""

    begin: Line
    end: float


def _stretches(lines: Sequence[Line], group: Group) -> list[Stretch]:
    """Begun and finished, in the order of beginning. What its process did not live to finish is left out."""
    running: dict[tuple[Who, str], Line] = {}
    found = []
    for line in lines:
        if line.group != group.full:
            continue
        where = ((line.process, line.pid), line.id)
        if line.what == "begin":
            running[where] = line
        elif line.what in ("end", "fail", "reject") and where in running:
            found.append(Stretch(running.pop(where), line.at))
    return sorted(found, key=lambda stretch: stretch.begin.at)


def _overlap(facts: Facts, group: Group) -> Iterator[Violation]:
    """Of two at once one must belong to a process that had lost it. Groups without order: within a process only."""
    if group.batch:
        return
    latest: dict[tuple[str | None, Who | None], Stretch] = {}
    for stretch in facts.stretches[group.full]:
        begin = stretch.begin
        if not facts.owned(stretch):
            continue
        lane = (begin.key, None if group.ordered else (begin.process, begin.pid))
        before = latest.get(lane)
        if before is not None and before.end > begin.at:
            yield Violation(
                "overlap", f"{group.full}: {begin.id} began while {before.begin.id} of {begin.key} was running"
            )
        if before is None or stretch.end > before.end:
            latest[lane] = stretch


def _keys_at_once(facts: Facts, group: Group) -> int:
    edges = [(s.begin.at, 1, s.begin.key) for s in facts.stretches[group.full]]
    edges += [(s.end, -1, s.begin.key) for s in facts.stretches[group.full]]
    most, running = 0, Counter[str | None]()
    for _, step, key in sorted(edges, key=lambda edge: edge[:2]):
        running[key] += step
        most = max(most, len(+running))
    return most


# -- not too often


def _duplicates(facts: Facts) -> tuple[int, int]:
    duplicated = sum(len(ends) - 1 for ends in facts.ends.values())
    workers = {(line.process, line.pid) for line in (*facts.by["received"], *facts.by["begin"])}
    each = sum(group.concurrency * max(1, group.batch) + UNFLUSHED for group in facts.scenario.groups)
    return duplicated, each * len(workers & facts.shaken.keys()) + len(facts.overdue)


def _repeated(facts: Facts) -> Iterator[Violation]:
    for (group, id), ends in facts.ends.items():
        hung = {at for _, *what, at in facts.overdue if what == [group, id]}
        sound = [line for line in ends if (line.process, line.pid) not in facts.shaken and line.at not in hung]
        if len(sound) > 1 and len(sound) > facts.copies(group, id):
            where = ", ".join(line.process for line in sound)
            yield Violation("repeated", f"{group}: {id} ended {len(sound)} times in processes without a fault: {where}")


def _fenced(facts: Facts) -> Iterator[Violation]:
    hung = {(who, group) for who, group, *_ in facts.overdue}
    for line in (*facts.by["unsettled"], *facts.by["total"]):
        who = (line.process, line.pid)
        if line.detail == "fenced" and who not in facts.shaken and (who, line.group) not in hung:
            what = f"{line.group}: {line.id or line.n} of {line.process}, which had no fault"
            yield Violation("fenced", f"{what}, was given to somebody else")


def _poison(facts: Facts) -> Iterator[Violation]:
    for (group, id), runs in Counter((line.group, line.id) for line in facts.by["die"]).items():
        if runs > facts.scenario.attempts + 1:
            yield Violation("poison", f"{group}: {id} killed {runs} processes")


def _committed(facts: Facts) -> Iterator[Violation]:
    done = defaultdict[tuple[str, str], list[Line]](list)
    for line in facts.by["settled"]:
        if line.detail not in ("ack", "dead"):
            continue
        before = done[line.group, line.id]
        if before and len(before) >= facts.copies(line.group, line.id) and not facts.forgotten(before[-1]):
            yield Violation(
                "committed",
                f"{line.group}: {line.id} was settled by {before[-1].process} and {line.at - before[-1].at:.3f} s "
                f"later by {line.process}, which had it from before or was given it again",
            )
        before.append(line)


# -- outputs and dead letters


def _chain(facts: Facts, group: Group) -> Iterator[Violation]:
    """What is stored on the topic that a group's handler feeds."""
    if not group.to:
        return
    stored = Counter(line.id for line in facts.by["stored"] if line.group == group.to)
    target = Group(name="", topic=group.to)
    for id, line in facts.expected(target, facts.accepted.values()).items():
        if not stored[id]:
            yield Violation("chain", f"the output of number {line.n} is not on {group.to}")
        elif stored[id] > 1 and facts.scenario.atomic:
            yield Violation("chain", f"the output of number {line.n} is on {group.to} {stored[id]} times")
    for id in stored.keys() - facts.expected(target, facts.tried.values()).keys():
        yield Violation("chain", f"{id} on {group.to} is nobody's output")


def _letters(facts: Facts, group: Group) -> Iterator[Violation]:
    letters = [line for line in facts.by["letter"] if line.group == group.full]
    known = facts.expected(group, facts.tried.values())
    counts = Counter(line.id for line in letters)
    for line in letters:
        origin, told = known.get(line.id), msgspec.json.decode(line.detail, type=Letter)
        wanted = facts.scenario.dead(group.name, origin.n) if origin else ""
        what = f"{group.full}: the dead letter of {line.id}"
        if origin is None or not wanted:
            yield Violation("letters", f"{what} ({told.reason}) is of a message that could be handled")
            continue
        if counts[line.id] > 1 and facts.scenario.atomic:
            yield Violation("letters", f"{what} is there {counts[line.id]} times")
        if told.reason not in (wanted, *(("crashed",) if wanted == "failed" else ())):
            yield Violation("letters", f"{what} says {told.reason!r}, not {wanted!r}")
        if wanted in ("crashed", "failed") and told.failures + told.crashes < facts.scenario.attempts:
            yield Violation("letters", f"{what} counts {told.failures} failures and {told.crashes} crashes")
        if told.n != origin.n or line.key != origin.key:
            yield Violation("letters", f"{what} has another body or key: {told.n}, {line.key}")


class Letter(Struct, frozen=True):
    """What a dead letter says; ``n`` is read from its body."""

    reason: str
    failures: int
    crashes: int
    n: int


def letter_of(headers: dict[str, str], body: bytes) -> Letter:
    n = msgspec.json.decode(body, type=Body).n
    return Letter(headers["tdgreason"], int(headers["tdgfailures"]), int(headers["tdgcrashes"]), n)


# -- delays, and how fast things went on


def _early(facts: Facts) -> Iterator[Violation]:
    due = {line.id: line.due for line in facts.by["try"] if line.due}
    stepped = facts.scenario.steps and any(line.detail == "clock" for line in facts.by["event"])
    for line in facts.by["begin"]:
        early = due.get(line.id, 0.0) - facts.scenario.resolution - line.wall
        if early > 0 and not stepped:
            yield Violation("early", f"{line.group}: {line.id} came {early:.3f} s early")


def _recovered(facts: Facts) -> float | None:
    """What each shaken process had received and not settled when it was hurt: until somebody settled the last of it."""
    settled = defaultdict[tuple[str, str], list[Line]](list)
    for line in facts.by["settled"]:
        if line.detail in ("ack", "dead"):
            settled[line.group, line.id].append(line)
    longest: float | None = None
    for line in facts.lines:
        if line.what == "fault" or (line.what == "exited" and line.n):
            for at in _settled_after(facts, line, settled):
                longest = max(longest or 0.0, at - line.at)
    return longest


def _settled_after(facts: Facts, hurt: Line, settled: dict[tuple[str, str], list[Line]]) -> Iterator[float]:
    for line in facts.by["received"]:
        if (line.process, line.pid) == (hurt.process, hurt.pid) and line.at <= hurt.at:
            ends = settled.get((line.group, line.id), ())
            if all(end.at > hurt.at for end in ends):
                yield from (end.at for end in ends[:1])
