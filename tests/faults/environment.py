"""Nemeses of what a program stands on: the wall clock, fork, other versions, and groups that are left or dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import apsw
from tests.faults.report import Seen, nemesis
from tests.faults.rounds import integrity
from tests.faults.stage import LEASE, Stage, stage, together, until

from tidings import App
from tidings.kernel.errors import BusError, BusTooNew, NotFound
from tidings.kernel.transport import Event, GroupInfo, Manageable
from tidings.testing.faults.process import Process
from tidings.transports.sqlite.log import SCHEMA
from tidings.transports.sqlite.transport import SQLiteTransport

TEN_MINUTES, DAY = 600.0, 86400.0
QUIET = 1.5  # seconds in which nothing must happen

Round = Callable[[Stage], Awaitable[Seen]]


async def rounds_of(one: Round, folder: Path, seed: int, rounds: int, options: str = "") -> Seen:
    """Every round on a bus of its own; what did not happen in time is a fault."""
    seen = []
    for number in range(rounds):
        async with stage(folder, seed, number, options) as s:
            try:
                seen.append(await one(s))
            except TimeoutError as error:
                seen.append(s.seen([f"seed {seed}, round {number}: {error}"]))
    return together(seen)


# -- the wall clock ---------------------------------------------------------------------------------------------------


@nemesis("clock forward", "the wall clock is set ten minutes ahead while messages, retries, ticks and leases wait")
async def clock_forward(folder: Path, seed: int, rounds: int) -> Seen:
    return await rounds_of(_forward, folder, seed, rounds)


async def _forward(s: Stage) -> Seen:
    await s.worker()
    async with s.publisher() as app:
        now = await s.publish(app, s.luck.randint(10, 40))
        soon = await s.publish(app, s.luck.randint(1, 20), delay=s.luck.uniform(60, 590))
        late = await s.publish(app, s.luck.randint(1, 20), delay=s.luck.uniform(620, 3000))
        failing = await s.publish(app, 3, retry=s.luck.uniform(60, 590))
        slow = await s.publish(app, 2, takes=3 * LEASE)
        await s.handled(now)
        await until(lambda: len(s.of("fail")) == 3 and len(_begun(s, slow)) == 2, 20, "failed, and begun")
        await until(lambda: s.of("tick", "every"), 20, "ticks")
        ticked = len(s.of("tick"))
        s.wall.step(TEN_MINUTES)
        await s.handled(soon | failing | slow)
        await until(lambda: s.of("tick", "cron"), 20, "the ticks that were missed are made up for")
        faults = _leases_held(s, slow) + _ticks(s, ticked) + _reported(s, app, 1)
        if late & s.ended().keys():
            faults.append("messages came before their time")
        s.wall.step(4 * TEN_MINUTES + 30)
        await s.handled(late)
        faults += _reported(s, app, 2)
    return s.seen(faults, f"{len(soon)} delayed messages came early, and the step was told")


@nemesis("clock backward", "the wall clock is set ten minutes back, and corrected later")
async def clock_backward(folder: Path, seed: int, rounds: int) -> Seen:
    return await rounds_of(_backward, folder, seed, rounds)


async def _backward(s: Stage) -> Seen:
    await s.worker()
    async with s.publisher() as app:
        slow = await s.publish(app, 2, takes=3 * LEASE)
        failing = await s.publish(app, 3, retry=QUIET)
        await until(lambda: len(s.of("fail")) == 3 and len(_begun(s, slow)) == 2, 20, "failed, and begun")
        soon = await s.publish(app, s.luck.randint(1, 20), delay=s.luck.uniform(0.8, QUIET))
        s.wall.step(-TEN_MINUTES)
        now = await s.publish(app, s.luck.randint(10, 40))
        short = await s.publish(app, s.luck.randint(1, 5), delay=0.5)
        await s.handled(now | short | slow)  # what is new goes by the clock that there is now
        await asyncio.sleep(QUIET)
        faults = _leases_held(s, slow) + _reported(s, app, 1)
        waiting = (soon | failing) - s.ended().keys()
        ticked = len(s.of("tick", "every"))
        s.wall.step(TEN_MINUTES)
        await s.handled(soon | failing)
        await until(lambda: len(s.of("tick", "every")) > ticked, 20, "ticks go on")
        faults += _reported(s, app, 2)
    return s.seen(faults, f"{len(waiting)} messages came later by the step, and it was told" if waiting else "")


def _begun(s: Stage, numbers: set[int]) -> list[int]:
    return [line.n for line in s.of("begin") if line.n in numbers]


def _leases_held(s: Stage, slow: set[int]) -> list[str]:
    again = len(_begun(s, slow)) - len(slow)
    return [f"{again} messages in hand were given to somebody else"] if again else []


def _ticks(s: Stage, before: int) -> list[str]:
    """After a step ahead: those that were missed come as one."""
    lines = s.of("tick")[before:]
    allowed = 4 + 2 * (lines[-1].at - lines[0].at) if lines else 0
    return [f"{len(lines)} ticks came after the step"] if len(lines) > allowed else []


def _reported(s: Stage, app: App, steps: int) -> list[str]:
    """By both processes."""
    told = (app.events["clock"], len(s.of("event", "clock")))
    return [] if told == (steps, steps) else [f"{steps} steps of the clock, told were {told}"]


# -- fork -------------------------------------------------------------------------------------------------------------

CHILDREN = ("publish", "open", "exit", "fork", "spawn", "forkserver")
WELCOME = ("spawn", "forkserver")  # these open a bus of their own


@nemesis("fork", "a process forks while eight tasks publish; its child uses the bus, opens it again, or ends", full=20)
async def fork(folder: Path, seed: int, rounds: int) -> Seen:
    seen = []
    for number in range(rounds):
        for kind in CHILDREN:
            async with stage(folder, seed, number * len(CHILDREN) + CHILDREN.index(kind)) as s:
                seen.append(await _fork(s, kind))
    return together(seen)


async def _fork(s: Stage, kind: str) -> Seen:
    process = await s.processes.start("tests.faults.forker", s.url, kind, errors=s.errors)
    faults = [f"{kind}: the parent ended with {status}"] if (status := await process.wait(60)) else []
    said = {line.partition(":")[0]: line.partition(":")[2].split() for line in process.lines}
    accepted = set(said.get("accepted", []))
    child = " ".join(said.get("child", []))
    if kind in WELCOME:
        accepted |= {child.rpartition(" ")[2]}
        faults += [] if child.startswith("accepted") else [f"{kind}: the child said {child!r}"]
    elif kind != "exit" and not ("TDG-E026" in child and "fork" in child and "spawn" in child):
        faults.append(f"{kind}: the child was not refused: {child!r}")
    if said.get("status", ["?"])[0] != "0":
        faults.append(f"{kind}: the child ended with {said.get('status')}")
    stored = [row[1] for row in await _stored(s)]
    before = int(said.get("status", ["", "0"])[1])
    answered = bool(child) or kind == "exit"
    told = "the child was refused by name, or had a bus of its own; the parent had published, and went on"
    return Seen(
        rounds=1,
        accepted=len(accepted),
        lost=len(accepted - set(stored)),
        duplicated=len(stored) - len(set(stored)),
        faults=[*faults, *_damage(s.path)],
        evidence=told if answered and 0 < before < len(accepted) else "",
    )


async def _stored(s: Stage) -> list[tuple[int, str]]:
    async with App("auditor", s.url).connect() as app:
        found = await app.bus().peek("orders.>", limit=2**31)  # type: ignore[attr-defined]
        return [(stored.position, stored.message.id) for stored in found]


def _damage(path: Path) -> list[str]:
    said = integrity(path)
    return [] if said == "ok" else [f"integrity_check: {said}"]


# -- two versions -----------------------------------------------------------------------------------------------------


@nemesis("newer version", "a process of an older version meets a bus that a newer one has made, and works on")
async def newer_version(folder: Path, seed: int, rounds: int) -> Seen:
    return await rounds_of(_newer, folder, seed, rounds)


async def _newer(s: Stage) -> Seen:
    """The newer process is one of ours whose schema number was raised."""
    faults, refused = list[str](), 0
    async with s.publisher() as app:
        sent = await s.publish(app, s.luck.randint(50, 500))
        newer = apsw.Connection(str(s.path))
        newer.execute(f"PRAGMA user_version = {SCHEMA + 1}")
        before = _bytes(s)
        for _ in range(3):
            try:
                async with App("older", s.url).connect():
                    faults.append("an older version opened the bus")
            except BusTooNew as error:
                refused += "TDG-E024" in str(error) and str(SCHEMA + 1) in str(error) and "upgrade" in error.mend
        if _bytes(s) != before:
            faults.append("being refused changed the file")
        newer.execute(f"PRAGMA user_version = {SCHEMA}")
        newer.close()
        await s.worker()
        await s.handled(sent)
    faults += _damage(s.path)
    return s.seen(faults, f"refused {refused} times, the bus unharmed" if refused == 3 else "")


def _bytes(s: Stage) -> list[bytes]:
    """The database and its log, as SQLite itself reads them: opening the file would drop this process's locks."""
    con = apsw.Connection(str(s.path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return [con.serialize("main"), str(s.path.with_name("bus.db-wal").stat().st_size).encode()]
    finally:
        con.close()


# -- groups that are left, or dropped ---------------------------------------------------------------------------------


@nemesis("abandoned group", "a group has no member for eight days, while retention wants to go on")
async def abandoned_group(folder: Path, seed: int, rounds: int) -> Seen:
    return await rounds_of(_abandoned, folder, seed, rounds, "&retain=1s&segment_rows=50")


async def _abandoned(s: Stage) -> Seen:
    """What retention drops unread is no loss, for the rules allow it. Not to tell would be one."""
    worker = await s.worker()
    async with s.publisher() as app:
        await s.handled(await s.publish(app, 10))
        worker.terminate()
        await worker.wait()
        unread = await s.publish(app, s.luck.randint(200, 600))
    told = list[Event]()
    async with s.bus(told) as bus:
        s.wall.step(6 * DAY)
        await _retain(bus)
        faults = [] if (await _bill(bus)).lag == len(unread) else ["what a group of six days ago had not read is gone"]
        s.wall.step(2 * DAY)
        await _retain(bus)
        group = await _bill(bus)
        left = {stored.message.id for stored in await bus.peek("orders.>", limit=2**31)}
    passed = {n for n in unread if f"m{n}" not in left}
    gone = len(passed)
    if group.lag != len(unread) - gone:
        faults.append(f"{group.lag} messages wait for the group, and {len(unread) - gone} are there")
    if not [event for event in told if event.kind == "retention" and "shop.bill" in event.detail and event.count]:
        faults.append(f"{gone} unread messages are gone, and nobody was told")
    if group.members or not group.name:
        faults.append(f"the group is shown as {group}")
    await s.worker("again")
    async with s.publisher() as app:
        await s.handled(await s.publish(app, 10))
        await until(lambda: len(s.ended()) >= len(s.accepted) - gone, 20, "what was left is handled")
    for n in passed - s.ended().keys():
        del s.accepted[n]
    return s.seen(faults, f"{gone} unread messages passed, the group revived" if gone else "")


async def _retain(bus: SQLiteTransport) -> None:
    """What the writer does every five seconds; first it closes the newest table, then it drops."""
    for _ in range(2):
        await bus.writer.submit(bus.steps.retain)


async def _bill(bus: SQLiteTransport) -> GroupInfo:
    (group,) = await bus.groups("shop.bill")
    return group


@nemesis("group dropped at start", "`groups drop` is called again and again while the app that owns the group starts")
async def dropped_at_start(folder: Path, seed: int, rounds: int) -> Seen:
    return await rounds_of(_dropped_at_start, folder, seed, rounds)


async def _dropped_at_start(s: Stage) -> Seen:
    """From the moment the app says that it is ready, the group is there, and everything is handled."""
    first = await s.worker("first")
    first.terminate()
    await first.wait()
    async with s.publisher() as app:
        worker = await s.start()
        tries, refused = await _drop_until_ready(s, app, worker)
        await s.handled(await s.publish(app, 50))
        faults = ["a group with a member at work was dropped"] if await _dropped(app) else []
    evidence = f"tried {tries} times while it started, refused {refused} times" if tries > refused > 0 else ""
    return s.seen(faults, evidence)


async def _dropped(app: App) -> bool:
    """False while the group has members. Raises ``NotFound``."""
    bus = app.bus()
    assert isinstance(bus, Manageable)
    try:
        await bus.drop("shop.bill")
    except BusError:
        return False
    return True


async def _drop_until_ready(s: Stage, app: App, worker: Process) -> tuple[int, int]:
    tries = refused = 0
    while "ready" not in worker.lines:
        tries += 1
        with suppress(NotFound):
            refused += not await _dropped(app)
        await asyncio.sleep(s.luck.uniform(0, 0.002))
    return tries, refused


@nemesis("group dropped underneath", "a process is frozen past its lease, its group is dropped, and it goes on")
async def dropped_underneath(folder: Path, seed: int, rounds: int) -> Seen:
    return await rounds_of(_dropped_underneath, folder, seed, rounds)


async def _dropped_underneath(s: Stage) -> Seen:
    """It ends with an error that says so, and does no harm; started again, it has its group again."""
    worker = await s.worker()
    async with s.publisher() as app:
        await s.handled(await s.publish(app, 20))
        worker.freeze()
        await until(lambda: worker.frozen, 5, "frozen")
        async with asyncio.timeout(10 * LEASE):
            while not await _dropped(app):  # noqa: ASYNC110  # once its lease is over
                await asyncio.sleep(0.1)
        worker.thaw()
        await worker.wait()
        said = s.errors.read_text()
        await s.worker("again")
        await s.handled(await s.publish(app, 20))
    seen = s.seen([], "dropped while frozen; it noticed, and ended" if "TDG-E012: a group was dropped" in said else "")
    seen.bound = 20  # a new group, which starts at the first message
    return seen
