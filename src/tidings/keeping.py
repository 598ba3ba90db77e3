"""A consumer whose handlers keep records: it settles what they handled together with what they wrote.

It stands between a worker and its transport's consumer, and knows of each delivery which run handled it. On a store of
its own bus, records, messages and settlement are one transaction. Elsewhere the store commits first, with a note for
each message that it was handled, and the bus is told afterwards: a message that comes again finds the note, and has no
effect a second time. Runs see what earlier runs of this process wrote before it is committed; if that fails, what was
built on it fails, too, and everything runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec.structs import replace

from .between import Between
from .kernel.clock import Clock
from .kernel.codec import Decode
from .kernel.errors import BusError, Conflict, Skip
from .kernel.handler import Emit, Handler, Many, One, Outcome, Outgoing, batch
from .kernel.transport import ACK, Consumer, Delivery, Failure, Settlement
from .relay import Way
from .state import Pending, Place, State
from .store import ABSENT, Atomic, Record, Store, Unit, Write, new_version

INBOX, REMEMBERED = "_inbox", 7 * 86400.0  # seconds that a note of a handled message is kept
PURGE_EVERY, PURGE = 10.0, 10_000  # seconds; records at once
TRIES = 1000  # runs of one delivery beside others of this process that change the same records


class Keeper(Between):
    """The state of one subscription."""

    atomic: bool  # whether it commits records itself

    def __init__(self, group: str, store: Store, way: Way, clock: Clock) -> None:
        self.group, self.store, self.way, self.clock = group, store, way, clock
        self.pending: Pending = {}
        self.running: dict[int, State] = {}  # by the identity of a delivery that is handled
        self.handled: dict[int, State] = {}  # and of one that was, and is not yet settled
        self.expiring: set[str] = set()
        self.foresee: Callable[[Sequence[Delivery]], Sequence[Place]] | None = None  # what will be read, one each
        self.ahead: dict[Place, Record | None] = {}  # read when it was received, until it is used or changed
        self.purged = clock.monotonic()

    def put(self, consumer: Consumer) -> Consumer:
        self.atomic = isinstance(consumer, Atomic)
        return super().put(consumer)

    # -- around a handler

    def around(self, handler: Handler) -> Handler:
        """The handler with a state for each run: outermost, so that its middleware has it, too."""
        one, many = handler.one, handler.many
        return replace(handler, one=one and self._one(one), many=many and self._many(many), between=self.put)

    def state_of(self, delivery: Delivery) -> State:
        """The state of the run that handles a delivery."""
        return self.running[id(delivery)]

    def _one(self, one: One) -> One:
        async def keeping(delivery: Delivery) -> Outgoing:
            for _ in range(TRIES):
                state = self._begin((delivery,))
                try:
                    outgoing = await one(delivery)
                    if any(message.header("tdgreply") == "error" for message in outgoing):
                        return outgoing  # an answerer that failed has written nothing
                    if state.stage():
                        self.handled[id(delivery)] = state
                        return outgoing
                finally:
                    del self.running[id(delivery)]
            raise BusError(f"{self.group}: its records are changed by others of this process all the time")

        return keeping

    def _many(self, many: Many) -> Many:
        async def keeping(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            for _ in range(TRIES):
                state, again = self._begin(deliveries), [] if self.atomic else self._repeated(deliveries)
                try:
                    outcomes = await (many(deliveries) if not again else self._once(many, deliveries, again))
                    good = [d for d, o in zip(deliveries, outcomes, strict=True) if not isinstance(o, BaseException)]
                    if not good:
                        return outcomes  # and what was written goes with it
                    if state.stage():
                        state.deliveries = good
                        self.handled.update((id(delivery), state) for delivery in good)
                        return outcomes
                finally:
                    for delivery in deliveries:
                        del self.running[id(delivery)]
            raise BusError(f"{self.group}: its records are changed by others of this process all the time")

        return keeping

    @staticmethod
    def _repeated(deliveries: Sequence[Delivery]) -> list[int]:
        """Which of them came before in the same batch: of each message there is one note."""
        ids, again = set[str](), list[int]()
        for index, delivery in enumerate(deliveries):
            if delivery.message.id in ids:
                again.append(index)
            ids.add(delivery.message.id)
        return again

    @staticmethod
    async def _once(many: Many, deliveries: Sequence[Delivery], again: Sequence[int]) -> Sequence[Outcome]:
        outcomes = list(await many([d for index, d in enumerate(deliveries) if index not in again]))
        for index in again:
            outcomes.insert(index, Skip("it came twice in one batch"))
        return outcomes

    def _begin(self, deliveries: Sequence[Delivery]) -> State:
        state = State(self.store, self.pending, deliveries, self.ahead)
        for delivery in deliveries:
            self.running[id(delivery)] = state
            self.handled.pop(id(delivery), None)
        return state

    def batch(self, fn: Callable[..., Any], name: str, decode: Decode, emit: Emit, *, whole: bool) -> Many:
        """A batch handler that takes its state by ``name``."""

        async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            with_state = partial(fn, **{name: self.state_of(deliveries[0])})
            return await batch(with_state, decode, emit, whole=whole)(deliveries)

        return many

    # -- the consumer's side

    async def receive(self, limit: int) -> Sequence[Delivery]:
        deliveries = await super().receive(limit)
        if deliveries and self.foresee is not None:
            with suppress(Exception):  # what was received is not to be lost for it: each run finds out by itself
                await self._look_ahead(self.foresee(deliveries))
        return deliveries

    async def _look_ahead(self, places: Sequence[Place]) -> None:
        for name in {name for name, _ in places}:
            keys = [key for table, key in places if table == name]
            found = {record.key: record for record in await self.store.records(name, keys)}
            self.ahead.update(((name, key), found.get(key)) for key in keys)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        """Each run with its records, whole or not at all; what was not handled, or kept nothing, on its own."""
        runs: dict[int, tuple[State, list[int]]] = {}
        alone: list[int] = []
        for index, settlement in enumerate(settlements):
            state = self.handled.get(id(settlement.delivery))
            if state is None or settlement.action is not ACK:
                alone.append(index)
            else:
                runs.setdefault(id(state), (state, []))[1].append(index)
        whole = [run for run in runs.values() if len(run[1]) == len(run[0].deliveries)]
        broken = [run for run in runs.values() if len(run[1]) < len(run[0].deliveries)]
        commit = self._atomically if self.atomic else self._first_the_store
        failures = await commit(settlements, whole, alone)
        for _, indices in broken:  # one of them is not ours any more
            lost = BusError("another message of its batch was lost")
            failures += [Failure(index, "unknown", lost) for index in indices]
        failed = {failure.index for failure in failures}
        for state, indices in (*whole, *broken):
            done = failed.isdisjoint(indices)
            self._forget(state, done=done)
            self.expiring |= state.expiring() if done else set()
        for settlement in settlements:
            state = self.handled.pop(id(settlement.delivery), None)
            if state is not None and settlement.action is not ACK:
                self._forget(state, done=False)
        self._drop_lost()
        if self.clock.monotonic() - self.purged > PURGE_EVERY:
            await self._purge()
        return failures

    def _drop_lost(self) -> None:
        """Runs of which a message was lost before it was settled will not be committed: nobody is to build on them."""
        for state in {id(state): state for state in self.handled.values()}.values():
            gone = [delivery for delivery in state.deliveries if not delivery.session.alive]
            if gone and not state.lost:
                state.lost = True
                self._forget(state, done=False)
            for delivery in gone:  # the worker does not settle it; others of its batch it may
                self.handled.pop(id(delivery), None)

    def _forget(self, state: State, *, done: bool) -> None:
        """From now on the store says what is there. What was built on a write that was not done cannot be done either;
        runs that have read what is not there any more begin anew."""
        runs = {id(run): run for run in self.running.values()}.values() if self.running else ()
        for write in state.writes:
            place = write.table, write.key
            self.ahead.pop(place, None)
            newest, _ = self.pending.get(place, (None, None))
            if newest is write or not done:
                self.pending.pop(place, None)
            if runs and (newest is write or newest is None or not done):
                for run in runs:
                    run.left_behind(place, write.leaves if done else None)

    async def _atomically(
        self, settlements: Sequence[Settlement], runs: Sequence[tuple[State, list[int]]], alone: Sequence[int]
    ) -> list[Failure]:
        order = [index for _, indices in runs for index in indices] + list(alone)
        ours = [self._routed(settlements[index]) for index in order]
        units, at = [], 0
        for state, indices in runs:
            units.append(Unit(state.writes, (), ours[at : at + len(indices)]))
            at += len(indices)
        units += [Unit((), (), (settlement,)) for settlement in ours[at:]]
        failed = await self.consumer.commit(units)  # type: ignore[attr-defined]
        return [Failure(order[failure.index], failure.kind, failure.error) for failure in failed]

    def _routed(self, settlement: Settlement) -> Settlement:
        if not settlement.outgoing:
            return settlement
        return Settlement(settlement.delivery, settlement.action, tuple(self.way.route(settlement.outgoing)))

    async def _first_the_store(
        self, settlements: Sequence[Settlement], runs: Sequence[tuple[State, list[int]]], alone: Sequence[int]
    ) -> list[Failure]:
        fresh = [run for run in runs if not run[0].committed]
        units = [self._noted(state, [settlements[index] for index in indices]) for state, indices in fresh]
        refused = {failure.index: failure for failure in await self.store.commit(units)} if units else {}
        failures: dict[int, Failure] = {}
        for number, (state, indices) in enumerate(fresh):
            if number in refused:
                failures |= await self._refused(refused[number], settlements, indices)
            else:
                state.committed = True
        stored = [index for _, indices in runs for index in indices if index not in failures]
        mine = [Settlement(settlements[index].delivery) for index in stored] + [settlements[index] for index in alone]
        failed = await self.consumer.settle(mine) if mine else ()
        order = [*stored, *alone]
        return [*failures.values(), *(Failure(order[f.index], f.kind, f.error) for f in failed)]

    def _noted(self, state: State, settlements: Sequence[Settlement]) -> Unit:
        """What a run did, and that it was done."""
        if not state.writes and not any(settlement.outgoing for settlement in settlements):
            return Unit()
        until, version = self.clock.now() + REMEMBERED, new_version()
        notes = [Write(INBOX, self._note(s.delivery), b"", ABSENT, until, version) for s in settlements]
        self.expiring.add(INBOX)
        return Unit([*notes, *state.writes], self.way.route(m for s in settlements for m in s.outgoing))

    def _note(self, delivery: Delivery) -> str:
        return f"{self.group}/{delivery.message.id}".replace("\0", " ")

    async def _refused(
        self, failure: Failure, settlements: Sequence[Settlement], indices: Sequence[int]
    ) -> dict[int, Failure]:
        """What becomes of a run that the store did not take: messages that were handled before are done."""
        if not isinstance(failure.error, Conflict):
            return {index: Failure(index, failure.kind, failure.error) for index in indices}
        notes = {index: self._note(settlements[index].delivery) for index in indices}
        known = {record.key for record in await self.store.records(INBOX, list(notes.values()))}
        return {index: Failure(index, "unknown", failure.error) for index, note in notes.items() if note not in known}

    async def _purge(self) -> None:
        """What has expired."""
        self.purged = self.clock.monotonic()
        self.ahead.clear()  # of what was given back before it ran
        with suppress(BusError):  # it was settled; the next time will do
            for table in self.expiring:
                if await self.store.purge(table, self.clock.now(), PURGE) == PURGE:
                    self.purged = float("-inf")  # there is more
