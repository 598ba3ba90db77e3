"""A simulated process: the real transport, writer, steps and workers, on a loop and a clock of the simulation's own.

What is not real: the thread (the schedule says when the writer commits), the clock, and whether a commit succeeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import apsw
from msgspec import Struct
from tests.simulation.compare import Broken
from tests.simulation.loop import StepLoop

from tidings.kernel import transport as spi
from tidings.kernel.clock import Clock
from tidings.kernel.errors import BusError, TidingsError
from tidings.kernel.handler import Handler
from tidings.kernel.outcome import Backoff
from tidings.kernel.recovery import PERMIT
from tidings.kernel.settling import Policy
from tidings.kernel.worker import Work, Worker
from tidings.transports._matcher import Matcher
from tidings.transports.sqlite import SQLite
from tidings.transports.sqlite.claims import Claims
from tidings.transports.sqlite.consumers import GroupConsumer
from tidings.transports.sqlite.log import Log
from tidings.transports.sqlite.transport import INHERITED, SQLiteTransport
from tidings.transports.sqlite.writer import Job, Writer

if TYPE_CHECKING:
    from tests.simulation.schedule import Schedule

FILE = Path("/simulation/bus.db")


class Died(BaseException):
    """The process is gone."""


class Effect(Struct):
    """What one step of a committed transaction did; ``upto``: the last number given when it had run."""

    name: str
    arguments: tuple[Any, ...]
    result: Any
    upto: int
    member: int


class Wire:
    """The writer's side of the connection: here a commit succeeds, fails, or is the last that a process does."""

    def __init__(self, process: Process, con: apsw.Connection) -> None:
        self.process, self.con, self.writing = process, con, False

    def execute(self, query: str, bindings: Any = ()) -> Any:
        if query == "BEGIN IMMEDIATE":
            self.writing = True
        elif query == "COMMIT" and self.writing:
            return self._commit()
        return self.con.execute(query, bindings)

    def _commit(self) -> None:
        self.writing = False
        fate = self.process.schedule.fate()
        if fate == "dies before":
            self.con.execute("ROLLBACK")
            raise Died
        if fate == "fails":
            raise apsw.IOError("the disk failed")
        self.con.execute("COMMIT")
        self.process.desk.commits += 1
        self.process.schedule.committed(self.process)
        if fate == "dies after":
            raise Died


class Desk(Writer):
    """The writer without its thread."""

    def __init__(self, process: Process, transport: SQLiteTransport) -> None:
        with process.loop.running():
            super().__init__(FILE, transport.steps, "normal", process.loop.clock, transport._told)
        self.process, self.con = process, cast(Any, Wire(process, transport.steps.con))
        self.housekeeping = self.retention = process.loop.time() + process.schedule.random.random()
        self.jobs: list[Job] = []
        self.effects: list[Effect] = []
        self.commits = self.known = 0
        self.heard = 0.0

    def submit(self, step: Callable[[], Any], *, soft: bool = False) -> asyncio.Future[Any]:
        future = self.loop.create_future()
        self.waiting += 1
        self.jobs.append((step, future, soft))
        return future

    async def stop(self) -> None: ...

    def _answer(self, done: list[Any], news: Any) -> None:
        """The loop hears of everything in order, but perhaps late."""
        done = [entry for entry in done if entry[0] is not None]
        if done or news:
            schedule = self.process.schedule
            lag = schedule.random.random() * schedule.profile.lag
            self.heard = max(self.heard, self.loop.time() + lag)
            self.loop.call_at(self.heard, self._tell, done, news)

    def work(self, most: int) -> None:
        """Commit the first ``most`` jobs."""
        jobs, self.jobs = self.jobs[:most], self.jobs[most:]
        self._commit(jobs)

    def look(self) -> bool:
        """What the thread does between commits; whether there was anything."""
        now, others = self.clock.monotonic(), self.process.schedule.commits - self.commits
        if others != self.known:
            self.known = others
            self._read_news()
        elif self.next_due is not None and self.next_due <= self.clock.now():
            self._commit([(self._move_due, None, True)])
        elif now >= self.housekeeping:
            self.housekeeping = now + self.process.schedule.profile.housekeeping
            self._keep_house(now)
        else:
            return False
        return True

    def _transaction(self, jobs: list[Job]) -> Any:
        self.effects = []
        fails = self.process.schedule.stumbles(len(jobs))
        noted: list[Job] = [
            (partial(self._note, step, n == fails), future, soft) for n, (step, future, soft) in enumerate(jobs)
        ]
        try:
            return super()._transaction(noted)
        except Exception as error:
            self.process.schedule.rolled_back(self.process, error)
            raise

    def _note(self, step: Callable[[], Any], stumble: bool) -> Any:
        member = self.groups.member
        result = step()
        function = step.func if isinstance(step, partial) else step
        arguments = step.args if isinstance(step, partial) else ()
        upto = self.log.seq + sum(due is None or due <= self.log.now for _, due, *_ in self.log.pending)
        self.effects.append(Effect(function.__name__, arguments, result, upto, self.groups.member or member))
        if stumble:
            raise ZeroDivisionError("a step raises in the middle of a transaction")
        return result


class Hands(Claims):
    """The steps, in the simulation's time."""

    clock: Clock

    def begin(self, mono: float) -> None:
        super().begin(self.clock.monotonic())


class Reader(GroupConsumer):
    """A consumer whose leases follow the simulation's clock."""

    def __hash__(self) -> int:  # a set of them is iterated in the same order in every run
        return self.group

    async def extend(self, deliveries: Sequence[spi.Delivery]) -> None:
        bus: Any = self.transport
        now = bus.clock.monotonic()
        self.extend_at(now, deliveries)
        for delivery in deliveries:
            bus.process.schedule.oracle.extended(bus.steps.member, delivery, now)


class Bus(SQLiteTransport):
    """The transport, open on a connection that all simulated processes share: SQLite lets one write at a time."""

    def __init__(self, process: Process, options: SQLite, kind: type[Hands], log: type[Log]) -> None:
        super().__init__(options)
        self.process, self.loop, self.clock = process, process.loop, process.loop.clock
        self.matcher, self.consumers, self.notify = Matcher(), {}, lambda event: None
        con = process.schedule.con
        stored = log(con, int(options.max_size), options.segment_rows, options.segment_bytes or 2**30)
        self.steps: Hands = kind(con, stored, self.lease, process.schedule.profile.retain)
        self.steps.clock = self.clock
        self._writer = Desk(process, self)
        INHERITED.append(self)
        self.beat = self.loop.call_later(self.lease / 3, self._beat, self.clock.monotonic())

    def _beat(self, before: float) -> None:
        if self._writer is None:
            return
        now = self.clock.monotonic()
        step = partial(self.steps.beat, now, sweep=now - before < self.lease / 2)
        self._writer.submit(step, soft=True).add_done_callback(lambda done: done.exception())
        self.beat = self.loop.call_later(self.lease / 3, self._beat, now)

    async def subscribe(self, subscription: spi.Subscription) -> spi.Consumer:
        group = await self.writer.submit(partial(self.steps.register, subscription))
        return Reader(self, group, subscription)


class Process:
    """One process: its loop, its bus, its workers. ``frozen``: until when it is stopped; ``blocked``: its loop only."""

    def __init__(self, schedule: Schedule, name: str) -> None:
        self.schedule, self.name = schedule, name
        self.loop = StepLoop(schedule.time)  # type: ignore[abstract]  # what no test needs is missing
        self.frozen = self.blocked = 0.0
        self.alive, self.doomed, self.closing, self.permit = True, False, False, False
        self.workers: dict[str, Worker] = {}
        self.tasks: list[asyncio.Task[Any]] = []
        self.busy: set[Any] = set()
        profile = schedule.profile
        options = SQLite(
            path=str(FILE), lease=profile.lease, max_size=profile.max_size, segment_rows=profile.segment_rows
        )
        self.bus = Bus(self, options, schedule.planted.claims, schedule.planted.log)
        self.desk: Any = self.bus._writer
        self.steps = self.bus.steps
        visible = profile.visible or schedule.random.random() < 0.2
        if not visible:  # to others it is in a container of its own: only silence can tell that it is gone
            self.steps.identity = (*self.steps.identity[:3], name)
        self.spent: set[str] = set()  # groups whose worker ended while its handler ran on
        self.entered = self.loop.create_future()
        self.start(self._enter())

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(self.loop.create_task(coroutine))

    async def _enter(self) -> None:
        await self.bus.writer.submit(self.steps.enter)
        self.entered.set_result(None)

    def turn(self, most: int) -> None:
        """Let the loop run a little. The permit for suspects is one per process: each has its own here."""
        if self.permit:
            PERMIT.acquire()
        try:
            self.loop.run(most, lambda: self.doomed)
        finally:
            if self.alive:
                self.permit = PERMIT.locked()
            if PERMIT.locked():
                PERMIT.release()
        if self.doomed:
            raise Died
        for error in self.loop.errors:
            raise error
        self._check_lost()
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            if isinstance(task.exception(), TidingsError):  # an app ends that loses its bus, or its group
                raise Died
            task.result()

    def _check_lost(self) -> None:
        """No handler is told that its message is lost while the process still holds it."""
        running = (d for w in self.workers.values() if w for slot in w.slots if slot.since for d in slot.deliveries)
        for delivery in running:
            held: Any = delivery.session
            if not held.alive and held.id in self.steps.claims and delivery.token in self.steps.claims[held.id].todo:
                raise Broken(f"{self.name}: {delivery.token} is called lost, and is in claim {held.id}")

    def consume(self, name: str, subscription: spi.Subscription) -> None:
        """Start a worker for a group, if none is there."""
        if name not in self.workers and name not in self.spent and not self.closing:
            self.workers[name] = None  # type: ignore[assignment]
            self.start(self._consume(name, subscription))

    async def _consume(self, name: str, subscription: spi.Subscription) -> None:
        profile = self.schedule.profile
        try:
            await self.entered
            consumer: Any = await self.bus.subscribe(subscription)
        except BusError:
            del self.workers[name]
            return
        backoff = Backoff(attempts=profile.attempts, first=profile.first, factor=4.0, limit=20.0, jitter=0.0)
        work = Work(
            policy=Policy(group=subscription.group or "", ordered=subscription.ordered, backoff=backoff),
            concurrency=profile.concurrency,
            timeout=profile.timeout,
            grace=1.0,
        )
        handler = Handler(
            one=lambda delivery: self.schedule.handle(self, name, delivery), cancellable=profile.cancellable
        )
        worker = self.workers[name] = Worker(consumer, handler, work, self.loop.clock, self.busy, None)
        try:
            await worker.run()
        finally:
            self.workers.pop(name, None)
            if not consumer.closed:
                self.spent.add(name)

    def stop(self, name: str) -> None:
        """End a worker gracefully."""
        if (worker := self.workers.get(name)) is not None:
            worker.stop()

    def finish(self) -> None:
        """End gracefully."""
        if not self.closing:
            self.closing = True
            self.start(self._finish())

    async def _finish(self) -> None:
        while self.workers:
            for name in list(self.workers):
                self.stop(name)
            await asyncio.sleep(0.05)
        await self.bus.close()
        self.leave()

    def leave(self) -> None:
        """Gone: what it had in memory is, too."""
        self.alive = False
        self.desk.jobs.clear()
        self.loop.close()
        self.bus._writer = None
        if self.bus in INHERITED:
            INHERITED.remove(self.bus)
        if self in self.schedule.processes:
            self.schedule.processes.remove(self)
