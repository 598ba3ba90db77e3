"""What is true: told by the effects of committed steps alone, and compared with the file and every process's memory.

A message is, for each group that must get it, exactly one of: ahead of the group's position, in one claim, parked,
settled. ``check`` runs after every commit; anything else raises ``Broken``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any
from zlib import crc32

import apsw
from tests.simulation.compare import Broken, Comparison, File, Ledger, Open, Stored

from tidings.kernel.message import Message
from tidings.kernel.topics import DEAD, GROUP
from tidings.kernel.transport import Ack, Delivery, Release, Settlement, Subscription
from tidings.transports._records import messages
from tidings.transports.sqlite.log import END

if TYPE_CHECKING:
    from tests.simulation.loop import Time
    from tests.simulation.process import Effect, Process

GRACE = 1e-3  # seconds that looks at the clock may take


class Oracle(Comparison):
    """The truth of one schedule."""

    def __init__(self, con: apsw.Connection, time: Time, lease: float, attempts: int) -> None:
        super().__init__(con, time)
        self.lease, self.attempts = lease, attempts
        self.high = 0  # the last number seen
        self.expected = Counter[tuple[str, bytes]]()  # appended, not yet seen in the log
        self.beats: dict[int, float] = {}
        self.members: dict[int, Process] = {}
        self.closed: set[tuple[Process, int]] = set()
        self.done = 0

    # -- after a commit --------------------------------------------------------------------------------------------

    def committed(self, process: Process, effects: list[Effect]) -> None:
        self.moved, self.closed = set(), set()
        self._expect(effects)
        fresh = self._numbered()
        for effect in effects:
            if effect.member and effect.member not in self.members:
                self.members[effect.member], self.beats[effect.member] = process, process.steps.mono
            while fresh and fresh[0] <= effect.upto:
                self._arrived(fresh.pop(0))
            self._apply(process, effect)
        for seq in fresh:
            self._arrived(seq)
        if not all(map(_idle, effects)) or process.steps.lost or self.moved:
            self.check(process)

    def check(self, process: Process) -> None:
        """Compare the truth with the file, and the memory of whoever wrote with both."""
        file = self._read()
        self._given_back(file)
        self._kept(file)
        for id, ledger in self.groups.items():
            self._located(id, ledger, file)
            self._moved(id, ledger, file.positions.get(id, {}))
        self.mirrored(process, file)

    def _numbered(self) -> list[int]:
        """New rows of the log; each was appended by somebody, once."""
        count = self.con.execute("SELECT seq FROM meta").get
        if count < self.high:
            raise Broken(f"the counter went back from {self.high} to {count}")
        fresh = self._new_rows() if count > self.high else []
        for seq in fresh:
            stored = self.stored[seq]
            entry = (stored.where, stored.message.body)
            if not self.expected[entry]:
                raise Broken(f"{seq} {entry} is in the log, and nobody's committed step put it there")
            self.expected[entry] -= 1
            if not self.expected[entry]:
                del self.expected[entry]
            if not self.high < seq <= count:
                raise Broken(f"number {seq} was given; the highest before was {self.high}, the counter says {count}")
        self.high = count
        if self.expected:
            delayed = self.con.execute("SELECT count(*) FROM delayed").get
            if (waiting := self.expected.total()) != delayed:
                lost = list(self.expected)
                raise Broken(f"{waiting} appended messages are not in the log, and {delayed} are delayed; of {lost}")
        return fresh

    def _new_rows(self) -> list[int]:
        self._look_at_channels()
        fresh = []
        newer = self.con.execute("SELECT n FROM segment WHERE last IS NULL OR last > ?", (self.high,)).fetchall()
        for table in ["dead", *(f"log_{n}" for (n,) in newer)]:
            query = f"SELECT seq, channel, slot, at, record FROM {table} WHERE seq > ?"
            for seq, channel, slot, at, record in self.con.execute(query, (self.high,)):
                (message,) = messages(record, 1)
                key = message.key
                if slot != (None if key is None else crc32(key.encode()) & 63):
                    raise Broken(f"{seq} has slot {slot}")
                where, priority = self.channels[channel]
                self.stored[seq] = Stored(where, priority, key, seq & 63 if slot is None else slot, at, message)
                fresh.append(seq)
        return sorted(fresh)

    def _arrived(self, seq: int) -> None:
        stored = self.stored[seq]
        self.retained.add(seq)
        if stored.message.deliver_at is not None and stored.message.deliver_at > self.now():
            raise Broken(f"{seq} entered the log before its time")
        for ledger in self.groups.values():
            if ledger.wants(seq, stored.where):
                ledger.open[seq] = Open()

    def _expect(self, effects: list[Effect]) -> None:
        """Note what the steps of a commit appended, before its rows are looked at."""
        for effect in effects:
            if effect.name == "publish" and effect.result is None:
                self._expect_rows(effect.arguments[0][0])
            elif effect.name == "settle":
                batch, outgoing = effect.arguments
                failed = {failure.index for failure in effect.result}
                for index, settlement in enumerate(batch):
                    if index not in failed and settlement.outgoing:
                        self._expect_rows(outgoing[index][0])

    def _expect_rows(self, rows: list[Any]) -> None:
        for (where, _), _, _, record in rows:
            (message,) = messages(record, 1)
            self.expected[where, message.body] += 1

    # -- effects -----------------------------------------------------------------------------------------------------

    def _apply(self, process: Process, effect: Effect) -> None:
        apply = getattr(self, f"_did_{effect.name.strip('_')}", None)
        self.seen[effect.name] += 1
        if apply is not None:
            apply(process, effect)

    def _did_beat(self, process: Process, effect: Effect) -> None:
        self.beats[effect.member] = max(self.beats.get(effect.member, 0.0), effect.arguments[0])

    def _did_close(self, process: Process, effect: Effect) -> None:
        self.closed.add((process, effect.arguments[0]))

    def _did_part(self, process: Process, effect: Effect) -> None:
        for member, owner in self.members.items():
            if owner is process:
                self.beats[member] = -1e9

    def _did_register(self, process: Process, effect: Effect) -> None:
        subscription, id = effect.arguments[0], effect.result
        ledger = self.groups.get(id)
        if ledger is None:
            ledger = self.groups[id] = Ledger(subscription.group, subscription.ordered)
            start = subscription.start
            first = effect.upto + 1 if start is None else self._first(start, effect.upto)
            ledger.patterns = [[subscription.pattern, first, END], [GROUP + subscription.group, 0, END]]
            for seq in [seq for seq in self._retained() if seq <= effect.upto]:
                if ledger.wants(seq, self.stored[seq].where):
                    ledger.open[seq] = Open(fresh=seq >= first)
            self.seen["created"] += 1
        if ledger.ordered != subscription.ordered:
            ledger.ordered = subscription.ordered
            self._switched(id, ledger)
        current = [entry for entry in ledger.patterns if entry[2] == END and not entry[0].startswith(GROUP)]
        if [entry[0] for entry in current] != [subscription.pattern]:
            for entry in current:
                entry[2] = effect.upto
            ledger.patterns.append([subscription.pattern, effect.upto + 1, END])
            self.seen["repatterned"] += 1

    def _first(self, start: float, upto: int) -> int:
        """The first number stored at or after ``start``."""
        return min((seq for seq in self._retained() if self.stored[seq].at >= start), default=upto + 1)

    def _switched(self, id: int, ledger: Ledger) -> None:
        self.moved.add(id)
        ledger.again |= set(ledger.done) | set(ledger.open)
        self.seen["switched"] += 1

    def _did_seek(self, process: Process, effect: Effect) -> None:
        name, start = effect.arguments
        id, ledger = next((id, ledger) for id, ledger in self.groups.items() if ledger.name == name)
        self.moved.add(id)
        retained = [seq for seq in self._retained() if seq <= effect.upto]
        first = 1 if start <= 0 else self._first(start, effect.upto)
        known = {pattern for (pattern,) in self.con.execute("SELECT pattern FROM pattern WHERE grp = ?", (id,))}
        ledger.patterns = [entry for entry in ledger.patterns if entry[2] == END or entry[0] in known]
        for entry in ledger.patterns:
            entry[1] = min(entry[1], first)
        for seq in [seq for seq, o in ledger.open.items() if o.fresh and seq < first]:
            del ledger.open[seq]  # skipped
        for seq, message in ledger.open.items():
            if seq >= max(first, retained[0] if retained else END):
                message.failures, message.due = 0, self.now()
        for seq in retained:
            if seq >= first and ledger.wants(seq, self.stored[seq].where):
                ledger.open[seq] = Open()
                ledger.done.pop(seq, None)
        self.seen["replayed"] += 1

    def _did_rename(self, process: Process, effect: Effect) -> None:
        name, to = effect.arguments
        ledger = next(ledger for ledger in self.groups.values() if ledger.name == name)
        ledger.name = to
        ledger.patterns.append([GROUP + to, 0, END])

    def _did_drop(self, process: Process, effect: Effect) -> None:
        (name,) = effect.arguments
        for id in [id for id, ledger in self.groups.items() if ledger.name == name]:
            del self.groups[id]

    def _did_claim(self, process: Process, effect: Effect) -> None:
        id, taken = effect.arguments[0], effect.result
        ledger, member = self.groups[id], effect.member
        for held, seq, message in taken.takes:
            state = self._handed(ledger, seq, message)
            if seq in ledger.again:
                continue
            if state.holder is not None:
                self._lose(id, seq, state, None)
            if state.due > self.now():
                raise Broken(f"{ledger.name}: {seq} came {state.due - self.now():.3f} s early")
            told = (held.failures, held.crashes, held.suspect)
            if told != (state.failures, state.crashes, state.suspect):
                truth = (state.failures, state.crashes, state.suspect)
                raise Broken(f"{ledger.name}: {seq} has (failures, crashes, suspect) {truth}, handed out as {told}")
            state.fresh, state.holder, state.since = False, (member, 0, held.take), process.steps.mono
            self.seen["suspect"] += state.suspect
        for seq, message in zip(taken.found.numbers, taken.found.messages, strict=True):
            state = self._handed(ledger, seq, message)
            if seq in ledger.again:
                continue
            if not state.fresh:
                raise Broken(f"{ledger.name}: {seq} was handed out before, and comes as new")
            state.fresh, state.holder, state.since = False, (member, taken.claim.id, 0), process.steps.mono

    def _handed(self, ledger: Ledger, seq: int, message: Message[Any]) -> Open:
        if seq not in ledger.open:
            if seq not in ledger.again:
                raise Broken(f"{ledger.name}: {seq} was {ledger.done.get(seq, 'not for it')}, and is handed out")
            ledger.open[seq] = Open()
            ledger.done.pop(seq, None)
        if message.body != self.stored[seq].message.body:
            raise Broken(f"{ledger.name}: {seq} was handed out as {message.body!r}")
        return ledger.open[seq]

    def _did_mark(self, process: Process, effect: Effect) -> None:
        held, seq = effect.arguments
        if effect.result and held.take and seq not in self.groups[held.group].again:
            self.groups[held.group].open[seq].running = True
            self.seen["marked"] += 1

    def _did_settle(self, process: Process, effect: Effect) -> None:
        batch, _ = effect.arguments
        failures = {failure.index: failure.kind for failure in effect.result}
        self.seen["fenced"] += sum(kind == "fenced" for kind in failures.values())
        ended: dict[int, list[int]] = defaultdict(list)
        for index, settlement in enumerate(batch):
            if index not in failures and self._settled(effect.member, process.steps.log.now, settlement):
                ended[settlement.delivery.session.group].append(settlement.delivery.token)
        for id, numbers in ended.items():
            if self.groups[id].ordered:
                self._in_order(self.groups[id], numbers)

    def _settled(self, member: int, now: float, settlement: Settlement) -> bool:
        """One settlement the file took; whether it was the message's end."""
        held: Any = settlement.delivery.session
        seq, action = settlement.delivery.token, settlement.action
        ledger = self.groups[held.group]
        state = ledger.open.get(seq)
        if seq in ledger.again:
            return self._settled_again(ledger, seq, settlement)
        if state is None:
            raise Broken(f"{ledger.name}: {seq} was {ledger.done.get(seq)}, and is settled again")
        if state.holder != (mine := (member, held.id, held.take)):
            raise Broken(f"{ledger.name}: {seq} is settled by {mine}, and held by {state.holder}")
        state.holder, state.suspect, state.running = None, False, False
        if isinstance(action, Ack):
            self._ended(ledger, seq, settlement)
            return True
        state.failures = held.failures if isinstance(action, Release) else action.failures
        state.due = now + action.delay
        self.seen[type(action).__name__] += 1
        return False

    def _settled_again(self, ledger: Ledger, seq: int, settlement: Settlement) -> bool:
        """Of a group that was switched: several may hold a message, and one end is enough."""
        if isinstance(settlement.action, Ack) and ledger.open.pop(seq, None) is not None:
            ledger.done[seq] = "settled"
        return False

    def _ended(self, ledger: Ledger, seq: int, settlement: Settlement) -> None:
        state = ledger.open.pop(seq)
        self.done += 1
        letters = [m for m in settlement.outgoing if (m.address or "").startswith(DEAD)]
        if not letters:
            ledger.done[seq] = "settled"
            return
        reason = letters[0].header("tdgreason")
        ledger.done[seq] = f"dead: {reason}"
        self.seen[f"dead: {reason}"] += 1
        failures = int(letters[0].header("tdgfailures"))
        if reason in ("failed", "crashed") and failures + state.crashes < self.attempts:
            raise Broken(f"{ledger.name}: {seq} is dead after {failures} failures and {state.crashes} crashes")

    def _in_order(self, ledger: Ledger, numbers: list[int]) -> None:
        """Of each key the lowest ends first. A switch to ordered holds for what is stored after it."""
        for seq in numbers:
            key = self.stored[seq].key
            if key is None or seq in ledger.again:
                continue
            for other in ledger.open:
                if other < seq and self.stored[other].key == key and other not in ledger.again:
                    raise Broken(f"{ledger.name}: key {key}: {seq} ended before {other}")

    # -- what went back without a settlement -----------------------------------------------------------------------

    def extended(self, member: int, delivery: Delivery, now: float) -> None:
        held: Any = delivery.session
        ledger = self.groups.get(held.group)
        state = ledger.open.get(delivery.token) if ledger else None
        if state is not None and state.holder == (member, held.id, held.take):
            state.since = now

    def _given_back(self, file: File) -> None:
        for id, ledger in self.groups.items():
            for seq, state in ledger.open.items():
                if seq in ledger.again:
                    continue
                parked = file.parked.get((id, seq))
                if state.holder is not None:
                    member, claim, take = state.holder
                    if take and parked is not None and parked[:2] == (member, take):
                        continue
                    if not take and file.claims.get((id, seq)) == (claim, member):
                        continue
                    self._lose(id, seq, state, parked)
                elif parked is not None:
                    state.fresh = False

    def _lose(self, id: int, seq: int, state: Open, parked: Any) -> None:
        """Its holder closed its consumer; or was lost, or did not extend it: then a mark is one crash."""
        assert state.holder is not None
        member, _, take = state.holder
        closed = (self.members[member], id) in self.closed
        if not closed:
            self._lawful(id, seq, state, member)
        state.crashes += state.running and not closed
        self.seen["crashed"] += state.running and not closed
        state.suspect, state.running, state.holder = not closed, False, None
        if not take:
            state.due = self.now()

    def _lawful(self, id: int, seq: int, state: Open, member: int) -> None:
        now = self.time.monotonic()
        if not self.members[member].alive or now - self.beats[member] > self.lease - GRACE:
            self.seen["expired"] += 1
            return
        if now - state.since < self.lease - GRACE and not self._follows(id, seq):
            raise Broken(f"{self.groups[id].name}: {seq} was taken from member {member}, which is well and extended it")
        self.seen["swept"] += 1

    def _follows(self, id: int, seq: int) -> bool:
        """Whether it was behind another of its key, which went back, too."""
        ledger, key = self.groups[id], self.stored[seq].key
        if not ledger.ordered or key is None:
            return False
        return any(self.stored[n].key == key and n < seq and state.suspect for n, state in ledger.open.items())

    # -- at the end --------------------------------------------------------------------------------------------------

    def subscriptions(self) -> list[Subscription]:
        """Each group as it was last registered."""
        found = []
        for ledger in self.groups.values():
            pattern = next(p for p, _, last in reversed(ledger.patterns) if last == END and not p.startswith(GROUP))
            found.append(Subscription(app="sim", pattern=pattern, group=ledger.name, ordered=ledger.ordered))
        return found

    def unsettled(self) -> dict[str, list[int]]:
        return {ledger.name: list(ledger.open) for ledger in self.groups.values() if ledger.open}

    def finish(self) -> None:
        """All that was appended is stored; nothing is held."""
        missing = +self.expected
        delayed = Counter[tuple[str, bytes]]()
        for channel, record in self.con.execute("SELECT channel, record FROM delayed"):
            (message,) = messages(record, 1)
            delayed[self.channels[channel][0], message.body] += 1
        if missing != delayed:
            raise Broken(f"appended and not in the log: {missing - delayed}; twice: {delayed - missing}")
        if left := self.unsettled():
            raise Broken(f"never settled: {left}")
        if held := self.con.execute("SELECT grp, seq FROM parked UNION ALL SELECT grp, id FROM claim").fetchall():
            raise Broken(f"settled, and still parked or claimed: {held}")
        self.weighed()


def _idle(effect: Effect) -> bool:
    """Whether a step is of the many that change nothing but a heartbeat."""
    if effect.name == "claim":
        return not effect.result.takes and not effect.result.found.numbers
    return effect.name == "beat"
