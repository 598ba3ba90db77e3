"""Where plain functions run: threads, and child processes. Both are an ``Executor`` of the kernel.

Both work through a chunk in order and stop early, when it has run for long enough: one slow call then holds up nobody
behind it, and what has not started goes back to the worker. How much is taken at once follows from how long calls take.

A child is a fresh interpreter (exec, never fork: it inherits no descriptor of a bus and no lock, and does not run
``__main__`` again) at the other end of a socket pair. Only bytes cross. It ends when the other end is closed: also when
its parent was killed, also in the middle of a call.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from itertools import accumulate
from queue import SimpleQueue
from threading import Thread, get_ident
from traceback import format_exception, format_exception_only
from typing import Any, Protocol

from msgspec import Raw, Struct, msgpack

from .inject import Call, Recipe, where
from .kernel.errors import HandlerCrashed, HandlerTimeout, InvalidHandler, users
from .kernel.handler import Outcome, Outgoing
from .kernel.transport import Delivery, Session
from .transports._records import messages, record

THREAD_CHUNK, PROCESS_CHUNK = 0.001, 0.005  # seconds of work that chunks aim at
MOST, MOST_BYTES = 256, 1024 * 1024  # calls in a chunk; bytes of bodies in one for a child
GRACE, START = 5.0, 60.0  # seconds: for running calls at the end; for a child to import its handler
SAMPLE, FORGET = 0.02, 10.0  # seconds between looks at what threads do; until another number of them is tried
SPARE, CLOCKS = 5, 64  # looks in a row, for one may be mistaken; threads whose clocks are read
AGAIN, AGAIN_MOST = 0.05, 2.0  # seconds before another child is started, when several died without an answer

# a signal to the whole group (Ctrl-C, systemd) is the parent's business: it drains, and ends its children itself
BOOT = "import sys, signal as s; s.signal(s.SIGINT, s.SIG_IGN); s.signal(s.SIGTERM, s.SIG_IGN); "
BOOT += "fd, sys.path[:] = int(sys.argv[1]), sys.argv[2:]; "
BOOT += "import tidings.executors as e; e.serve(fd)"


class Executor(Protocol):
    """Runs a plain function elsewhere. It may return fewer outcomes than deliveries: the rest has not started."""

    def limit(self) -> int:
        """How many deliveries it takes at once, now."""

    async def __call__(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]: ...

    def resize(self, workers: int) -> None:
        """At most so many threads or processes from now on."""

    async def close(self) -> None:
        """Let what runs finish, then free the threads or processes."""


class Paced:
    """How many calls fill a chunk of ``target`` seconds, from a moving average of what calls took."""

    def __init__(self, target: float) -> None:
        self.target = self.mean = target

    def limit(self) -> int:
        """How many deliveries to take at once, now."""
        return max(1, min(MOST, int(self.target / max(self.mean, 1e-9))))

    def record(self, calls: int, elapsed: float) -> None:
        """A chunk is stopped at its target. If it ran for twice as long it had a slow call in it: back to one."""
        self.mean = self.target if elapsed > 2 * self.target else (self.mean + elapsed / calls) / 2


class Crew:
    """How many of ``most`` threads may run at once: all, unless they take turns at the GIL; then as few as do as much.

    Threads that compute in Python share one processor, and each of them makes everybody else wait for a turn: the event
    loop and the bus's writer, too.
    """

    def __init__(self, most: int) -> None:
        self.most = self.allowed = most
        self._floor, self._until = 1, 0.0  # fewer were not enough lately; when that is forgotten
        self._spare = 0  # looks in a row that saw room for more

    def decide(self, pool: float, process: float, busy: int, now: float) -> None:
        """``pool``, ``process``: processors that the ``busy`` threads, and all of the process, used lately."""
        spare = pool > 1.2 or process < 0.85  # they let go of the GIL, or nobody has it: more may do more
        self._spare = self._spare + 1 if spare and self.allowed < self.most else 0
        if now > self._until and self.most > 1:
            self._floor, self._until = 1, now + FORGET
            self.allowed = max(2, self.allowed)  # perhaps they have changed
        elif self._spare >= SPARE:
            self._floor, self._spare = min(self.most, 2 * max(busy, self.allowed)), 0
            self.allowed = self._floor
        elif not spare and pool > 0.3 and busy <= self.allowed:
            self.allowed = self._floor


def work_through(call: Call, deliveries: Sequence[Delivery], target: float) -> tuple[float, list[Outcome]]:
    """The outcomes in order, until all are done or ``target`` seconds have passed; and how long it took."""
    outcomes: list[Outcome] = []
    began, elapsed = time.perf_counter(), 0.0
    for delivery in deliveries:
        outcomes.append(copy_context().run(_attempt, call, delivery))
        elapsed = time.perf_counter() - began
        if elapsed > target:
            break
    return elapsed, outcomes


def _attempt(call: Call, delivery: Delivery) -> Outcome:
    try:
        return call(delivery)
    except Exception as error:
        return users(error)
    except BaseException as error:  # SystemExit and the like end neither a thread nor a child
        return HandlerCrashed(f"the handler raised {error!r}").with_traceback(users(error).__traceback__)


async def _waited(running: Callable[[], Any], patience: float) -> None:
    """Until nothing runs, at most ``patience`` seconds. Nothing tells portably that a thread or process has ended."""
    deadline = time.monotonic() + patience
    while running() and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.002)


class Threads(Paced):
    """Runs a call in up to ``workers`` daemon threads, started when needed. A thread takes a chunk and reports once.

    A thread cannot be stopped: when the task that awaits it is cancelled it goes on, and what it returns is dropped.
    One that computes in pure Python holds up the event loop, each time by the interpreter's switch interval.
    """

    def __init__(self, call: Call, workers: int, name: str) -> None:
        super().__init__(THREAD_CHUNK)
        self.call, self.workers, self.name, self.crew = call, workers, name, Crew(workers)
        self._jobs, self._threads, self._busy = SimpleQueue[Callable[[], None] | None](), list[Thread](), 0
        self._turns, self._clocks, self._looking = deque[asyncio.Future[None]](), list[int](), False

    async def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        loop, context = asyncio.get_running_loop(), copy_context()
        future: asyncio.Future[list[Outcome]] = loop.create_future()

        def job() -> None:
            done = context.run(work_through, self.call, () if future.cancelled() else deliveries, THREAD_CHUNK)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._report, future, *done)

        while self._busy >= self.crew.allowed:
            self._turns.append(turn := loop.create_future())
            try:
                await turn
            except asyncio.CancelledError:
                self._admit()
                raise
        self._busy += 1
        if not self._looking and self._clocks and not hasattr(loop, "clock"):  # not in virtual time
            self._looking = True
            loop.call_later(SAMPLE, self._look)
        if len(self._threads) < min(self._busy, self.workers):
            self._threads.append(
                Thread(target=_work, args=(self._jobs, self._clocks), name=f"tidings {self.name}", daemon=True)
            )
            self._threads[-1].start()
        self._jobs.put(job)
        return await future

    def resize(self, workers: int) -> None:
        self.workers, self.crew = workers, Crew(workers)
        self._admit()

    def _report(self, future: asyncio.Future[list[Outcome]], elapsed: float, outcomes: list[Outcome]) -> None:
        if outcomes:
            self.record(len(outcomes), elapsed)
        self._busy -= 1
        self._admit()
        if not future.done():
            future.set_result(outcomes)

    def _look(self, before: tuple[float, float, float] | None = None) -> None:
        """Again and again while something runs: what have the threads used since ``before``? A few tell for many."""
        self._looking = self._busy > 0 and bool(self._clocks)  # none once closed
        if self._looking:
            now, clocks = time.monotonic(), self._clocks[:CLOCKS]
            used = now, sum(map(time.clock_gettime, clocks)), time.process_time()
            if before is not None:
                passed, pool, process = (late - early for late, early in zip(used, before, strict=True))
                pool *= len(self._clocks) / len(clocks)
                self.crew.decide(pool / passed, process / passed, self._busy, now)
                self._admit()
            asyncio.get_running_loop().call_later(SAMPLE, self._look, used)

    def _admit(self) -> None:
        """Give their turn to as many as may run."""
        room = self.crew.allowed - self._busy
        while self._turns and room > 0:
            if not (turn := self._turns.popleft()).done():
                turn.set_result(None)
                room -= 1

    async def close(self, grace: float = GRACE) -> None:
        """End the threads: idle ones now, others after their chunk. What runs after ``grace`` is left alone."""
        threads, jobs, self._threads, self._jobs, self._clocks = self._threads, self._jobs, [], SimpleQueue(), []
        for _ in threads:
            jobs.put(None)
        await _waited(lambda: any(thread.is_alive() for thread in threads), grace)


def _work(jobs: SimpleQueue[Callable[[], None] | None], clocks: list[int]) -> None:
    if hasattr(time, "pthread_getcpuclockid"):
        clocks.append(time.pthread_getcpuclockid(get_ident()))
    while job := jobs.get():
        job()
        del job  # a waiting thread holds nobody's messages


class Child(Struct, eq=False):
    """A child process, and the streams to it."""

    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def kill(self) -> None:
        self.process.kill()
        self.writer.transport.abort()


class Processes(Paced):
    """Runs a handler in up to ``workers`` child processes, started when needed, one chunk in each at a time.

    A child that dies fails its chunk with ``HandlerCrashed``. One that runs for longer than ``timeout`` is killed, and
    its chunk fails with ``HandlerTimeout``; as a chunk is stopped early, the call that took too long began at most 5 ms
    after its chunk. In both cases the worker tries the messages one by one. A call whose task is cancelled is killed.
    Children that die one after the other are started again after a growing wait.
    """

    def __init__(self, recipe: Recipe, workers: int, timeout: float) -> None:
        super().__init__(PROCESS_CHUNK)
        self.recipe, self.timeout = recipe, timeout
        try:
            self._setup = pickle.dumps(recipe)
        except Exception as error:
            raise self._invalid(error) from error
        self._free: asyncio.LifoQueue[Child | None] = asyncio.LifoQueue()  # last used first: others need not start
        self.workers = 0
        self.resize(workers)
        self._children, self._closed, self._deaths = list[Child](), False, 0  # deaths since the last answer

    async def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        sizes = accumulate(len(delivery.message.body) for delivery in deliveries)
        sent = deliveries[: max(1, sum(size <= MOST_BYTES for size in sizes))]
        request = msgpack.encode([(record(one.message), one.failures, one.crashes) for one in sent])
        child = await self._free.get()
        try:
            if child is not None and child.process.poll() is not None:
                child.kill()  # it died while it had nothing to do
            if child is None or child.writer.is_closing():
                child = await self._start()
            if child is None:
                return []
            elapsed, outcomes = _decode_answer(await self._ask(child, request, self.timeout))
        finally:
            self._free.put_nowait(child)
        self._deaths = 0
        self.record(len(outcomes), elapsed)
        return [unpacked(outcome) if isinstance(outcome, bytes) else outcome for outcome in outcomes]

    def resize(self, workers: int) -> None:
        for _ in range(self.workers, workers):
            self._free.put_nowait(None)
        self.workers = max(workers, self.workers)  # of fewer calls at once some children see none

    async def _ask(self, child: Child, request: bytes, timeout: float) -> bytes:
        """One request at a time, and a child reads all of it before it answers: never do both wait to send."""
        name, at = self.recipe.origin.name, self.recipe.origin.where
        try:
            async with asyncio.timeout(timeout):
                child.writer.writelines((len(request).to_bytes(4), request))  # as multiprocessing.connection has it
                answer = await child.reader.readexactly(int.from_bytes(await child.reader.readexactly(4)))
            if request is self._setup and answer:
                raise self._invalid(error := unpacked(answer)) from error
            return answer
        except BaseException as failure:
            child.kill()
            self._deaths, self.mean = self._deaths + 1, self.target
            if isinstance(failure, TimeoutError):
                raise HandlerTimeout(f"{name}() ran longer than {timeout:g} s and was killed", where=at) from None
            if isinstance(failure, EOFError | OSError):
                code = child.process.wait()  # at once: it was dead already, as its end is closed
                how = {-s: f"was killed by {s.name}" for s in signal.Signals}.get(code, f"ended with exit code {code}")
                raise HandlerCrashed(f"the process of {name}() {how}", where=at) from None
            raise

    async def _start(self) -> Child | None:
        """A new child that is ready; none when closed. Raises ``InvalidHandler`` if it cannot import the handler."""
        if self._deaths > 1:
            await asyncio.sleep(min(AGAIN * 2 ** min(self._deaths - 2, 9), AGAIN_MOST))
        if self._closed:
            return None
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        ours, theirs = socket.socketpair()
        with theirs:
            streams, fd = await asyncio.open_unix_connection(sock=ours), theirs.fileno()
            command = [sys.executable, *flags, "-c", BOOT, str(fd), *map(str, sys.path)]
            process = subprocess.Popen(command, pass_fds=(fd,), stdin=subprocess.DEVNULL)  # noqa: ASYNC220 - 0.3 ms
        child = Child(process, *streams)
        self._children = [c for c in self._children if c.process.poll() is None or not c.writer.is_closing()] + [child]
        await self._ask(child, self._setup, max(START, self.timeout))
        return child

    def _invalid(self, error: BaseException) -> InvalidHandler:
        what = f"{self.recipe.origin.name}() cannot be loaded in a child process"
        mend = f"it, its types and overrides must be importable: `python -c 'import {self.recipe.fn.__module__}'`"
        return InvalidHandler(what, why=f"{type(error).__name__}: {error}", mend=mend, where=self.recipe.origin.where)

    def _running(self) -> list[Child]:
        return [child for child in self._children if child.process.poll() is None]

    async def close(self, grace: float = GRACE) -> None:
        """End the children: idle ones now, others after their chunk; after ``grace`` by force."""
        self._closed = True
        for child in self._running():
            with suppress(OSError, RuntimeError):  # it may just be gone
                child.writer.write_eof()
        await _waited(lambda: self._running() or self._free.qsize() < self.workers, grace)
        for child in self._children:
            child.kill()
        await _waited(lambda: self._running() or self._free.qsize() < self.workers, 1.0)
        await asyncio.gather(*(child.writer.wait_closed() for child in self._children), return_exceptions=True)


def serve(fd: int) -> None:
    """The life of a child: make the call from its recipe, then answer until nothing more can come."""
    from multiprocessing.connection import Connection

    os.set_inheritable(fd, False)
    os.register_at_fork(after_in_child=lambda: os.dup2(os.open(os.devnull, os.O_RDWR), fd))  # lest it hide our death
    hangup = select.poll()  # a closed other end is seen at once, also during a call; one that only ended sending is not
    hangup.register(fd, 0)
    Thread(target=lambda: os._exit(len(hangup.poll())), daemon=True).start()
    with Connection(fd) as parent, suppress(EOFError, ConnectionError):
        try:
            call = pickle.loads(parent.recv_bytes()).call()
        except BaseException as error:
            return parent.send_bytes(packed(error))
        parent.send_bytes(b"")
        while True:
            parent.send_bytes(_answered(lambda delivery: Raw(msgpack.encode(call(delivery))), parent.recv_bytes()))


def _answered(call: Callable[[Delivery], Any], request: bytes) -> bytes:
    asked = _decode_request(request)
    sent = messages(b"".join(stored for stored, _, _ in asked), len(asked))
    counted = zip(sent, asked, strict=True)
    deliveries = [Delivery(message, Session(), None, failures, crashes) for message, (_, failures, crashes) in counted]
    elapsed, outcomes = work_through(call, deliveries, PROCESS_CHUNK)
    return msgpack.encode((elapsed, [packed(one) if isinstance(one, BaseException) else one for one in outcomes]))


_decode_request = msgpack.Decoder(list[tuple[bytes, int, int]]).decode
_decode_answer = msgpack.Decoder(tuple[float, list[Outgoing | bytes]]).decode


def packed(error: BaseException) -> bytes:
    """An exception as bytes, with its traceback as text; where it cannot be pickled, its type and text stand for it."""
    own = type(error).__reduce__ is not BaseException.__reduce__ or not hasattr(type(error).__init__, "__code__")
    try:  # pickle would call an ``__init__`` in Python with ``args``, which fails or loses something
        itself = pickle.dumps((error,) if own else (type(error), error.args, error.__dict__))
    except Exception:
        itself = b""
    return pickle.dumps((itself, "".join(format_exception_only(error)).strip(), "".join(format_exception(error))))


def unpacked(data: bytes) -> BaseException:
    """The exception again, else a ``RuntimeError``; the traceback in the child is a note to it."""
    itself, line, text = pickle.loads(data)
    try:
        made, *given = pickle.loads(itself)
        error: BaseException = made.__new__(made, *given[0]) if given else made
        error.__dict__.update(*given[1:])
    except Exception:
        error = RuntimeError(line)
    error.add_note(f"In the child process:\n{text.rstrip()}")
    return error


def check_importable(fn: Callable[..., Any]) -> None:
    """Raise ``InvalidHandler`` if a child process cannot find a function by ``module:qualname``.

    A name that its module, still being imported, has not bound yet is let pass; ``Processes`` would refuse it.
    """
    module, name = getattr(fn, "__module__", None) or "", getattr(fn, "__qualname__", "")
    found: Any = (home := sys.modules.get(module))
    for part in name.split("."):
        found = getattr(found, part, None)
    mend = "define it at the top level of a module"
    if module == "__main__":
        why, mend = "a child cannot import `__main__`, the script that was run", "run it as `tidings run module:app`"
    elif not name or "<" in name or hasattr(fn, "__func__"):
        why = "a child imports it by name, and it is a lambda, nested in another function, or bound to an object"
    elif found is None or found is fn or getattr(getattr(home, "__spec__", None), "_initializing", False):
        return
    else:
        why = f"a child imports it by name, and {module}:{name} is something else"
    raise InvalidHandler(f"{name or fn!r} cannot run in a process", why=why, mend=mend, where=where(fn))
