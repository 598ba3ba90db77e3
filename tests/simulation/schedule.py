"""One seeded schedule: who does what next, what fails, and what becomes of each message.

Everything is drawn from the seed: nothing depends on the machine's time, so a schedule can be run again.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter, deque
from functools import cache
from random import Random
from typing import Any
from zlib import crc32

import apsw
from msgspec import Struct
from tests.simulation.compare import Broken
from tests.simulation.loop import Time
from tests.simulation.oracle import Oracle
from tests.simulation.process import Died, Effect, Hands, Process

from tidings.kernel.errors import BusError, Defer, Reject, Skip, TidingsError
from tidings.kernel.message import Message, derived_id
from tidings.kernel.topics import GROUP
from tidings.kernel.transport import Delivery, Subscription
from tidings.transports.sqlite.log import Log, sql

TRACE = 40  # last steps that are told of a broken schedule
KINDS = ("mixed", "ordered", "unordered", "retention", "deploy", "crash", "zombie", "hung", "rollback", "sparse")
TOPICS = ("orders.a", "orders.b", "sensors.x", "misc.y")
PATTERNS = (("orders.>", "orders.a", "orders.*"), (">",), ("sensors.x", "sensors.>", "*.x"), ("out.>",), ("orders.b",))


class Planted(Struct, frozen=True):
    """The steps that are run: those of the library, or broken ones."""

    claims: type[Hands] = Hands
    log: type[Log] = Log


class Profile(Struct):
    """What a schedule is like. Chances are per turn."""

    turns: int = 110
    processes: int = 3
    groups: int = 2
    ordered: float = 0.5  # of groups
    keys: int = 4
    lease: float = 4.0
    attempts: int = 3
    first: float = 0.3
    concurrency: int = 2
    timeout: float = 60.0
    cancellable: bool = True
    slow: int = 25  # handlers below this chance, in percent, run long
    visible: bool = False
    segment_rows: int = 1_000_000
    retain: float = 3600.0
    max_size: int = 2**30
    housekeeping: float = 2.0
    hurry: float = 0.25  # time passes although there is something to do
    publish: float = 0.1
    delayed: float = 0.1
    priorities: float = 0.2
    private: float = 0.02
    kill: float = 0.01
    dies: float = 0.005  # per commit, half of them after it
    fails: float = 0.005
    stumbles: float = 0.01
    freeze: float = 0.005
    block: float = 0.003
    toggle: float = 0.01
    finish: float = 0.004
    deploy: float = 0.004
    switch: float = 0.0
    admin: float = 0.004
    filler: float = 0.0
    lag: float = 0.0  # seconds at most until a loop hears of a commit
    rouse: float = 0.0  # consumers wake for no reason
    sleep: float = 0.0  # for more than a week


def profile(kind: str, random: Random) -> Profile:
    """The parameters of a kind, with some of chance."""
    p = Profile(processes=random.randint(2, 4), groups=random.randint(1, 3), keys=random.choice((1, 3, 6)))
    p.concurrency, p.attempts = random.choice((1, 2, 4)), random.choice((2, 3, 4))
    p.segment_rows = random.choice((5, 20, 1_000_000))
    p.retain = random.choice((2.0, 20.0, 3600.0))
    p.ordered = {"ordered": 1.0, "unordered": 0.0}.get(kind, 0.5)
    p.visible, p.lag = random.random() < 0.2, random.choice((0.0, 0.0, 0.3))
    if kind == "retention":
        p.segment_rows, p.retain, p.max_size = 5, random.choice((1.0, 5.0)), random.choice((3_000, 8_000, 2**30))
        p.sleep, p.delayed = 0.002, 0.3
    elif kind == "deploy":
        p.deploy, p.toggle, p.admin, p.switch = 0.03, 0.04, 0.05, random.choice((0.0, 0.01))
        p.freeze, p.block, p.turns = 0.0, 0.002, 160
    elif kind == "crash":
        p.kill, p.dies, p.visible = 0.03, 0.03, True
    elif kind == "zombie":
        p.freeze, p.block, p.timeout, p.cancellable, p.slow = 0.01, 0.05, 2.0, False, 45
    elif kind == "hung":
        p.block, p.timeout, p.cancellable, p.slow = 0.02, 0.5, False, 50
        p.rouse, p.lag = 0.4, 2.0
    elif kind == "rollback":
        p.fails, p.stumbles = 0.05, 0.15
    elif kind == "sparse":
        p.filler, p.turns = 0.01, 90
    return p


class Spec(Struct):
    """A group as it is deployed now."""

    name: str
    ordered: bool
    patterns: tuple[str, ...]
    version: int = 0
    start: float | None = None
    resting: float = 0.0  # nobody starts to consume it before

    def subscription(self, version: int) -> Subscription:
        pattern = self.patterns[version % len(self.patterns)]
        return Subscription(app="sim", pattern=pattern, group=self.name, ordered=self.ordered, start=self.start)


@cache
def _empty() -> bytes:
    con = apsw.Connection(":memory:")
    con.execute(sql("schema"))
    Log(con, 0, 0, 0).roll()
    return con.serialize("main")


class Schedule:
    """One run. ``run`` raises ``Broken`` when a promise is."""

    def __init__(self, seed: int, kind: str = "mixed", planted: Planted | None = None, log: bool = False) -> None:
        self.seed, self.kind, self.planted = seed, kind, planted or Planted()
        self.random = Random(f"{kind} {seed}")
        self.profile = profile(kind, self.random)
        self.time = Time()
        self.con = apsw.Connection(":memory:", statementcachesize=1000)
        self.con.deserialize("main", _empty())
        self.oracle = Oracle(self.con, self.time, self.profile.lease, self.profile.attempts)
        self.processes: list[Process] = []
        self.trace: deque[str] = deque(maxlen=None if log else TRACE)
        self.commits = self.count = self.born = self.published = 0
        self.runs = Counter[tuple[str, bytes]]()
        self.quiet = False
        self.specs = [self._spec(n) for n in range(self.profile.groups)]
        self.early = [spec for spec in self.specs if self.random.random() < 0.8] or self.specs[:1]
        p = self.profile
        outside = {
            self._publish: p.publish,
            self._kill: p.kill,
            self._freeze: p.freeze,
            self._block: p.block,
            self._toggle: p.toggle,
            self._finish: p.finish,
            self._deploy: p.deploy,
            self._switch: p.switch,
            self._admin: p.admin,
            self._fill: p.filler,
            self._rouse: p.rouse,
            self._sleep: p.sleep,
        }
        self.acts = [(act, chance) for act, chance in outside.items() if chance]

    def _spec(self, n: int) -> Spec:
        start = self.random.choice((None, None, 0.0, self.time.now() + 3.0))
        return Spec(f"g{n}", self.random.random() < self.profile.ordered, PATTERNS[n % len(PATTERNS)], start=start)

    def note(self, text: str) -> None:
        self.trace.append(f"{self.time.elapsed:9.3f} {text}")

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            for _ in range(self.profile.processes):
                self.spawn()
            for _ in range(self.profile.turns):
                self._disturb()
                self._turn()
            self._settle_down()
        finally:
            self._dispose()

    def _dispose(self) -> None:
        for process in list(self.processes):
            process.leave()
        self.con.close()

    def spawn(self) -> None:
        self.born += 1
        process = Process(self, f"p{self.born}")
        self.processes.append(process)
        self.note(f"{process.name} starts")
        for spec in self.early:
            if self.random.random() < 0.8:
                self._consume(process, spec)

    def _consume(self, process: Process, spec: Spec) -> None:
        if spec.resting <= self.time.elapsed:
            old = not self.quiet and self.random.random() < 0.2
            subscription = spec.subscription(max(0, spec.version - old))
            process.consume(spec.name, subscription)
            self.note(f"{process.name} consumes {spec.name}: {subscription.pattern}, ordered: {spec.ordered}")

    def _turn(self) -> None:
        """One process runs a little, or time passes."""
        choices = [choice for process in self.processes for choice in self._able(process)]
        if not choices or (not self.quiet and self.random.random() < self.profile.hurry):
            self._pass_time()
            return
        process, act = self.random.choice(choices)
        try:
            act()
        except Died:
            self.kill(process)

    def _able(self, process: Process) -> list[tuple[Process, Any]]:
        if process.frozen > self.time.elapsed:
            return []
        able: list[tuple[Process, Any]] = []
        desk = process.desk
        if process.blocked <= self.time.elapsed and process.loop.wake():
            able.append((process, lambda: process.turn(self.random.choice((1, 3, 10, 100)))))
        if desk.jobs:
            able.append((process, lambda: desk.work(self.random.choice((1, 2, len(desk.jobs))))))
        if self._news(process):
            able.append((process, desk.look))
        return able

    def _news(self, process: Process) -> bool:
        desk = process.desk
        due = desk.next_due is not None and desk.next_due <= self.time.now()
        return bool(desk.known != self.commits - desk.commits or due or desk.housekeeping <= process.loop.time())

    def _pass_time(self) -> None:
        moments = [self.time.elapsed + 1.0]
        for process in self.processes:
            waits = [process.frozen, process.blocked, process.desk.housekeeping - 1_000.0]
            if process.desk.next_due is not None:
                waits.append(process.desk.next_due - self.time.now() + self.time.elapsed)
            if process.loop.timers:
                waits.append(process.loop.timers[0][0] - 1_000.0)
            moments += [moment for moment in waits if moment > self.time.elapsed]
        rest = min(moments) - self.time.elapsed
        self.time.elapsed += rest if self.quiet else rest * self.random.choice((0.5, 1.0, 1.0))

    def _settle_down(self) -> None:
        """Nothing more goes wrong: then everything must end."""
        self.quiet = True
        self.note("-- nothing more goes wrong")
        for n, process in enumerate(self.processes):
            process.frozen = process.blocked = 0.0
            if n > 1:
                process.finish()
        limit = self.time.elapsed + 3_000.0
        while self._unfinished():
            if self.time.elapsed > limit:
                break
            if all(process.closing for process in self.processes):
                self.spawn()
            for process in self.processes:
                if process.spent:
                    process.finish()
                for subscription in self.oracle.subscriptions():
                    process.consume(subscription.group or "", subscription)
            for _ in range(40):
                self._turn()
        for process in self.processes:
            process.finish()
        limit = self.time.elapsed + 100.0
        while self.processes and self.time.elapsed < limit:
            self._turn()
        if self.processes:
            raise Broken(f"{[process.name for process in self.processes]} did not end")
        self.oracle.finish()

    def _unfinished(self) -> bool:
        busy = any(process.desk.waiting or process.loop.wake() for process in self.processes)
        return bool(busy or self.oracle.unsettled() or self.con.execute("SELECT 1 FROM delayed").get)

    # -- what happens ------------------------------------------------------------------------------------------------

    def _disturb(self) -> None:
        """Perhaps something happens from outside."""
        dice = self.random.random
        for act, chance in self.acts:
            if dice() < chance:
                act()
        while len(self.processes) < self.profile.processes:
            self.spawn()

    def _some(self) -> Process:
        return self.random.choice(self.processes)

    def _publish(self) -> None:
        process, p = self._some(), self.profile
        batch = [self._message(p) for _ in range(self.random.choice((1, 1, 3, 6)))]
        self._send(process, batch)

    def _message(self, p: Profile) -> Message[Any]:
        self.published += 1
        dice = self.random.random
        key = f"k{self.random.randrange(p.keys)}" if dice() < 0.8 else None
        at = self.time.now() + self.random.choice((0.5, 3.0, 15.0)) if dice() < p.delayed else None
        private = GROUP + self.random.choice(self.specs).name if dice() < p.private else None
        return Message(
            self.random.choice(TOPICS),
            body=b"%d" % self.published,
            id=f"m{self.published}",
            time=self.time.now(),
            key=key,
            priority=self.random.randrange(10) if dice() < p.priorities else 0,
            deliver_at=at,
            address=private,
        )

    def _send(self, process: Process, batch: list[Message[Any]]) -> None:
        async def publish() -> None:
            try:
                await process.entered
                await process.bus.publish(batch)
            except BusError as error:
                self.note(f"{process.name}: {error.what}")

        self.note(f"{process.name} publishes {[(m.destination, m.body.decode(), m.key) for m in batch][:9]}")
        process.start(publish())

    def _fill(self) -> None:
        """Many messages that nobody, or only one group, reads: positions then move by scanning."""
        topic = self.random.choice(("noise.a", "noise.b", "sensors.x"))
        count = self.random.choice((300, 1200))
        batch = list[Message[Any]]()
        for _ in range(count):
            self.published += 1
            batch.append(Message("_noise." + topic, body=b"x%d" % self.published, id=f"x{self.published}"))
        self._send(self._some(), batch)

    def _kill(self) -> None:
        self.kill(self._some())

    def kill(self, process: Process) -> None:
        self.note(f"{process.name} is killed")
        process.leave()
        if process.steps.identity[3] != process.name:  # another process has its number now
            self.con.execute("UPDATE member SET started = -1 WHERE id = ?", (process.steps.member,))

    def _freeze(self) -> None:
        process = self._some()
        process.frozen = self.time.elapsed + self.random.choice((0.5, 1.2, 3.0)) * self.profile.lease
        self.note(f"{process.name} is frozen until {process.frozen:.3f}")

    def _block(self) -> None:
        process = self._some()
        process.blocked = self.time.elapsed + self.random.choice((0.3, 0.4, 1.2, 3.0)) * self.profile.lease
        self.note(f"the loop of {process.name} is blocked until {process.blocked:.3f}")

    def _toggle(self) -> None:
        process, spec = self._some(), self.random.choice(self.specs)
        if spec.name in process.workers:
            self.note(f"{process.name} stops consuming {spec.name}")
            process.stop(spec.name)
        else:
            if spec not in self.early:
                self.early.append(spec)
            self._consume(process, spec)

    def _finish(self) -> None:
        process = self._some()
        self.note(f"{process.name} ends gracefully")
        process.finish()

    def _deploy(self) -> None:
        spec = self.random.choice(self.specs)
        spec.version += 1
        self.note(f"{spec.name} is now {spec.subscription(spec.version).pattern}")
        self._restart(spec)

    def _switch(self) -> None:
        spec = self.random.choice(self.specs)
        spec.ordered = not spec.ordered
        spec.resting = self.time.elapsed + 2.0
        self.note(f"{spec.name} is now ordered: {spec.ordered}")
        self._restart(spec, 1.0)

    def _restart(self, spec: Spec, share: float = 0.7) -> None:
        for process in self.processes:
            if self.random.random() < share:
                process.stop(spec.name)

    def _admin(self) -> None:
        """A group is brought to rest, then sought, renamed or dropped."""
        spec, process = self.random.choice(self.specs), self._some()
        spec.resting = self.time.elapsed + self.random.choice((1.5, 10.0))
        self._restart(spec, 1.0)
        process.start(self._mend(process, spec, self.random.choice(("seek", "seek", "rename", "drop", "drop"))))

    async def _mend(self, process: Process, spec: Spec, what: str) -> None:
        for _ in range(30):
            await asyncio.sleep(0.3)
            if self.quiet:
                return
            name, to = spec.name, f"{spec.name[:2]}.{self.time.elapsed:.0f}"
            try:
                if what == "seek":
                    start = self.random.choice((0.0, self.time.now() - 3.0, self.time.now() - 0.5, self.time.now() + 9))
                    await process.bus.seek(name, start)
                    self.note(f"{process.name} seeks {name} to {start - 1_767_225_600.0:.3f}")
                elif what == "rename":
                    await process.bus.rename(name, to)
                    self.note(f"{process.name} renames {name} to {to}")
                    spec.name = to
                else:
                    await process.bus.drop(name)
                    self.note(f"{process.name} drops {name}")
            except TidingsError:
                continue
            return

    def _rouse(self) -> None:
        for consumers in self._some().bus.consumers.values():
            for consumer in consumers:
                consumer.wake()

    def _sleep(self) -> None:
        self.note("eight days pass")
        self.time.elapsed += 8 * 86_400.0

    # -- what handlers do --------------------------------------------------------------------------------------------

    async def handle(self, process: Process, name: str, delivery: Delivery) -> tuple[Message[Any], ...]:
        """A handler whose behaviour follows from the message and the group."""
        message = delivery.message
        self.runs[name, message.body] += 1
        run = self.runs[name, message.body]
        chance = crc32(b"%d %s %s" % (self.seed, name.encode(), message.body)) % 100
        self.note(f"{process.name} handles {name} {message.body.decode()} (attempt {delivery.attempt}, run {run})")
        if chance % 3:
            await asyncio.sleep(chance % 7 * 0.05)
        await self._misbehave(process, chance, run)
        if chance >= 90 and not message.topic.startswith("out."):
            return tuple(self._output(name, message, n) for n in range(1 + chance % 2))
        return ()

    async def _misbehave(self, process: Process, chance: int, run: int) -> None:
        if chance == 0 or (chance == 1 and run == 1):
            await self._die(process)
        elif chance < 4:
            raise ValueError("bad")
        elif chance < 16 and run <= 1 + chance % 2:
            raise ValueError("flaky")
        elif chance == 18:
            raise Reject("never")
        elif chance < 22 and run <= 2:
            raise Defer(chance % 2 * 2.5)
        elif chance == 22:
            raise Skip
        elif chance < self.profile.slow and run <= 2:
            await asyncio.sleep((1.4 + 0.2 * (chance % 4) + 0.1 * run) * self.profile.lease)

    async def _die(self, process: Process) -> None:
        process.doomed = True
        await asyncio.get_running_loop().create_future()

    def _output(self, name: str, parent: Message[Any], n: int) -> Message[Any]:
        topic = f"out.{n}"
        id = derived_id(parent.id, name, topic, n)
        body = b"%s>%s.%d" % (parent.body, name.encode(), n)
        return Message(topic, body=body, id=id, key=parent.key, time=self.time.now(), causation_id=parent.id)

    # -- what the writer asks ----------------------------------------------------------------------------------------

    def fate(self) -> str:
        """What becomes of a commit."""
        if self.quiet:
            return "succeeds"
        dice = self.random.random()
        if dice < self.profile.dies:
            return "dies before" if dice < self.profile.dies / 2 else "dies after"
        return "fails" if dice < self.profile.dies + self.profile.fails else "succeeds"

    def stumbles(self, jobs: int) -> int:
        """Which of several steps raises, once; -1: none."""
        if self.quiet or jobs < 2 or self.random.random() >= self.profile.stumbles:
            return -1
        return self.random.randrange(jobs)

    def committed(self, process: Process) -> None:
        self.commits += 1
        effects: list[Effect] = process.desk.effects
        self.note(f"{process.name} commits {', '.join(_told(effect) for effect in effects)}")
        self.oracle.committed(process, effects)

    def rolled_back(self, process: Process, error: Exception) -> None:
        self.note(f"{process.name} rolls back: {error!r}")
        if self.quiet:
            raise Broken(f"a transaction failed: {traceback.format_exception(error)}")
        self.oracle.rolled_back(process)


def _told(effect: Effect) -> str:
    """An effect in a word or two."""
    if effect.name == "claim":
        taken = effect.result
        return f"claim {effect.arguments[0]}: {list(taken.found.numbers)}, again {[seq for _, seq, _ in taken.takes]}"
    if effect.name == "settle":
        lost = {failure.index for failure in effect.result}
        each = enumerate(effect.arguments[0])
        return "settle " + ", ".join(
            f"{s.delivery.token} {'fenced' if n in lost else type(s.action).__name__}" for n, s in each
        )
    if effect.name == "register":
        return f"register {effect.result}: {effect.arguments[0].pattern}"
    return effect.name
