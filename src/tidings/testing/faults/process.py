"""Python processes under control: started, killed, frozen, and ended when the test is over, each by its pid. Unix::

async with Processes() as processes:
    worker = await processes.start("shop.worker", '{"url": "sqlite:///shop.db"}', points="commit.before=kill@3")
    await worker.line("ready")
    assert await worker.wait() == -signal.SIGKILL
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType

from tidings.transports._points import VARIABLE

CHUNK = 65_536  # bytes read at once
POLL = 0.005


class Process:
    """One process. ``lines``: what it has written to its standard output, line by line; a torn last one is left out."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child, self.pid = child, child.pid
        self.lines: list[str] = []
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.child.stdout is not None
        torn = b""
        while chunk := await self.child.stdout.read(CHUNK):
            *whole, torn = (torn + chunk).split(b"\n")
            self.lines += [line.decode(errors="replace") for line in whole]

    @property
    def returncode(self) -> int | None:
        """Its exit status, ``-n`` after signal n; None while it is there."""
        return self.child.returncode

    @property
    def over(self) -> bool:
        """Whether it has ended, and all that it said is in ``lines``."""
        return self._reading.done()

    @property
    def frozen(self) -> bool:
        """Whether a signal has stopped it: ours, or one it sent to itself at a fail point."""
        with suppress(ChildProcessError):
            seen = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
            return seen is not None and self.returncode is None
        return False

    def signal(self, number: int) -> bool:
        """Send a signal; False: it is gone already."""
        with suppress(ProcessLookupError):
            if self.returncode is None:
                os.kill(self.pid, number)
                return True
        return False

    def kill(self) -> bool:
        """``kill -9``: no chance to say anything."""
        return self.signal(signal.SIGKILL)

    def freeze(self) -> bool:
        """SIGSTOP: it keeps all it has, and does nothing."""
        return self.signal(signal.SIGSTOP)

    def thaw(self) -> bool:
        """SIGCONT: it goes on as if no time had passed."""
        return self.signal(signal.SIGCONT)

    def terminate(self) -> bool:
        """SIGTERM: please end."""
        return self.signal(signal.SIGTERM)

    async def write(self, line: str = "") -> None:
        """Send a line to its standard input."""
        assert self.child.stdin is not None
        self.child.stdin.write(line.encode() + b"\n")
        with suppress(ConnectionError):
            await self.child.stdin.drain()

    def finish(self) -> None:
        """Its standard input ends."""
        assert self.child.stdin is not None
        self.child.stdin.close()

    async def line(self, start: str, within: float = 30.0) -> str:
        """The first line that begins with ``start``. Raises ``TimeoutError``; ``EOFError`` if it ended without it."""
        deadline = time.monotonic() + within
        while True:
            over = self.over
            for line in self.lines:
                if line.startswith(start):
                    return line
            if over:
                raise EOFError(f"process {self.pid} ended without {start!r}; it said {self.lines[-5:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} did not say {start!r} within {within:g} s")
            await asyncio.sleep(POLL)

    async def wait(self, within: float = 30.0) -> int:
        """Its exit status. Raises ``TimeoutError``."""
        async with asyncio.timeout(within):
            await asyncio.shield(self._reading)
            return await self.child.wait()

    async def close(self) -> None:
        """End it, whatever it is doing."""
        self.kill()
        await self.child.wait()
        with suppress(TimeoutError):  # its own children may keep its output open
            await asyncio.wait_for(self._reading, 1.0)
        self.finish()


class Processes:
    """The processes of a test; none of them outlives the ``async with``."""

    def __init__(self) -> None:
        self.started: list[Process] = []

    async def start(
        self,
        module: str,
        *arguments: str,
        points: str = "",
        environment: Mapping[str, str] | None = None,
        errors: Path | None = None,
    ) -> Process:
        """``python -m module arguments`` with the environment of this process and ``environment``.

        ``points``: a plan of fail points, ``"commit.before=kill@3"``. ``errors``: the file to which its standard error
        is appended; default: this process's.
        """
        command = [sys.executable, "-m", module, *arguments]
        armed = {VARIABLE: points} if points else {}
        everything = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {}), **armed}
        pipe = asyncio.subprocess.PIPE
        with errors.open("ab") if errors is not None else nullcontext() as file:
            child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=file, env=everything)
        self.started.append(found := Process(child))
        return found

    async def __aenter__(self) -> Processes:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(process.close() for process in self.started))
