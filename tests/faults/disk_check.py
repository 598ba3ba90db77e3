"""Worker processes for the disk's faults, and what must be true of the files they leave."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence, Set
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
from msgspec import Struct
from tests.faults.disk_worker import GROUP, PLACED, Spec, Told

from tidings.kernel.errors import BusCorrupt, TidingsError
from tidings.kernel.message import Message
from tidings.kernel.transport import Settlement, Subscription
from tidings.testing.faults import Process, Processes
from tidings.transports.sqlite import SQLite
from tidings.transports.sqlite.transport import SQLiteTransport

POLL = 0.005
DEADLINE = 60.0  # seconds a worker has to do what a test waits for
SILENCE = 3.0  # seconds without a delivery, while some are wanted: they are lost
DECODER = msgspec.json.Decoder(Told)
_names = itertools.count()


class Child:
    """A worker process: ``told`` is what it has said, ``handled`` the ids of what it has handled, ``err`` the file of
    its standard error."""

    def __init__(self, process: Process, err: Path) -> None:
        self.process, self.err = process, err
        self.told: list[Told] = []
        self.counts = Counter[str]()
        self.handled: set[str] = set()

    def hear(self) -> None:
        """What it has said since."""
        lines, self.process.lines = self.process.lines, []
        for line in lines:
            told = DECODER.decode(line)
            self.told.append(told)
            self.counts[told.what] += 1
            if told.what == "handled":
                self.handled.add(told.id)

    def ids(self, what: str) -> list[str]:
        self.hear()
        return [id for told in self.told if told.what == what for id in (told.ids or [told.id])]

    def count(self, what: str) -> int:
        self.hear()
        return self.counts[what]

    async def until(self, condition: Callable[[], Any], what: str, within: float = DEADLINE) -> None:
        """Wait for a condition on what it told. Raises ``AssertionError``, also when it ended before."""
        deadline, over = time.monotonic() + within, False
        while True:
            self.hear()
            if condition():
                return
            assert not over, f"ended before {what}: {self.tail()}"
            assert time.monotonic() < deadline, f"no {what} within {within:g} s: {self.tail()}"
            over = self.process.over
            await asyncio.sleep(POLL)

    async def ready(self) -> Child:
        await self.until(lambda: self.count("ready"), "ready")
        return self

    async def gone(self, within: float = DEADLINE) -> int:
        status = await self.process.wait(within)
        self.hear()
        return status

    def tail(self) -> str:
        return f"{[t for t in self.told if t.what not in ('accepted', 'handled')][-5:]} {self.err.read_text()[-2000:]}"

    def faults(self) -> list[str]:
        """What may never happen: an exception that is none of ours, or that nobody was told of."""
        self.hear()
        broken = [told.why for told in self.told if told.what == "broken"]
        bare = self.err.read_text()
        return broken + ([f"standard error: {bare[-1500:]}"] if "Traceback" in bare else [])


@asynccontextmanager
async def workers(folder: Path, *specs: Spec) -> AsyncIterator[list[Child]]:
    """Worker processes, one per spec; whatever still runs at the end is killed."""
    async with Processes() as processes:
        children = []
        for spec in specs:
            err, argument = folder / f"err-{next(_names)}", msgspec.json.encode(spec).decode()
            worker = "tests.faults.disk_worker"
            process = await processes.start(worker, argument, errors=err, environment={"PYTHONFAULTHANDLER": "1"})
            children.append(Child(process, err))
        yield children


class Left(Struct, kw_only=True):
    """What a bus holds when it is opened again. ``refused``: the error, if it could not be."""

    stored: list[str] = []
    bodies: dict[str, int] = {}  # of these, their checksums
    received: list[str] = []
    refused: str = ""
    faults: list[str] = []
    opened: float = 0.0  # seconds it took


async def look(path: Path, handled: Set[str] | None = None, *, damaged: bool = False) -> Left:
    """Open the bus, list its messages, publish one more, and let the group receive it and whatever is stored and not
    among ``handled`` (None: let it receive nothing else).

    ``damaged``: the file was hurt by hand, so a ``BusCorrupt`` is an answer; else nothing may be refused.
    """
    left, began = Left(), time.monotonic()
    transport = SQLite(path=str(path), sync="normal").transport()
    try:
        await transport.open(lambda event: None)
        left.opened = time.monotonic() - began
        try:
            await _examine(transport, left, handled)
        finally:
            await transport.close()
    except BusCorrupt as error:
        left.refused = str(error)
        if not damaged:
            left.faults.append(left.refused)
    except TidingsError as error:
        left.refused = str(error)
        left.faults.append(f"the wrong error: {error}")
    except Exception as error:
        left.refused = repr(error)
        left.faults.append(f"a bare exception: {error!r}, {traceback.extract_tb(error.__traceback__).format()[-2:]}")
    if left.refused and not all(part in left.refused for part in ("TDG-", str(path), "why:", "mend:")):
        left.faults.append(f"the error does not say what, where, why and how to mend it: {left.refused}")
    return left


async def _examine(transport: SQLiteTransport, left: Left, handled: Set[str] | None) -> None:
    messages = [stored.message for stored in await transport.peek(PLACED.pattern, limit=2**31)]
    left.stored, left.bodies = [m.id for m in messages], {m.id: crc32(m.body) for m in messages}
    consumer: Any = await transport.subscribe(Subscription(app="shop", pattern=PLACED.pattern, group=GROUP, start=0.0))
    last: Message[Any] = Message(PLACED.pattern, body=b"last ", id=f"last.{time.monotonic_ns()}", time=time.time())
    await transport.publish([last])
    wanted = {last.id} if handled is None else {last.id, *left.stored} - handled
    receiving: asyncio.Task[Any] | None = None
    while wanted:
        receiving = receiving or asyncio.ensure_future(consumer.receive(500))
        done, _ = await asyncio.wait({receiving}, timeout=SILENCE)
        if not done:
            break
        batch, receiving = receiving.result(), None
        taken = [d for d in batch if not d.suspect or await consumer.mark(d)]
        left.received += [d.message.id for d in taken]
        wanted.difference_update(d.message.id for d in taken)
        await consumer.settle([Settlement(d) for d in taken])
    if wanted:
        left.faults.append(f"stored, neither handled before nor delivered now: {some(wanted)}")
    consumer.stop()
    if receiving is not None:
        await receiving
    await consumer.close()
    assert transport.client is not None
    if (verdict := transport.client.execute("PRAGMA integrity_check").get) != "ok":
        left.faults.append(f"integrity_check: {verdict}")


def made(folder: Path) -> Path:
    """The folder, there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


_NUMBERED = re.compile(r"(.+)\.(\d+)")


def gaps(stored: Sequence[str]) -> list[str]:
    """Messages a publisher sent one after the other must be there from its first on, in order and without a gap; one
    may be stored again right after itself, for a refused publish is tried again."""
    found, reached = list[str](), dict[str, int]()
    for id in stored:
        if (match := _NUMBERED.fullmatch(id)) is None or match[1] == "last":
            continue
        publisher, n = match[1], int(match[2])
        if n not in (reached.get(publisher, -1), reached.get(publisher, -1) + 1):
            found.append(f"{id} comes after {publisher}.{reached.get(publisher, -1)}")
        reached[publisher] = max(n, reached.get(publisher, -1))
    return found


def some(ids: Iterable[str]) -> str:
    ids = sorted(ids)
    return f"{len(ids)} ({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''})"
