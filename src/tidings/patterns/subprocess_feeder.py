"""EIP: Channel Adapter, for programs: each message becomes a line that one reads."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tidings.channels import Topic
from tidings.inject import Depends
from tidings.kernel.errors import Reject
from tidings.kernel.message import Message
from tidings.router import Router

from ._pattern import describe
from .subprocess_adapter import GRACE, check_command, end

if TYPE_CHECKING:
    from tidings._decorators import Durable


def feed_process(app: Router, source: Topic[Any] | str, command: Sequence[str], /, *, group: str = "") -> None:
    """Run a program while the app runs, and write each message of a topic or pattern to it, as a line, as it came.

    EIP: Channel Adapter. A message is settled when its line was written: one after the other, in one process of each
    replica. A program that has ended is started for the next line; when the app closes its input ends, and it gets 5 s.
    A body of several lines is a dead letter. ``group``: default ``"<app>.feed-<program>"``.
    """
    check_command(command)

    async def opened() -> AsyncIterator[_Fed]:
        fed = _Fed(command)
        try:
            yield fed
        finally:
            await fed.close()

    async def feed(message: Message[bytes], fed: Any) -> None:
        if b"\n" in message.data:
            raise Reject("a line cannot hold a line feed")
        await fed.write(message.data + b"\n")

    feed.__annotations__ = {"message": Message[bytes], "fed": Annotated[_Fed, Depends(opened, scope="app")]}
    feed.__name__ = f"feed-{Path(command[0]).name}"
    pattern, bus = (source, "") if isinstance(source, str) else (source.template, source.bus)
    more: Durable = {"bus": bus, "concurrency": 1}
    if group:
        more["group"] = group
    app.on(pattern, **more)(describe(feed, "channel adapter"))


class _Fed:
    """A program that reads."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = command
        self.process: Process | None = None

    async def write(self, line: bytes) -> None:
        """Raises ``ConnectionError`` for a program that ended meanwhile: the message is tried again."""
        if self.process is None or self.process.returncode is not None:
            self.process = await asyncio.create_subprocess_exec(*self.command, stdin=PIPE)
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        await self.process.stdin.drain()

    async def close(self) -> None:
        if self.process is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self.process.wait()
        await end(self.process)
