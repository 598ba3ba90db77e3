"""What is published: from the command line, a file, or standard input."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec

from tidings.kernel.errors import InvalidOption, PayloadRefused
from tidings.kernel.message import BINARY, JSON, TEXT

from . import STDIN

CHUNK = 1 << 20
UNSAID = (None, "-", STDIN)  # read standard input


class Body(NamedTuple):
    """A body, and its content type."""

    data: bytes
    content_type: str


def body_of(raw: bytes, *, text: bool = False) -> Body:
    """JSON as it is, other UTF-8 as text, anything else as bytes.

    What was surely meant to be JSON and is none is refused with ``PayloadRefused``, unless it is said to be ``text``.
    """
    stripped = raw.strip()
    if not text and stripped:
        try:
            msgspec.json.decode(stripped)
            return Body(stripped, JSON)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if stripped[:1] in (b"{", b"[", b'"') or stripped in (b"NaN", b"Infinity", b"-Infinity"):
                mend = "mend it (JSON has no NaN, no single quotes, no trailing commas); --text publishes it as text"
                raise PayloadRefused("the data is no valid JSON", why=str(error), mend=mend) from None
    try:
        raw.decode()
    except UnicodeDecodeError:
        return Body(raw, BINARY)
    return Body(raw, TEXT)


async def whole(data: str | None, file: str | None) -> bytes:
    """DATA, or the file, or standard input when DATA is absent or ``-``; text from a pipe loses its last newline."""
    if data not in UNSAID and file is not None:
        raise InvalidOption("DATA and --file exclude each other", mend="drop one")
    if data is not None and data not in UNSAID:
        return data.encode("utf-8", "surrogateescape")
    read = b"".join([chunk async for chunk in chunks(file)])
    return read if file is not None else read.removesuffix(b"\n")


async def chunks(file: str | None) -> AsyncIterator[bytes]:
    """What a file or standard input holds, as it comes; waiting for it never blocks the loop."""
    if file in UNSAID and sys.stdin.isatty():
        print("reading from the terminal; Ctrl-D ends", file=sys.stderr)
    try:
        number = os.open(file, os.O_RDONLY) if file not in UNSAID else os.dup(0)
    except OSError as error:
        raise InvalidOption(f"--file {file} cannot be read", why=error.strerror or str(error)) from None
    try:
        while True:
            await _readable(number)
            chunk = os.read(number, CHUNK)
            if not chunk:
                return
            yield chunk
    except IsADirectoryError:
        raise InvalidOption(f"--file {file} is a folder") from None
    finally:
        os.close(number)


async def _readable(number: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(number, ready.set)
    except PermissionError:  # a regular file always is
        return
    try:
        await ready.wait()
    finally:
        loop.remove_reader(number)


async def lines(file: str | None) -> AsyncIterator[list[bytes]]:
    """Complete lines, as many as have come; the last one needs no newline."""
    rest = b""
    async for chunk in chunks(file):
        *found, rest = (rest + chunk).split(b"\n")
        yield found
    if rest:
        yield [rest]
