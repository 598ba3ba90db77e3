"""The writer: one batch of a process's publishes and settlements under way at a time, the next one gathering meanwhile.

So many callers share a commit, and what is in the hands and in the database change in the same order. What must not
happen in between (claims of ordered groups, heartbeats, giving back) has its *turn* alone. A batch is put together in
memory, where what is no longer ours is skipped together with its outputs; the database has the last word on each claim
(``apply`` in ``publish.sql``), and what it refuses is lost. A batch that could not be committed is undone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from itertools import accumulate
from typing import Any, TypeVar

from tidings.kernel.errors import BusError, NotOpen
from tidings.kernel.topics import DEAD
from tidings.kernel.transport import Ack, Failure, Release, Settlement
from tidings.transports._numbers import pack
from tidings.transports._points import passed

from .connections import Connections, Unanswered
from .hands import Hands, Held, Outgoing, Row, fenced, hash_of, literal
from .keeping import Failed, Ready, Units, Writes

T = TypeVar("T")

MOST_ROWS, MOST_BYTES = 20_000, 32 * 2**20  # of a batch
LITERALS = {
    **dict.fromkeys((17, 19, 21, 22, 23, 28, 33, 34), "::text::int[]"),
    **dict.fromkeys((20, 32), "::text::float8[]"),
    **dict.fromkeys((30, 31), "::text::bigint[]"),
}  # arguments of `apply` and `keep`
STUCK = 5.0  # seconds a batch may take before it is asked who holds it up


class Batch:
    """What is committed at once. A *reference* is a claim's id, or of the n-th message taken -n; 0: always valid."""

    def __init__(self, hands: Hands, writes: Writes) -> None:
        self.hands, self.writes = hands, writes
        self.claims: dict[int, Held] = {}  # changed; by id
        self.taken: list[tuple[Held, int]] = []
        self.parks: list[tuple[Any, ...]] = []
        self.rows: list[Row] = []
        self.refs: list[int] = []
        self.struck: list[tuple[Held, set[int]]] = []
        self.woken: set[int] = set()  # groups; -1: all that are consumed here

    # -- putting it together

    def publish(self, rows: Sequence[Row], ref: int = 0) -> None:
        self.rows += rows
        self.refs += [ref] * len(rows)

    def settle(
        self, settlements: Sequence[Settlement], outgoing: dict[int, Outgoing]
    ) -> tuple[list[Failure], dict[int, list[int]]]:
        """Strike each off: why not, or else the settlements of each reference."""
        failures, found = list[Failure](), dict[int, list[int]]()
        plain: dict[Any, dict[int, int]] = {}  # acknowledged, and no more: index by number
        for index, settlement in enumerate(settlements):
            delivery = settlement.delivery
            held: Any = delivery.session
            if (
                settlement.action.__class__ is Ack
                and index not in outgoing
                and held.__class__ is Held
                and not held.take
            ):
                numbers = plain.get(held)
                if numbers is None:
                    numbers = plain[held] = {}
                if numbers.setdefault(delivery.token, index) != index:
                    failures.append(Failure(index, "fenced", fenced()))
            elif (goes := outgoing.get(index)) is not None and goes.refused is not None:
                failures.append(Failure(index, "rejected", goes.refused))
            elif not self.hands.mine(held, delivery.token):
                failures.append(Failure(index, "fenced", fenced()))
            else:
                ref = self._strike(held, delivery.token)
                found.setdefault(ref, []).append(index)
                self.publish(goes.rows if goes is not None else (), ref)
                if not isinstance(settlement.action, Ack):
                    self._park(settlement, held, ref)
        for held, numbers in plain.items():
            claim = self.hands.claims.get(held.id)
            ours = claim.todo & numbers.keys() if claim is not None and claim is held else set[int]()
            if len(ours) < len(numbers):
                failures += (Failure(index, "fenced", fenced()) for n, index in numbers.items() if n not in ours)
            if ours:
                self.claims[held.id] = held
                found.setdefault(held.id, []).extend(numbers[n] for n in ours)
                self.struck.append((held, held.todo))
                held.todo = held.todo - ours
        passed("settle.struck")
        return failures, found

    def _strike(self, held: Held, seq: int) -> int:
        self.struck.append((held, held.todo))
        held.todo = held.todo - {seq}
        if not held.take:
            self.claims[held.id] = held
            return held.id
        self.taken.append((held, seq))
        return -len(self.taken)

    def _park(self, settlement: Settlement, held: Held, ref: int) -> None:
        action: Any = settlement.action
        failures, why = (held.failures, "") if isinstance(action, Release) else (action.failures, action.why)
        about = held.group, settlement.delivery.token, hash_of(settlement.delivery.message.key)
        self.parks.append((ref, *about, action.delay, failures, held.crashes, held.take, why))
        self.woken.add(held.group)

    # -- committing it

    @property
    def plain(self) -> bool:
        """Whether it only acknowledges fresh messages."""
        return not (self.rows or self.taken or self.parks or self.writes.units)

    def struck_off(self) -> tuple[list[int], list[bytes | None], list[int]]:
        """The claims that change, what is left of each, and how many it had."""
        claims, before = self.claims.values(), dict(reversed(self.struck))
        left = [pack(sorted(claim.todo)) if claim.todo else None for claim in claims]
        return [*self.claims], left, [len(before[claim]) for claim in claims]

    def arguments(self, channels: dict[tuple[str, int], int]) -> list[Any]:
        """Of ``apply``, after the member."""
        claims = list(self.claims.values())
        places = {claim.id: place for place, claim in enumerate(claims, 1)} | {0: 0}
        places |= {-n: len(claims) + n for n in range(1, len(self.taken) + 1)}
        parks = [(places[ref], *park) for ref, *park in self.parks]
        wheres, dues, hashes, records = map(list, zip(*self.rows, strict=True)) if self.rows else ([], [], [], [])
        lengths = [len(record) for record in records]
        return [
            *self.struck_off(),
            [held.group for held, _ in self.taken],
            [seq for _, seq in self.taken],
            [held.take for held, _ in self.taken],
            *(list(column) for column in (zip(*parks, strict=True) if parks else [()] * 9)),
            literal([places[ref] for ref in self.refs]) if any(self.refs) else None,
            list(channels.values()),
            literal([channels[where] for where in wheres]) if len(channels) > 1 else None,
            literal(dues),
            literal(hashes),
            literal(list(accumulate(lengths[:-1], initial=1)) if lengths else []),
            literal(lengths),
            b"".join(records),
            [number for where, number in channels.items() if where[0].startswith(DEAD)],
        ]

    def committed(self, ok: Sequence[bool]) -> tuple[set[int], list[Held]]:
        """References that were refused, and what is lost with them; the hands are as the database says."""
        refused, lost, hands = set[int](), list[Held](), self.hands
        for claim, mine in zip(tuple(self.claims.values()), ok, strict=False):
            if not mine:
                refused.add(claim.id)
                lost.append(claim)
            if not mine or not claim.todo:
                hands.claims.pop(claim.id, None)
            if claim.hashes:
                self.woken.add(claim.group)
        for n, ((held, seq), mine) in enumerate(zip(self.taken, ok[len(self.claims) :], strict=True), 1):
            if hands.takes.get((held.group, seq)) is held:
                del hands.takes[held.group, seq]
            self.woken |= {held.group, -1} if held.suspect else {held.group}
            if not mine:
                refused.add(-n)
                lost.append(held)
        for held in lost:
            held.alive = False
        return refused, lost

    def undo(self) -> None:
        for held, todo in reversed(self.struck):
            held.todo = todo


class Job:
    """A publish, or a settle. ``result``: its failures."""

    def __init__(
        self,
        settlements: Sequence[Settlement] | None,
        outgoing: dict[int, Outgoing],
        future: asyncio.Future[list[Failure]],
    ) -> None:
        self.settlements, self.outgoing, self.future = settlements, outgoing, future
        self.failures: list[Failure] = []
        self.found: dict[int, list[int]] = {}
        self.rows = sum(len(goes.rows) for goes in outgoing.values())
        self.bytes = sum(goes.size for goes in outgoing.values())

    def stage(self, batch: Batch) -> None:
        if self.settlements is None:
            batch.publish(self.outgoing[0].rows)
        else:
            self.failures, self.found = batch.settle(self.settlements, self.outgoing)

    def done(self, refused: set[int]) -> None:
        late = [index for ref, indexes in self.found.items() if ref in refused for index in indexes]
        self.answer(self.failures + [Failure(index, "fenced", fenced()) for index in late])

    def failed(self, error: BaseException) -> None:
        """A publish says what became of it; settling is tried again by who asked for it."""
        if self.future.done():
            return
        if self.settlements is None and isinstance(error, BusError):
            kind: Any = "unknown" if isinstance(error, Unanswered) else "rejected"
            self.answer([Failure(index, kind, error) for index in range(len(self.outgoing[0].rows))])
        else:
            self.future.set_exception(error)

    def answer(self, failures: list[Failure]) -> None:
        if not self.future.done():
            self.future.set_result(failures)


class Turn:
    """Something that is to happen alone."""

    rows = bytes = 0

    def __init__(self, act: Callable[[], Coroutine[Any, Any, Any]], future: asyncio.Future[Any]) -> None:
        self.act, self.future = act, future

    async def take(self) -> None:
        try:
            result = await self.act()
        except Exception as error:
            if not self.future.done():
                self.future.set_exception(error)
        else:
            if not self.future.done():
                self.future.set_result(result)

    def failed(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Writer:
    """``told(batch, lost, answer)`` is called after each commit, before its callers go on."""

    def __init__(
        self,
        connections: Connections,
        hands: Hands,
        synchronous: str,
        told: Callable[[Batch, list[Held], Any], None],
        held_up: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self.connections, self.hands, self.told, self.held_up = connections, hands, told, held_up
        self.loop = asyncio.get_running_loop()
        self.queue: deque[Job | Units | Turn] = deque()
        self.wanted = asyncio.Event()
        self.channels: dict[tuple[str, int], int] = {}
        self.stopping = False
        self.synchronous = synchronous
        place = '"' + connections.options.namespace + '"'
        places = [f"${n}{LITERALS.get(n, '')}" for n in range(1, 36)]
        self.apply = f"SELECT * FROM {place}.apply({', '.join(places[:26])})"
        self.keep = f"SELECT * FROM {place}.keep({', '.join(places)})"
        self.acked = f"SELECT * FROM {place}.acked($1, $2, $3, $4)"
        self.naming = f"SELECT {place}.channels($1, $2)"
        self.task = self.loop.create_task(self._run())

    # -- asking

    def publish(self, outgoing: Outgoing) -> asyncio.Future[list[Failure]]:
        self._put(job := Job(None, {0: outgoing}, self.loop.create_future()))
        return job.future

    def settle(self, settlements: Sequence[Settlement], outgoing: dict[int, Outgoing]) -> asyncio.Future[list[Failure]]:
        self._put(job := Job(settlements, outgoing, self.loop.create_future()))
        return job.future

    def commit(self, units: Sequence[Ready]) -> asyncio.Future[dict[int, Failed]]:
        self._put(job := Units(units, self.loop.create_future()))
        return job.future

    def turn(self, act: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Future[T]:
        self._put(turn := Turn(act, self.loop.create_future()))
        return turn.future

    def _put(self, job: Job | Units | Turn) -> None:
        if self.stopping:
            raise NotOpen("the bus is not open")
        self.queue.append(job)
        self.wanted.set()

    async def stop(self) -> None:
        """Commit what is queued, and end."""
        self.stopping = True
        self.wanted.set()
        await self.task

    # -- doing

    async def _run(self) -> None:
        while self.queue or not self.stopping:
            if not self.queue:
                self.wanted.clear()
                await self.wanted.wait()
                continue
            if isinstance(job := self.queue[0], Turn):
                self.queue.popleft()
                await job.take()
            else:
                await self._commit(self._gather(), Writes())

    def _gather(self) -> list[Job | Units]:
        """What may share a commit: at least one, in order."""
        jobs, rows, size = list[Job | Units](), 0, 0
        while self.queue and not isinstance(job := self.queue[0], Turn):
            rows, size = rows + job.rows, size + job.bytes
            if jobs and (rows > MOST_ROWS or size > MOST_BYTES):
                break
            jobs.append(job)
            self.queue.popleft()
        return jobs

    async def _commit(self, jobs: Sequence[Job | Units], writes: Writes) -> None:
        batch = Batch(self.hands, writes)
        for job in jobs:
            job.stage(batch)
        try:
            row = await self._apply(batch)
        except Exception as error:
            batch.undo()
            if len(jobs) == 1 or isinstance(error, Unanswered) or not self.connections.up:
                for job in jobs:
                    job.failed(error)
            else:  # one of them cannot be stored: each alone
                for job in jobs:
                    await self._commit([job], Writes(writes))
            return
        passed("commit.after")
        if not row.get("done", True):
            await self._commit(jobs, writes.learned(batch, row))
            return
        refused, lost = batch.committed(row["ok"])
        self.told(batch, lost + writes.lost, row)
        for job in jobs:
            job.done(refused)

    async def _apply(self, batch: Batch) -> Any:
        if not (batch.rows or batch.claims or batch.taken or batch.writes.latest):
            return {"ok": (), "unrouted": (), "stored": None}
        if batch.plain:
            passed("commit.before")
            return await self.connections.call(self.acked, self.hands.member, *batch.struck_off())
        watch = self.loop.call_later(STUCK, lambda: self.loop.create_task(self.held_up()))
        try:
            names = {row[0] for row in batch.rows}
            if new := [where for where in names if where not in self.channels]:
                topics, priorities = [topic for topic, _ in new], [priority for _, priority in new]
                found = await self.connections.call(self.naming, topics, priorities, repeat=True)
                self.channels.update(zip(new, found[0], strict=True))
            channels = {where: self.channels[where] for where in names}
            soft = not (batch.rows or batch.parks or batch.writes.latest)
            passed("commit.before")
            args = self.hands.member, *batch.arguments(channels), "off" if soft else self.synchronous
            if batch.writes.units:
                return await self.connections.call(self.keep, *args, *batch.writes.arguments())
            return await self.connections.call(self.apply, *args)
        finally:
            watch.cancel()
