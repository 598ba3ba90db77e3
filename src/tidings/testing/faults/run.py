"""A run: processes are started, a nemesis acts, what died is started again, and at the end the checker judges.

async def nemesis(run: Run) -> None:
    await run.until(lambda: run.count("end") > 50, "work is under way")
    run.kill("c0")

report = await perform(Scenario(url="sqlite:////tmp/bus.db?lease=1s"), folder, nemesis, seed=7)
assert report.held, report
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tidings.kernel.errors import InvalidOption
from tidings.kernel.topics import DEAD
from tidings.kernel.transport import Inspectable, Options, Stored
from tidings.transports.memory import Memory
from tidings.urls import options_for

from .checker import Verdict, Violation, judge, letter_of
from .history import Histories, Journal, Line
from .process import Process, Processes
from .scenario import APP, POISONED, Scenario, Spec

WORKER = "tidings.testing.faults.worker"
POLL = 0.01
ANSWER = 20.0  # seconds a bus has to say what it has left


class Report(Struct, kw_only=True):
    """What a run found. ``log``: what was done when, in seconds since its start; ``folder``: journals, bus, log."""

    seed: int
    verdict: Verdict
    log: list[str]
    folder: Path
    seconds: float

    @property
    def held(self) -> bool:
        return self.verdict.held

    def __str__(self) -> str:
        return "\n".join([f"seed {self.seed}, journals in {self.folder}", str(self.verdict), *self.log])


class Run:
    """A scenario being played. Processes are known by name: publishers ``p0`` …, consumers ``c0`` …"""

    def __init__(
        self, scenario: Scenario, folder: Path, processes: Processes, seed: int, environment: dict[str, str]
    ) -> None:
        self.scenario, self.folder, self.processes = scenario, folder, processes
        self.random, self.environment = random.Random(seed), environment
        self.journals = folder / "journals"
        if folder.exists() and any(folder.iterdir()):
            raise InvalidOption(f"{folder} is not empty", mend="an empty or a new folder for each run")
        self.journals.mkdir(parents=True)
        self.histories, self.journal = Histories(self.journals), Journal(self.journals / "run.jsonl", "run")
        self.counts = Counter[tuple[str, str]]()  # of lines, by kind and process; "": any
        self.written = defaultdict[tuple[str, int], list[Line]](list)  # by process and pid
        self.waiting: dict[tuple[str, str], int] = {}  # accepted and not handled, by group and id: the number
        self.done = set[tuple[str, str]]()  # handled
        self.alive: dict[str, Process] = {}
        self.starts = Counter[str]()
        self.ended: dict[str, int] = {}  # names that are not to be started again, with their last status
        self.log: list[str] = []
        self.began = time.monotonic()
        self.troubles: list[Violation] = []

    # -- for a nemesis

    def note(self, what: str, name: str = "", *, harmless: bool = True) -> None:
        """Write down what is being done; it is evidence. ``harmless``: it may not cost the process what it has."""
        pid = self.alive[name].pid if name in self.alive else 0
        self.journal.write("action" if harmless else "fault", process=name, pid=pid, detail=what)
        self.log.append(f"{time.monotonic() - self.began:7.3f} {what} {name} {pid or ''}".rstrip())

    def process(self, name: str) -> Process:
        """Raises ``LookupError`` while it does not run: it has ended, or died and is being started again."""
        if name not in self.alive:
            raise LookupError(f"{name} does not run now; there are {', '.join(sorted(self.alive)) or 'none'}")
        return self.alive[name]

    def kill(self, name: str) -> None:
        """``kill -9``; it is started again. Raises ``LookupError``, as do the others."""
        process = self.process(name)
        self.note("killed", name, harmless=False)
        process.kill()

    def freeze(self, name: str) -> None:
        process = self.process(name)
        self.note("frozen", name, harmless=False)
        process.freeze()

    def thaw(self, name: str) -> None:
        process = self.process(name)
        self.note("thawed", name)
        process.thaw()

    async def terminate(self, name: str, within: float = 40.0) -> None:
        """SIGTERM, and wait for its end; it is not started again. An unclean end is a violation."""
        process = self.process(name)
        self.note("terminated", name)
        await self._drain(name, process, within)

    async def _drain(self, name: str, process: Process, within: float = 40.0) -> None:
        self.ended[name] = 0
        with suppress(EOFError, TimeoutError):
            await process.line("ready")  # before that nobody listens to SIGTERM
        process.terminate()
        try:
            status = await process.wait(within)
        except TimeoutError:
            self.troubles.append(Violation("drain", f"{name} did not end within {within:g} s of SIGTERM"))
            process.kill()
            status = await process.wait()
        self._exited(name, status)
        over = status == -signal.SIGTERM and name.startswith("p")  # it had published all, and listened no more
        if status not in (0, -signal.SIGKILL) and not over:
            self.troubles.append(Violation("drain", f"{name} ended with status {status}"))

    async def start(self, name: str, *, points: str = "", held: bool = False) -> Process:
        """Start a process, again or for the first time; a publisher goes on behind the last number it tried.

        ``points``: fail points, beside those that the scenario has for this start.
        """
        self.ended.pop(name, None)
        plans = self.scenario.points.get(name, ())[self.starts[name] :]
        points = f"{plans[0] if plans else ''} {points}".strip()
        self.starts[name] += 1
        journal = self.journals / f"{name}.{self.starts[name]}.jsonl"
        role, (first, last) = "consumer", (0, 0)
        if name.startswith("p"):
            self.poll()
            share = self.scenario.share(int(name[1:]))
            tried = [line.n for line in self.histories.lines if line.what == "try" and line.process == name]
            role, (first, last) = "publisher", (max(tried, default=share.start - 1) + 1, share.stop)
        spec = Spec(
            scenario=self.scenario, role=role, name=name, journal=str(journal), first=first, last=last, held=held
        )
        text = msgspec.json.encode(spec).decode()
        errors = self.folder / "stderr.txt"
        process = await self.processes.start(WORKER, text, points=points, environment=self.environment, errors=errors)
        self.alive[name] = process
        self.journal.write("started", process=name, pid=process.pid)
        if points:
            self.journal.write("armed", process=name, pid=process.pid, detail=points)
        armed = f" with {points}" if points else ""
        self.log.append(f"{time.monotonic() - self.began:7.3f} started {name} {process.pid}{armed}")
        return process

    async def until(self, condition: Callable[[], Any], what: str, within: float = 30.0) -> None:
        """Wait for a condition on the histories. Raises ``TimeoutError`` that says what did not come."""
        deadline = time.monotonic() + within
        while True:
            self.poll()
            if condition():
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {within:g} s: {what}")
            await asyncio.sleep(POLL)

    def of(self, name: str) -> list[Line]:
        """What the present process of that name has written."""
        self.poll()
        return self.written[name, self.alive[name].pid] if name in self.alive else []

    def count(self, what: str, process: str = "") -> int:
        """How many lines of a kind the histories have, of a process or of all."""
        return self.counts[what, process]

    def poll(self) -> None:
        """Read what the processes have written since."""
        for line in self.histories.poll():
            self.counts[line.what, ""] += 1
            self.counts[line.what, line.process] += 1
            self.written[line.process, line.pid].append(line)
            if line.what == "end" or (line.what == "settled" and line.detail == "dead"):
                self.done.add((line.group, line.id))
                self.waiting.pop((line.group, line.id), None)
            elif line.what == "accepted":
                self._wait_for(line.n)

    def _wait_for(self, n: int) -> None:
        for group in self.scenario.groups:
            where = (group.full, self.scenario.reaches(group, n))
            buried = self.scenario.dead(group.name, n) not in ("", "crashed")  # one that crashes may still come back
            if where[1] and where not in self.done and not buried:
                self.waiting[where] = n

    @property
    def idle(self) -> bool:
        """Whether everything that was accepted so far is handled."""
        self.poll()
        return not self.waiting

    @property
    def published(self) -> bool:
        """Whether all publishers are done."""
        return all(f"p{n}" in self.ended for n in range(self.scenario.publishers))

    @property
    def consumers(self) -> list[str]:
        """Those that run."""
        return [name for name in self.alive if name.startswith("c")]

    # -- the play

    async def play(self, nemesis: Nemesis | None, within: float) -> None:
        scenario, stuck = self.scenario, ""
        publishers = [f"p{n}" for n in range(scenario.publishers)]
        consumers = [f"c{n}" for n in range(scenario.consumers)]
        supervisor = asyncio.ensure_future(self._supervise())
        try:
            async with asyncio.timeout(within):
                first, second = (publishers, consumers) if scenario.backlog else (consumers, publishers)
                await self._begin(first, ready=not scenario.first)
                if scenario.backlog:
                    await self._raised(supervisor, self._published())
                await self._begin(second, held=scenario.backlog)
                acting = asyncio.ensure_future(nemesis(self) if nemesis is not None else asyncio.sleep(0))
                try:
                    await self._raised(supervisor, acting)
                finally:
                    acting.cancel()
                await self._raised(supervisor, self._published())
                await self._raised(supervisor, self._handled())
        except Exception as error:
            if not isinstance(error, TimeoutError | ChildProcessError):
                self.troubles.append(Violation("error", _told(error)))
            stuck = str(error).partition("\n")[0] or f"not over within {within:g} s"
        finally:
            supervisor.cancel()
        for process in self.alive.values():
            process.thaw()  # one may have a lock in hand
        for name, process in list(self.alive.items()):
            await self._drain(name, process)
        if stuck:
            self.journal.write("stuck", why=stuck, n=await self._left())

    async def _begin(self, names: list[str], *, held: bool = False, ready: bool = False) -> None:
        started = [await self.start(name, held=held) for name in names]
        for process in started if ready or held else ():
            await process.line("held" if held else "ready")
        for process in started if held else ():
            await process.write()

    async def _raised(self, supervisor: asyncio.Future[None], work: Awaitable[None]) -> None:
        """Await ``work``; what the supervisor raises comes first."""
        task = asyncio.ensure_future(work)
        await asyncio.wait({task, supervisor}, return_when=asyncio.FIRST_COMPLETED)
        if supervisor.done():
            task.cancel()
            supervisor.result()
        await task

    async def _supervise(self) -> None:
        """Start again what died."""
        while True:
            for name, process in list(self.alive.items()):
                status = process.returncode
                if status is None or name in self.ended:
                    continue
                self._exited(name, status)
                meant = status == POISONED and any(fate.dies for fate in self.scenario.fates)
                if status not in (0, -signal.SIGKILL) and not meant:
                    self.troubles.append(Violation("died", f"{name} ended by itself with status {status}"))
                if status == 0:
                    self.ended[name] = 0
                elif self.starts[name] > self.scenario.restarts:
                    raise ChildProcessError(f"{name} died {self.starts[name]} times, last with status {status}")
                else:
                    await self.start(name)
            await asyncio.sleep(POLL)

    def _exited(self, name: str, status: int) -> None:
        process = self.alive.pop(name)
        self.journal.write("exited", process=name, pid=process.pid, n=status)
        self.log.append(f"{time.monotonic() - self.began:7.3f} exited {name} {process.pid} with status {status}")

    async def _published(self) -> None:
        while not self.published:  # noqa: ASYNC110
            await asyncio.sleep(POLL)

    async def _handled(self) -> None:
        """Until every accepted message was handled by every group, and the bus has nothing left for them."""
        while not self.idle:  # noqa: ASYNC110  # the histories are files
            await asyncio.sleep(POLL)
        async with _bus(options_for(self.scenario.url)) as transport:
            while await self._backlog(transport) > 0:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(POLL)

    async def _left(self) -> int:
        """How much the bus has for the groups; -1: nobody knows."""
        with suppress(Exception):  # it is being judged, and may be damaged
            async with asyncio.timeout(ANSWER), _bus(options_for(self.scenario.url)) as transport:
                return await self._backlog(transport)
        return -1

    async def _backlog(self, transport: Any) -> int:
        """What the bus has for the groups; -1: it does not tell, or does not know them all yet."""
        if not isinstance(transport, Inspectable):
            return -1
        groups = [group for group in await transport.groups() if group.app == APP]
        known = {group.name for group in groups} >= {group.full for group in self.scenario.groups}
        return sum(group.lag + group.in_flight + group.parked for group in groups) if known else -1

    # -- what is on the bus in the end

    async def look(self) -> None:
        """Write down dead letters and what is stored on the topics that handlers feed."""
        async with _bus(options_for(self.scenario.url)) as transport:
            for topic in {group.to for group in self.scenario.groups if group.to}:
                found = await _peek(transport, topic)
                self.journal.extend(Line(what="stored", group=topic, id=each.message.id) for each in found)
            self.journal.extend(_letter(each) for each in await _peek(transport, DEAD + ">"))


Nemesis = Callable[[Run], Awaitable[None]]


@asynccontextmanager
async def _bus(options: Options) -> AsyncIterator[Any]:
    transport = options.transport()
    await transport.open(lambda event: None)
    try:
        yield transport
    finally:
        await transport.close()


def _told(error: Exception) -> str:
    """The error, and whose line raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = next((frame for frame in reversed(frames) if frame.filename != __file__), frames[-1])
    return f"{error!r} at {where.filename}:{where.lineno}"


async def _peek(transport: Any, pattern: str) -> list[Stored]:
    found: list[Stored] = []
    while some := await transport.peek(pattern, found[-1].position if found else 0, 1000):
        found += some
    return found


def _letter(stored: Stored) -> Line:
    message = stored.message
    headers = dict(message.headers or ())
    told = msgspec.json.encode(letter_of(headers, message.body)).decode()
    return Line(what="letter", group=headers["tdggroup"], id=message.id, key=message.key, detail=told)


def _to_be_made(options: Any) -> bool:
    """A bus in a file: to make it is left to the processes, all at once."""
    return hasattr(options, "path") and not Path(options.path).exists()


async def _refuse(url: str) -> None:
    """Raises ``InvalidOption`` for a bus that would be accused of what it did not do."""
    options = options_for(url)
    if isinstance(options, Memory):
        raise InvalidOption(f"{url} is a bus of one process", mend="one that several share, such as sqlite:///FILE")
    if _to_be_made(options):
        return
    async with _bus(options) as transport:
        if isinstance(transport, Inspectable) and [group for group in await transport.groups() if group.app == APP]:
            raise InvalidOption(f"{url} was used by an earlier run", mend="a new bus for each run")


async def perform(
    scenario: Scenario,
    folder: Path,
    nemesis: Nemesis | None = None,
    *,
    seed: int = 0,
    within: float = 60.0,
    environment: dict[str, str] | None = None,
) -> Report:
    """Play a scenario in an empty folder on a new bus, and judge it. ``environment``: of its processes.

    The seed decides ``run.random``, and so what a nemesis does; the machine decides what it meets. Never raises for
    what it saw; raises ``InvalidOption`` for a folder or a bus that cannot be judged by.
    """
    began = time.monotonic()
    await _refuse(scenario.url)
    async with Processes() as processes:
        run = Run(scenario, folder, processes, seed, environment or {})
        (folder / "scenario.json").write_bytes(msgspec.json.format(msgspec.json.encode(scenario)))
        await run.play(nemesis, within)
    if scenario.peek:
        try:
            await run.look()
        except Exception as error:  # judged without
            run.troubles.append(Violation("error", f"looking into the bus: {_told(error)}"))
            scenario = replace(scenario, peek=False)
    run.poll()
    verdict = judge(run.histories.lines, scenario)
    verdict.violations += run.troubles
    report = Report(seed=seed, verdict=verdict, log=run.log, folder=folder, seconds=time.monotonic() - began)
    (folder / "report.txt").write_text(f"{report}\n")
    return report
