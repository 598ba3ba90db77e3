"""One thread writes: it commits whatever has gathered, as one transaction, and tells the event loop once per commit.

Rules. Steps run in the order they came. A step that raises one of our errors has changed nothing and fails alone; after
any other error the transaction is rolled back and its steps run again, each in a transaction of its own, so that no
step can hurt its neighbours. Between commits the thread looks whether another process wrote (``PRAGMA data_version``:
every 1 ms when something happened lately, else every 20 ms), moves what is due, and buries dead members.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import apsw
from msgspec import DecodeError, Struct

from tidings.kernel.clock import Clock
from tidings.kernel.errors import BusForked, BusUnavailable, TidingsError
from tidings.kernel.transport import Event
from tidings.transports._points import passed

from . import translate
from .claims import Claims
from .groups import Held
from .log import sql

T = TypeVar("T")
Job = tuple[Callable[[], Any], "asyncio.Future[Any] | None", bool]

BUSY, IDLE, LIVELY = 0.001, 0.020, 0.2  # how often to look for other processes; for how long after something happened
HAND_OVER = 0.0003  # a loop that comes back later than this is busy
HOUSEKEEPING = 0.5
RETENTION = 5.0
STEP = 1.0  # seconds that the wall clock jumps against the monotonic one: it was set
SYNC = 0.010  # seconds that soft commits may wait for the disk, while there are others
WAL_PAGES = 2000  # 16 MiB: then the log is copied into the file, without waiting for readers
WAL_LARGE = 4 * WAL_PAGES  # reported, and again whenever it has doubled


class News(Struct):
    """What the loop is told after a commit, beside results: channels that got messages (None: perhaps all)."""

    topics: set[str] | None
    groups: set[int]
    lost: list[Held]
    events: list[Event]


class Writer:
    """The thread. ``submit`` and what ``told`` gets belong to the event loop; everything else to the thread."""

    def __init__(self, path: Path, groups: Claims, sync: str, clock: Clock, told: Callable[[News], None]) -> None:
        self.path, self.log, self.groups, self.con = path, groups.log, groups, groups.con
        self.full, self.clock, self.told = sync == "full", clock, told
        self.loop = asyncio.get_running_loop()
        self.queue: SimpleQueue[Job | None] = SimpleQueue()
        self.waiting = 0  # steps the loop has submitted and not heard of
        self.yielding, self.expected = False, 0.0
        self.pid = os.getpid()
        self.file = _file(path)
        self.gone: BusUnavailable | None = None
        self.synchronous, self.synced, self.unsynced = True, 0.0, False  # as `connect` leaves it
        self.version = self.audience = -1
        self.lively = self.housekeeping = self.retention = 0.0
        self.next_due: float | None = None
        self.pages, self.wal_told = 0, WAL_LARGE
        self.con.set_wal_hook(self._wal)
        self.stuck = False
        self.ahead = clock.now() - clock.monotonic()
        self.thread = Thread(target=self._run, name=f"tidings {path.name}", daemon=True)

    def start(self) -> None:
        self.thread.start()

    # -- the loop's side -----------------------------------------------------------------------------------------

    def submit(self, step: Callable[[], T], *, soft: bool = False) -> asyncio.Future[T]:
        """Run ``step`` in a transaction. ``soft``: losing it to a power failure only delivers again."""
        if os.getpid() != self.pid:
            raise forked(self.path)
        future: asyncio.Future[T] = self.loop.create_future()
        self.waiting += 1
        self.queue.put((step, future, soft))
        if not self.yielding:
            self.yielding, self.expected = True, time.monotonic()
            self.loop.call_soon(self._yield)
        return future

    def _yield(self) -> None:
        """Let the thread have the GIL: a loop that never blocks would keep it. Rarely, if the loop is idle."""
        if not self.waiting:
            self.yielding = False
            return
        late = time.monotonic() - self.expected
        time.sleep(1e-6)
        self.expected = time.monotonic()
        if late > HAND_OVER:
            self.loop.call_soon(self._yield)
        else:
            self.expected += HAND_OVER
            self.loop.call_later(HAND_OVER, self._yield)

    def _tell(self, done: list[tuple[asyncio.Future[Any], Any, BaseException | None]], news: News | None) -> None:
        self.waiting -= len(done)
        for future, result, error in done:
            if future.cancelled():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        if news is not None:
            self.told(news)

    async def stop(self) -> None:
        """Commit what is queued, and end the thread."""
        self.queue.put(None)
        await asyncio.to_thread(self.thread.join)

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        jobs: list[Job] | None = []
        while jobs is not None:
            jobs = self._gather()
            with suppress(RuntimeError):  # the loop was closed under us
                if jobs:
                    self.lively = time.monotonic()
                    self._commit(jobs)
                if jobs is not None:
                    self._look()
        passed("stop")
        with suppress(apsw.Error):
            self.con.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        with suppress(apsw.Error):
            self.con.close()

    def _gather(self) -> list[Job] | None:
        """All that is queued; none after a while; None: stop."""
        jobs: list[Job] = []
        try:
            job = self.queue.get(timeout=BUSY if time.monotonic() - self.lively < LIVELY else IDLE)
            while job is not None:
                jobs.append(job)
                job = self.queue.get_nowait()
        except Empty:
            return jobs
        if not jobs:
            return None
        self.queue.put(None)  # stop, after these
        return jobs

    def _commit(self, jobs: list[Job]) -> None:
        done: list[tuple[asyncio.Future[Any] | None, Any, BaseException | None]] = []
        if self.gone is None:
            try:
                done = self._transaction(jobs)
            except Exception as error:
                if len(jobs) == 1:
                    self._answer([(future, None, self._blame(error)) for _, future, _ in jobs], None)
                else:
                    for job in jobs:
                        self._commit([job])
                return
        if self._file_gone():
            self._answer([(future, None, self.gone) for _, future, _ in jobs], None)
            return
        passed("commit.after")
        self._answer(done, self._news())
        self.log.seen = self.log.seq
        if self.pages > WAL_PAGES:
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Copy the write-ahead log into the file, as far as readers let us; one that stays holds up all of it."""
        self.pages = 0
        passed("checkpoint")
        with suppress(apsw.Error):
            pages, copied = self.con.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            left = pages - copied
            if left < WAL_LARGE:
                self.wal_told = WAL_LARGE
            elif left >= self.wal_told:
                self.wal_told = left * 2
                told = f"the write-ahead log has grown to {left // 128:,} MiB: something reads in one long transaction"
                self._event("wal", told)

    def _transaction(self, jobs: list[Job]) -> list[tuple[asyncio.Future[Any] | None, Any, BaseException | None]]:
        overdue = self.clock.monotonic() - self.synced > SYNC
        synchronous = self.full and (overdue or not all(soft for _, _, soft in jobs))
        if synchronous != self.synchronous:
            self.con.execute(f"PRAGMA synchronous = {'FULL' if synchronous else 'NORMAL'}")
            self.synchronous = synchronous
        self._begin()
        try:
            passed("begin")
            done: list[tuple[asyncio.Future[Any] | None, Any, BaseException | None]] = []
            self.groups.begin(time.monotonic())  # first: a rollback restores what it has noted
            self.log.begin(self.clock.now())
            for step, future, _ in jobs:
                try:
                    done.append((future, step(), None))
                except TidingsError as error:
                    done.append((future, None, error))
            self.log.flush()
            passed("commit.before")
            self.con.execute("COMMIT")
            self.unsynced = not synchronous
            self.synced = self.synced if self.unsynced else self.clock.monotonic()
        except BaseException:
            with suppress(apsw.Error):
                self.con.execute("ROLLBACK")
            self.log.reset()
            self.groups.reset()
            raise
        return done

    def _begin(self) -> None:
        while True:
            try:
                self.con.execute("BEGIN IMMEDIATE")
            except apsw.BusyError:
                if not self.stuck:
                    self.stuck = True
                    self._event("lost", "another process holds the write lock (stopped inside a transaction?)")
                continue
            if self.stuck:
                self.stuck = False
                self._event("connected", "the write lock is free again")
            return

    def _event(self, kind: Any, detail: str) -> None:
        self._answer([], News(set(), set(), [], [Event(kind, 1, detail)]))

    def _news(self) -> News | None:
        log, groups = self.log, self.groups
        if log.delayed_until is not None:
            self.next_due = min(log.delayed_until, self.next_due or log.delayed_until)
        if log.unrouted:
            groups.events.append(Event("unrouted", len(log.unrouted), log.unrouted[0]))
        if log.audience != self.audience:  # somebody changed what a group reads: look anew
            self.audience = log.audience
            groups.woken |= groups.joined
        if log.touched is not None and not (log.touched or groups.woken or groups.lost or groups.events):
            return None
        topics = None if log.touched is None else {log.topics[channel][0] for channel in log.touched}
        return News(topics, groups.woken, groups.lost, groups.events)

    def _answer(self, done: list[Any], news: News | None) -> None:
        done = [entry for entry in done if entry[0] is not None]
        if done or news:
            self.loop.call_soon_threadsafe(self._tell, done, news)

    def _look(self) -> None:
        """Between commits: did others write, is a timer due, has a member died?"""
        try:
            version = self.con.execute("PRAGMA data_version").get
            now = time.monotonic()
            self._watch_clock()
            if version != self.version:
                self.version, self.lively = version, now
                self._read_news()
                self.housekeeping = min(self.housekeeping, now + 0.05)
            if self.next_due is not None and self.next_due <= self.clock.now():
                self._commit([(self._move_due, None, True)])
            if now >= self.housekeeping:
                self.housekeeping = now + HOUSEKEEPING
                if self._file_gone():
                    return
                if self.unsynced:
                    with suppress(apsw.BusyError):  # another process is at it: next time
                        self.con.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                        self.unsynced = False
                self._keep_house(now)
        except Exception as error:  # the thread must not die of it: others wait for their commits
            self._event("lost", str(error))
            self.lively = 0.0

    def _watch_clock(self) -> None:
        """What is delayed follows the wall clock: when that is set, it comes early, or late. It is told, once."""
        ahead = self.clock.now() - self.clock.monotonic()
        if abs(ahead - self.ahead) > STEP:
            self._event(
                "clock", f"the clock was set by {ahead - self.ahead:+.1f} s, or the machine slept; delays follow it"
            )
        self.ahead = ahead

    def _read_news(self) -> None:
        """What other processes stored."""
        self.con.execute("BEGIN")
        try:
            self.log.begin(self.clock.now())
            self.next_due = self.log.next_due()
            self.groups.woken, self.groups.lost, self.groups.events = set(), [], []
        finally:
            self.con.execute("COMMIT")
        self._answer([], self._news())
        self.log.seen = self.log.seq

    def _move_due(self) -> None:
        while self.log.move_due():
            pass
        self.next_due = self.log.next_due()

    def _keep_house(self, now: float) -> None:
        if self.groups.gone(now):
            self._commit([(self.groups.expire, None, True)])
        rows = self.con.execute(sql("waiting"), {"now": self.clock.now()}).fetchall()
        waiting: set[Any] = {group for (group,) in rows}
        if waiting:
            self._answer([], News(set(), waiting, [], []))
        if now >= self.retention:
            self.retention = now + RETENTION
            self._commit([(self.groups.retain, None, True)])

    def _file_gone(self) -> bool:
        """What is committed into a file that was deleted or replaced is lost: so nothing is told any more."""
        if self.gone is None and _file(self.path, self.file) != self.file:
            self.gone = BusUnavailable(
                f"{self.path} is not the file that was opened",
                why="it was deleted or replaced while the bus was open; what is written into the old one is lost",
                mend="open the bus again; replace a bus file only while no process has it open",
            )
            self._event("lost", str(self.gone))
        return self.gone is not None

    def _wal(self, con: apsw.Connection, name: str, pages: int) -> int:
        self.pages = pages
        return apsw.SQLITE_OK

    def _blame(self, error: Exception) -> Exception:
        return translate(error, self.path) if isinstance(error, apsw.Error | DecodeError | OSError) else error


def _file(path: Path, unless: tuple[int, int] | None = None) -> tuple[int, int] | None:
    """Which file a path names now: none, or ``unless`` where that cannot be told."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError:
        return unless
    return found.st_dev, found.st_ino


def forked(path: Path) -> BusForked:
    return BusForked(
        f"{path} was opened before fork()",
        why="SQLite connections and threads do not survive a fork",
        mend="fork first and open then, in each process; for multiprocessing use spawn or forkserver",
    )
