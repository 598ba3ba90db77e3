"""A process on a bus whose disk fails: ``python -m tests.faults.disk_worker '{"url": ...}'``.

``load`` publishes and handles, and tells what was accepted, refused and handled. ``sweep`` does a little of both on a
new bus for each planned fault. ``snapshot`` holds a read transaction until its standard input ends. What is told goes
to standard output, one JSON object a line; to the trace where there is one.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Literal

import apsw
import msgspec
from msgspec import Struct
from tests.faults.vfs import Faulty, Plan, Recorder, Trace

from tidings import App, Backoff, Topic
from tidings.kernel.errors import BusError, TidingsError
from tidings.transports.sqlite import SQLite

PLACED = Topic("orders.placed", bytes)
GROUP = "shop.bill"
PATIENCE = 15.0  # seconds a bus has to go on after a fault that is over


class Spec(Struct, frozen=True, kw_only=True):
    """What the process shall do. ``count``: messages a publisher; ``size``: the most bytes of a body."""

    path: str
    role: str = "load"
    name: str = "w"
    seed: int = 0
    sync: str = "full"
    lease: str = "30s"
    publishers: int = 0
    count: int = 1_000_000
    size: int = 200
    burst: int = 1  # messages a publish
    pause: float = 0.0  # seconds between publishes
    consume: bool = False
    trace: str = ""
    syncs: bool = True  # False: the disk forgets to sync
    state: Literal["", "EROFS", "ENOSPC"] = ""  # of the file system from SIGUSR1 on; SIGUSR2: it is well again
    plans: list[Plan] = []
    template: str = ""  # a folder with a bus to begin with

    def options(self, path: str = "") -> SQLite:
        return SQLite(path=path or self.path, sync=self.sync, lease=self.lease)  # type: ignore[arg-type]


class Told(Struct, frozen=True, omit_defaults=True):
    """One line. ``accepted``: ``ids``; ``handled``: ``id``; the others: ``code``, ``why``."""

    what: str
    id: str = ""
    code: str = ""
    why: str = ""
    ids: list[str] = []
    done: list[str] = []
    hit: list[str] = []


class Worker:
    """The process. ``tell`` may be called by any thread."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.luck = spec, Random(f"{spec.seed}/{spec.name}")
        self.trace = Trace(Path(spec.trace)) if spec.trace else None
        self.vfs: Faulty | None = None

    def tell(self, told: Told) -> None:
        line = msgspec.json.encode(told).decode()
        if self.trace is not None:
            self.trace.mark(line)
        else:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def broken(self, why: str, error: BaseException | None) -> None:
        """Something happened that never may: a bare exception, wherever it surfaced."""
        text = "".join(traceback.format_exception(error)) if error is not None else ""
        self.tell(Told("broken", why=f"{why}\n{text}"))

    def watch(self) -> None:
        """Tell of every exception that nobody awaited, and of what is logged."""
        logging.getLogger("tidings").addHandler(Teller(self))
        threading.excepthook = lambda hook: self.broken("in a thread", hook.exc_value)
        sys.unraisablehook = lambda hook: self.broken(str(hook.err_msg), hook.exc_value)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.broken(context["message"], context.get("exception")))

    # -- load

    def app(self, options: SQLite, handled: Callable[[str], None]) -> App:
        app = App("shop", options, backoff=Backoff(attempts=50, first=0.01, jitter=0), breaker=None, grace="2s")

        @app.on(PLACED, group=GROUP, start="first", concurrency=8)
        async def bill(order: bytes) -> None:
            handled(order.partition(b" ")[0].decode())

        return app

    async def load(self) -> None:
        spec = self.spec
        if spec.state:
            self._changeable()
        app = self.app(spec.options(), lambda id: self.tell(Told("handled", id)))
        async with app if spec.consume else app.connect():
            self.tell(Told("ready"))
            names = (f"{spec.name}.{p}" for p in range(spec.publishers))
            publishers = [asyncio.ensure_future(self._publish(app, name)) for name in names]
            await _input_ends()
            for publisher in publishers:
                publisher.cancel()
            for result in await asyncio.gather(*publishers, return_exceptions=True):
                if isinstance(result, Exception):
                    self.broken("a publish failed", result)
        self.tell(Told("closed"))

    async def _publish(self, app: App, name: str) -> None:
        """Each message again and again until it is accepted."""
        n = 0
        while n < self.spec.count:
            ids = [f"{name}.{n + i}" for i in range(self.spec.burst)]
            bodies = [f"{id} ".encode() + self.luck.randbytes(self.luck.randrange(self.spec.size)) for id in ids]
            try:
                await app.publish_many([PLACED(body, id=id) for id, body in zip(ids, bodies, strict=True)])
            except BusError as error:
                self.tell(Told("refused", ids[0], error.code, str(error)))
                await asyncio.sleep(0.05)
                continue
            n += len(ids)
            self.tell(Told("accepted", ids=ids))
            await asyncio.sleep(self.spec.pause)

    def _changeable(self) -> None:
        vfs = self.vfs = Faulty()

        def change(state: Literal["", "EROFS", "ENOSPC"]) -> None:
            vfs.state = state
            self.tell(Told("changed", code=state, hit=list(vfs.hit)))

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, change, self.spec.state)
        loop.add_signal_handler(signal.SIGUSR2, change, "")

    # -- sweep

    async def sweep(self) -> None:
        self.vfs = Faulty()
        for n, plan in enumerate(self.spec.plans):
            path = Path(self.spec.path) / f"{n}"
            if self.spec.template:
                shutil.copytree(self.spec.template, path)
            else:
                path.mkdir()
            await self._one(plan, path / "bus.db", n)

    async def _one(self, plan: Plan, path: Path, n: int) -> None:
        """Open, publish, handle and close while one call fails. All that was accepted must be handled meanwhile, or
        be left for the next one."""
        vfs, accepted, done = self.vfs, list[str](), set[str]()
        assert vfs is not None
        errors: list[str] = []
        vfs.arm(plan)
        try:
            async with self._tolerated(errors), self.app(self.spec.options(str(path)), done.add) as app:
                tasks = [self._some(app, f"s{n}.{p}", accepted, errors) for p in range(4)]
                await asyncio.gather(*tasks)
                async with asyncio.timeout(PATIENCE):
                    while not done.issuperset(accepted):  # noqa: ASYNC110
                        await asyncio.sleep(0.002)
        except TimeoutError:
            missing = sorted(set(accepted) - done)
            self.tell(Told("broken", code="stuck", why=f"{plan}: {len(missing)} are never handled", ids=missing))
        except BaseException as error:
            self.broken(f"{plan}", error)
        hit = list(vfs.hit)
        passed = vfs.passed[plan.call]
        vfs.arm(None)
        gc.collect()
        self.tell(Told("swept", str(n), str(passed), "\n".join(errors), accepted, sorted(done), hit))

    async def _some(self, app: App, name: str, accepted: list[str], errors: list[str]) -> None:
        for i in range(6):
            id = f"{name}.{i}"
            body = f"{id} ".encode() + self.luck.randbytes(self.luck.choice((10, 300, 9000)))
            for _ in range(3):
                try:
                    await app.publish(PLACED, body, id=id)
                except BusError as error:
                    errors.append(str(error))
                else:
                    accepted.append(id)
                    break

    @asynccontextmanager
    async def _tolerated(self, errors: list[str]) -> AsyncIterator[None]:
        """A clear error of ours may end the app."""
        try:
            yield
        except TidingsError as error:
            errors.append(str(error))

    # -- snapshot

    async def snapshot(self) -> None:
        con = apsw.Connection(self.spec.path, flags=apsw.SQLITE_OPEN_READWRITE)
        con.execute("BEGIN")
        seq = con.execute("SELECT seq FROM meta").get
        self.tell(Told("ready"))
        await _input_ends()
        self.tell(Told("unmoved" if con.execute("SELECT seq FROM meta").get == seq else "moved"))
        con.close()


class Teller(logging.Handler):
    """What the library logs. An error there is a bug: a fault of the disk is no more than a warning."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(logging.INFO)
        self.worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.worker.broken(record.getMessage(), record.exc_info[1] if record.exc_info else None)
        else:
            self.worker.tell(Told("event", why=record.getMessage()))


async def _input_ends() -> None:
    await asyncio.to_thread(functools.partial(sys.stdin.read))


async def main(argument: str) -> None:
    spec = msgspec.json.decode(argument, type=Spec)
    worker = Worker(spec)
    worker.watch()
    recorder = Recorder(worker.trace, syncs=spec.syncs) if worker.trace is not None else None
    await {"load": worker.load, "sweep": worker.sweep, "snapshot": worker.snapshot}[spec.role]()
    del recorder


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
