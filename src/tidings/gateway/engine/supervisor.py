"""Keeps the server running: starts it again when it ends, more and more slowly; gives up when that does not help."""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from tidings.kernel.errors import BusError, BusFull, BusReadOnly, BusUnavailable, TidingsError

from .process import Process, log

START, STOP, RELOAD = 60.0, 10.0, 10.0  # seconds
FIRST, LONGEST = 0.1, 10.0  # seconds between an end and the next start: twice as long each time
CRASHES, WITHIN = 5, 60.0  # more of them in so many seconds, and it is given up
TROUBLES: tuple[tuple[str, type[BusError], str, str], ...] = (
    (
        "address already in use",
        BusUnavailable,
        "a port of the engine is taken",
        "stop who has it, or take another port",
    ),
    ("assign requested address|no such host", BusUnavailable, "this machine has no such address", "mend the host"),
    ("no space left|insufficient resources", BusFull, "the engine has no room", "make room on the disk of its folder"),
    ("permission denied", BusReadOnly, "the engine may not do that", "mend rights, or take a port above 1023"),
)


class Supervisor:
    """One server. ``kept``: file descriptors that it holds open for as long as it runs."""

    def __init__(self, configuration: Path, kept: Sequence[int]) -> None:
        self.configuration, self.kept = configuration, kept
        self.process: Process | None = None
        self.restarts = 0
        self.error: BusError | None = None  # why it was given up
        self._given_up = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.running

    @property
    def trouble(self) -> str:
        """What the server said last of trouble."""
        return self.process.trouble if self.process is not None else "it was not started"

    async def start(self) -> None:
        """Raises ``BusError`` when the server does not listen: what it said is in it."""
        self.process = process = await Process.start(self.configuration, self.kept)
        try:
            listens = await process.started(START)
        except TimeoutError:
            listens = False
        if not listens:
            await process.stop(STOP)
            raise explained(process.trouble)
        self._watching = asyncio.ensure_future(self._watch())

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
            self._watching = None
        if self.process is not None:
            await self.process.stop(STOP)

    async def wait(self) -> None:
        """Until it is given up; raises why."""
        await self._given_up.wait()
        if self.error is not None:
            raise self.error

    async def reload(self) -> None:
        """Let the server read its configuration again. Raises ``BusError`` when it does not, or refuses it."""
        process = self.process
        try:
            if process is None:
                raise ProcessLookupError
            said = await process.reload(RELOAD)
        except (TimeoutError, ProcessLookupError):
            raise BusUnavailable("the NATS server does not read its configuration", why=self.trouble) from None
        if said.startswith("Failed"):
            raise BusError("the NATS server refuses its configuration", why=said)

    async def _watch(self) -> None:
        crashes = deque[float]()
        while self.process is not None:
            code, trouble = await self.process.ended(), self.process.trouble
            now = time.monotonic()
            crashes.append(now)
            while crashes[0] < now - WITHIN:
                crashes.popleft()
            if len(crashes) > CRASHES:
                self.error = explained(f"it ended {len(crashes)} times within {WITHIN:g} s, at last: {trouble}")
                log.error("%s", self.error)
                self._given_up.set()
                return
            pause = min(LONGEST, FIRST * 2.0 ** (len(crashes) - 1))
            log.error("the NATS server has ended (%d: %s); it is started again in %g s", code, trouble, pause)
            await asyncio.sleep(pause)
            try:
                self.process = await Process.start(self.configuration, self.kept)
                self.restarts += 1
            except (OSError, TidingsError) as error:  # that counts as an end, too
                log.error("the NATS server could not be started: %s", error)


def explained(trouble: str, otherwise: str = "the NATS server does not run") -> BusError:
    """What the server said, as an error of ours."""
    for words, kind, what, mend in TROUBLES:
        if re.search(words, trouble, re.IGNORECASE):
            return kind(what, why=trouble, mend=mend)
    return BusUnavailable(otherwise, why=trouble, mend="its log says more")
