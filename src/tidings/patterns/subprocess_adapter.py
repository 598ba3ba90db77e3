"""EIP: Channel Adapter, for programs: each line that one writes becomes a message."""

from __future__ import annotations

import asyncio
import logging
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, overload

from tidings.app import App
from tidings.channels import Topic
from tidings.kernel.errors import BusError, Duration, InvalidOption, PublishFailed, UsageError, text_of
from tidings.kernel.message import Message, seconds
from tidings.router import Router

from ._pattern import describe

log = logging.getLogger("tidings")

T = TypeVar("T")

CHUNK = 65_536  # bytes read at once
START = 0.1  # seconds, at most, from the app's opening to the program's start
AGAIN = 1.0  # seconds between tries while the bus takes nothing
GRACE = 5.0  # seconds a program gets to end


@overload
def run_process(
    app: Router,
    command: Sequence[str],
    to: Topic[bytes] | Topic[str],
    /,
    *,
    restart: Duration = ...,
    group: str = ...,
) -> None: ...
@overload
def run_process(
    app: Router,
    command: Sequence[str],
    to: Topic[T],
    /,
    *,
    read: Callable[[str], T],
    restart: Duration = ...,
    group: str = ...,
) -> None: ...
def run_process(
    app: Router,
    command: Sequence[str],
    to: Topic[Any],
    /,
    *,
    read: Callable[[str], Any] | None = None,
    restart: Duration = "1s",
    group: str = "",
) -> None:
    """Run a program while the app runs, and publish each line it writes. EIP: Channel Adapter.

    The payload is the line without its end, as ``bytes`` or ``str``, or what ``read(line)`` makes of it. A program
    that has ended is started again after ``restart``; when the app closes it gets SIGTERM, and after
    5 s SIGKILL. Every replica runs its own. While the bus takes nothing the program is not read, and so waits. A line
    that ``read`` or the topic refuses is told in the log. What a program has written and this process has not
    published is lost with either: nobody but the program could say it again.

    Raises ``InvalidOption``. ``group``: default ``"<app>.run-<program>"``.
    """
    check_command(command)
    pause = seconds(restart, "restart")
    if not to.publishable or (read is None and to.type not in (bytes, str)):
        raise InvalidOption(f"lines cannot be published to {to!r}", mend="Topic(name, str), or read=function of a line")
    made: Callable[[bytes], Any] = (lambda line: read(line.decode())) if read else bytes
    if read is None and to.type is str:
        made = lambda line: line.decode(errors="replace")  # noqa: E731

    def message(line: bytes) -> Message[Any] | None:
        try:
            return to(made(line))
        except Exception as error:
            log.error("%s wrote %.80r, which is no message: %s", command[0], line, text_of(error))
            return None

    async def run(app: App) -> None:
        while True:
            try:
                await _run(app, command, message)
            except OSError as error:
                log.error("%s cannot be started: %s", command[0], error)
            await asyncio.sleep(pause)

    run.__name__ = f"run-{Path(command[0]).name}"
    app.every(START, each=True, group=group)(describe(run, "channel adapter", publishes=(to,)))


async def _run(app: App, command: Sequence[str], message: Callable[[bytes], Message[Any] | None]) -> None:
    """From the start of a program to its end, or to that of the app."""
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    try:
        async for lines in _lines(process):
            await _publish(app, [made for line in lines if (made := message(line))])
        log.info("%s has ended with %s", command[0], await process.wait())
    finally:
        await end(process)


async def _lines(process: Process) -> AsyncIterator[list[bytes]]:
    """What it writes, in whole lines, as they come; at its end the last one too."""
    assert process.stdout is not None
    torn = b""
    while chunk := await process.stdout.read(CHUNK):
        *whole, torn = (torn + chunk).split(b"\n")
        yield [line.removesuffix(b"\r") for line in whole]
    if torn:
        yield [torn]


async def _publish(app: App, messages: list[Message[Any]]) -> None:
    """Publish all, however long that takes."""
    while messages:
        try:
            await app.publish_many(messages)
        except BusError as error:
            log.warning("lines of a program are published later: %s", error)
            accepted = error.accepted if isinstance(error, PublishFailed) else ()
            messages = [message for at, message in enumerate(messages) if at not in accepted]
            await asyncio.sleep(AGAIN)
        except UsageError as error:
            if len(messages) == 1:
                log.error("a line of a program is no message: %s", error)
            for message in messages if len(messages) > 1 else ():
                await _publish(app, [message])
            return
        else:
            return


async def end(process: Process) -> None:
    """Ask it to end, then make it; what it wrote and nobody read is dropped."""
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(GRACE):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if process.stdout is not None:
        with suppress(TimeoutError):  # its own children may keep it open
            async with asyncio.timeout(GRACE):
                await process.stdout.read()


def check_command(command: Sequence[str]) -> None:
    """Raises ``InvalidOption``."""
    if isinstance(command, str) or not command:
        raise InvalidOption(f"a command cannot be {command!r}", mend='a list: ["tail", "-F", "access.log"]')
