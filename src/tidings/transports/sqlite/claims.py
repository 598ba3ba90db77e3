"""Handing out and settling. Steps only, and the only ones that run for every batch of messages.

Fresh messages are claimed in stretches, one row a claim; what is settled leaves the claim's ``todo``. What fails is
parked, a row of its own, and *taken* from there. Whatever is not in ``claims`` or ``takes`` any more is fenced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import apsw
from msgspec import Struct

from tidings.kernel.errors import BusError, NoAnswerer
from tidings.kernel.message import Message
from tidings.kernel.topics import matches
from tidings.kernel.transport import Ack, Event, Failure, Release, Session, Settlement
from tidings.transports._numbers import bits, pack
from tidings.transports._points import passed
from tidings.transports._records import SLOTS, Found, Row, slot_of

from .groups import Group, Groups, Held
from .log import END, sql

PERSIST = 1000  # a position that only skipped other groups' messages is written after so many
RECHECK = 0.05  # how often claims look for dead members

Outgoing = tuple[list[Row], int, list[str]]
"""Rows, their size, and the destinations of those that want a reply."""


class Taken(Struct):
    """What a claim brought. ``more``: there may be more at once; ``due``: when something parked is next due."""

    takes: list[tuple[Held, int, Message[Any]]]
    claim: Held | None
    found: Found
    more: bool
    due: float | None


class Claims(Groups):
    """The hands of one member."""

    def claim(self, id: int, limit: int, owner: object = None) -> Taken:
        """Up to ``limit`` messages: parked ones that are due, then fresh ones, highest priority first."""
        if self.mono - self.checked > RECHECK:
            self.expire()
        self.log.flush()
        group, now = self.group(id), self.log.now
        slots = self._balance(id) if group.ordered else None
        waits = [due for due in self.value(sql("due"), {"grp": id}) if due is not None]
        parked = any(due <= now for due in waits)
        takes = self._take(group, limit, slots, owner) if parked else []
        passed("claim.taken")
        found, more = Found(), True
        if room := limit - len(takes):
            found, more = self._fresh(group, room) if slots is None else self._fresh_ordered(group, room, slots)
        claim = self._claimed(group, found, owner) if found.numbers else None
        later = "SELECT min(due) FROM parked WHERE grp = ? AND member IS NULL AND due > ?"
        return Taken(takes, claim, found, more, self.value(later, (id, now)) if parked else min(waits, default=None))

    def _claimed(self, group: Group, found: Found, owner: object) -> Held:
        numbers = found.numbers
        self.run(
            "INSERT INTO claim(grp, member, todo) VALUES (?, ?, ?)", (group.id, self.member, pack(sorted(numbers)))
        )
        id = self.con.last_insert_rowid()
        claim = self.claims[id] = Held(group.id, set(numbers), self.mono, owner, id)
        if group.ordered:
            claim.keys = {n: m.key for n, m in zip(numbers, found.messages, strict=True) if m.key is not None}
        return claim

    def _take(
        self, group: Group, limit: int, slots: dict[int, int] | None, owner: object
    ) -> list[tuple[Held, int, Message[Any]]]:
        """Parked messages; suspects one at a time: one that kills its process again takes no innocents with it."""
        solo = any(held.suspect for held in self.takes.values())
        waiting = "SELECT 1 FROM parked WHERE grp = ? AND suspect = 1 AND member IS NULL AND due <= ? LIMIT 1"
        suspects = 0 if solo else len(self.rows(waiting, (group.id, self.log.now)))
        bindings: dict[str, Any] = {"grp": group.id, "member": self.member, "now": self.log.now, "suspects": suspects}
        if slots is None:
            rows = self.rows(sql("take"), {**bindings, "limit": limit - suspects})
        else:
            flying = json.dumps([key for key in self._flying(group.id) if key is not None])
            bindings |= {"slots": bits(slots), "flying": flying, "limit": limit}
            rows = self.rows(sql("take_ordered"), bindings)
        found = self.log.fetch([row[0] for row in rows]) if rows else {}
        if len(found) < len(rows):
            raise apsw.CorruptError("a message that was parked is not in the log")
        takes = []
        for seq, take, failures, crashes, suspect in sorted(rows):
            held = self.takes[group.id, seq] = Held(group.id, {seq}, self.mono, owner)
            held.take, held.failures, held.crashes, held.suspect = take, failures, crashes, bool(suspect)
            takes.append((held, seq, found[seq]))
        return takes

    def _fresh(self, group: Group, limit: int) -> tuple[Found, bool]:
        cursors: dict[int, int] = dict(self.rows("SELECT priority, seq FROM cursor WHERE grp = ?", (group.id,)))
        found, more = Found(), False
        for priority in sorted(group.interests, reverse=True):
            if (room := limit - len(found.numbers)) == 0:
                return found, True
            cursor = cursors[priority]
            position = max(cursor, group.scanned.get(priority, 0))
            some, position = self.stretch(group, priority, position, room)
            if some.numbers or position - cursor >= PERSIST:
                query = "UPDATE cursor SET seq = ? WHERE grp = ? AND priority = ?"
                self.run(query, (position, group.id, priority))
            group.scanned[priority] = cursors[priority] = position
            found.add(some)
            more |= position < self.log.seq
        self._forget_ended(group, min((cursors[p] for p in group.interests), default=END))
        return found, more

    def _forget_ended(self, group: Group, position: int) -> None:
        """Patterns that were replaced, once all they match was handed out."""
        if 0 <= group.ended <= position:
            self.run("DELETE FROM pattern WHERE grp = ? AND last IS NOT NULL", (group.id,))
            self.renew(group.id)

    # -- ordered groups: slots, and keys that are held -----------------------------------------------------------

    def _balance(self, id: int) -> dict[int, int]:
        """My slots and their positions, an equal share; one is surrendered only when nothing of it is held."""
        members = self.value("SELECT count(*) FROM part WHERE grp = ?", (id,))
        share = -(-SLOTS // max(1, members))
        mine = "SELECT slot, seq FROM slot WHERE grp = ? AND member = ? ORDER BY slot"
        own: dict[int, int] = dict(self.rows(mine, (id, self.member)))
        if len(own) > share:
            busy = self._busy(id)
            spare = [slot for slot in own if slot not in busy][: len(own) - share]
            query = "UPDATE slot SET member = NULL WHERE grp = ? AND slot = ?"
            self.con.executemany(query, [(id, slot) for slot in spare])
            own = {slot: seq for slot, seq in own.items() if slot not in spare}
        elif len(own) < share:
            free = "SELECT slot FROM slot WHERE grp = ? AND member IS NULL LIMIT ?"
            query = f"UPDATE slot SET member = ? WHERE grp = ? AND slot IN ({free})"
            if self.run(query, (self.member, id, id, share - len(own))):
                own = dict(self.rows(mine, (id, self.member)))
        return own

    def _flying(self, id: int) -> Iterable[str | None]:
        """Keys of fresh messages in hand."""
        return (held.keys.get(seq) for held in self.claims.values() if held.group == id for seq in held.todo)

    def _busy(self, id: int) -> set[int]:
        """Slots of which this member holds a message."""
        hands = [held for held in self.claims.values() if held.group == id]
        taken = self.rows("SELECT slot FROM parked WHERE grp = ? AND member = ?", (id, self.member))
        return {slot_of(seq, held.keys.get(seq)) for held in hands for seq in held.todo} | {slot for (slot,) in taken}

    def _fresh_ordered(self, group: Group, limit: int, slots: dict[int, int]) -> tuple[Found, bool]:
        """Fresh messages of my slots; one whose key has a parked message is parked behind it."""
        if not slots or not group.interests:
            return Found(), False
        found, position = self.stretch(group, 0, min(slots.values()), limit, slots)
        query = "UPDATE slot SET seq = ? WHERE grp = ? AND member = ? AND seq < ?"
        self.run(query, (position, group.id, self.member, position))
        self._forget_ended(group, self.value("SELECT min(seq) FROM slot WHERE grp = ?", (group.id,)))
        keys = list({message.key for message in found.messages if message.key is not None})
        query = "SELECT value FROM json_each(?) WHERE EXISTS (SELECT 1 FROM parked WHERE grp = ? AND key = value)"
        held = {key for (key,) in self.rows(query, (json.dumps(keys), group.id))}
        if held:
            behind = found.only(lambda seq, message: message.key in held)
            self.park(group.id, behind.numbers, self.log.now)
            found = found.only(lambda seq, message: message.key not in held)
        return found, position < self.log.seq

    # -- settling ------------------------------------------------------------------------------------------------

    def settle(self, batch: Sequence[Settlement], outgoing: dict[int, Outgoing | Failure]) -> list[Failure]:
        """Each on its own: what is no longer ours is skipped with its output and reported."""
        acknowledged: dict[Any, list[int]] = {}
        singles: list[int] = []
        for index, settlement in enumerate(batch):
            delivery = settlement.delivery
            held = delivery.session
            if settlement.action.__class__ is Ack and not settlement.outgoing and held.__class__ is Held:
                if (numbers := acknowledged.get(held)) is None:
                    acknowledged[held] = [delivery.token]
                else:
                    numbers.append(delivery.token)
            else:
                singles.append(index)
        failures: list[Failure] = []
        for held, numbers in acknowledged.items():
            ours = self._strike(held, numbers)
            if len(ours) < len(numbers):
                failures += self._fenced(batch, held, ours)
        for index in singles:
            if failure := self._settle_one(batch[index], outgoing.get(index, ([], 0, []))):
                failures.append(Failure(index, failure.kind, failure.error))
        self._write([self.claims[id] for id in {held.id for held, _ in self.struck} if id in self.claims])
        return failures

    def holds(self, held: Session, seq: int) -> bool:
        """Whether a delivery is still ours."""
        if not isinstance(held, Held):
            return False
        if held.take:
            return self.takes.get((held.group, seq)) is held
        return held.id in self.claims and seq in self.claims[held.id].todo

    def _strike(self, held: Held, numbers: Iterable[int]) -> set[int]:
        """Take numbers off what is held; those that were there: none if it is no longer ours."""
        if held.take:
            (seq,) = held.todo or {0}
            if self.takes.get((held.group, seq)) is not held:  # lost; perhaps taken again, by ourselves
                return set()
            del self.takes[held.group, seq]
            self.woken |= self.joined if held.suspect else {held.group}
            mine = (held.group, seq, self.member, held.take)
            self.run("DELETE FROM parked WHERE grp = ? AND seq = ? AND member = ? AND take = ?", mine)
        elif held.id not in self.claims:
            return set()
        else:
            held = self.claims[held.id]
        todo = held.todo
        self.struck.append((held, todo))
        held.todo = todo.difference(numbers)
        return todo - held.todo if held.todo else todo

    def _write(self, changed: Iterable[Held]) -> None:
        """The file's side of claims, once each."""
        for claim in changed:
            if claim.take or claim.id not in self.claims:
                continue
            if claim.todo:
                self.run("UPDATE claim SET todo = ? WHERE id = ?", (pack(sorted(claim.todo)), claim.id))
            else:
                self.run("DELETE FROM claim WHERE id = ?", (claim.id,))
                del self.claims[claim.id]
            if claim.keys:
                self.woken.add(claim.group)

    @staticmethod
    def _fenced(batch: Sequence[Settlement], held: Held, struck: set[int]) -> list[Failure]:
        """Which of the batch were not ours: all of a lost claim; else those settled before, or twice."""
        failures, ours = [], set(struck)
        for index, settlement in enumerate(batch):
            delivery = settlement.delivery
            if delivery.session is held and settlement.action.__class__ is Ack and not settlement.outgoing:
                if delivery.token not in ours:
                    failures.append(Failure(index, "fenced", fenced()))
                ours.discard(delivery.token)
        return failures

    def _settle_one(self, settlement: Settlement, outgoing: Outgoing | Failure) -> Failure | None:
        held, action, seq = settlement.delivery.session, settlement.action, settlement.delivery.token
        if isinstance(outgoing, Failure):
            return outgoing
        if error := self.refused(outgoing):
            return Failure(0, "rejected", error)
        if not isinstance(held, Held) or not self._strike(held, [seq]):
            return Failure(0, "fenced", fenced())
        passed("settle.struck")
        if isinstance(action, Release):
            self._park_again(held, seq, action.delay, held.failures, "")
        elif not isinstance(action, Ack):
            self._park_again(held, seq, action.delay, action.failures, action.why)
        if outgoing[0]:
            self.log.append(outgoing[0], outgoing[1], bounded=False)
        return None

    def _park_again(self, held: Held, seq: int, delay: float, failures: int, why: str) -> None:
        self.park(held.group, [seq], self.log.now + delay, failures=failures, why=why)
        if held.take:
            query = "UPDATE parked SET take = ?, crashes = ? WHERE grp = ? AND seq = ?"
            self.run(query, (held.take, held.crashes, held.group, seq))

    def mark(self, held: Held, seq: int) -> bool:
        """A suspect's handler is about to start: if this process dies now, that is one crash."""
        if not held.take:
            return held.id in self.claims and seq in held.todo
        mine = (held.group, seq, self.member, held.take)
        return (
            self.run("UPDATE parked SET running = 1 WHERE grp = ? AND seq = ? AND member = ? AND take = ?", mine) == 1
        )

    # -- giving back ---------------------------------------------------------------------------------------------

    def _give_back(self, held: Held, numbers: Iterable[int], *, suspect: int) -> int:
        """To the group: uncounted; or as suspect, and what had been started as one crash."""
        if held.take:
            (seq,) = held.todo
            del self.takes[held.group, seq]
            query = (
                "UPDATE parked SET member = NULL, crashes = crashes + running * ?, running = 0, suspect = ?"
                " WHERE grp = ? AND seq = ? AND member = ? AND take = ?"
            )
            self.run(query, (suspect, suspect, held.group, seq, self.member, held.take))
            self.woken |= self.joined
            self.lost.append(held)
            return 1
        back = self._strike(held, numbers)
        self.park(held.group, sorted(back), self.log.now, suspect=suspect)
        self._write([held])
        self.lost.append(held)
        if held.todo:
            heir = self.claims[held.id] = Held(held.group, held.todo, held.born, held.owner, held.id)
            heir.keys, heir.seen = held.keys, held.seen
        return len(back)

    def sweep(self, at: float) -> None:
        """What its holder did not extend for one lease goes back to its group, as suspect; so does what follows it."""
        late, count, stale, keys = at - self.lease, 0, dict[Held, set[int]](), set[tuple[int, str | None]]()
        for held in [*self.claims.values(), *self.takes.values()]:
            stale[held] = {n for n in held.todo if held.born < late and held.seen.get(n, 0.0) < late}
            keys |= {(held.group, held.keys[n]) for n in stale[held] if n in held.keys}
        for held, numbers in stale.items():
            if held.keys and keys:
                numbers |= {n for n in held.todo if (held.group, held.keys.get(n)) in keys}
            if numbers:
                count += self._give_back(held, numbers, suspect=1)
        if count:
            self.events.append(Event("recovered", count, "this process did not extend what it held for one lease"))

    def close(self, id: int, owner: object, last: bool) -> None:
        """A consumer ends: what it holds is for others."""
        for held in [*self.claims.values(), *self.takes.values()]:
            if held.owner is owner:
                self._give_back(held, held.todo, suspect=0)
        passed("close.given")
        if last:
            self.leave(id)

    def part(self) -> None:
        """This member is gone, of its own will. What was not closed with its consumer keeps its lease: it may run."""
        if not self.claims and not self.takes:
            self.run(sql("expire"), {"member": self.member})
        self.member = 0

    # -- publishing ----------------------------------------------------------------------------------------------

    def publish(self, outgoing: Outgoing) -> BaseException | None:
        """All or none: the reason if none."""
        error = self.refused(outgoing)
        if error is None:
            self.log.append(outgoing[0], outgoing[1])
        return error

    def refused(self, outgoing: Outgoing) -> BaseException | None:
        """A message that wants a reply needs somebody who would receive it."""
        for topic in outgoing[2]:
            self.expire()
            query = (
                "SELECT pattern FROM pattern p WHERE last IS NULL AND (pattern = ? OR pattern GLOB '*[*>]*')"
                " AND EXISTS (SELECT 1 FROM part WHERE part.grp = p.grp)"
            )
            if not any(matches(pattern, topic) for (pattern,) in self.rows(query, (topic,))):
                return NoAnswerer(f"nobody answers {topic!r}", mend="start the app that answers it")
        return None


def fenced() -> BusError:
    return BusError("this delivery is no longer ours", why="its lease was lost, or it was settled before")
