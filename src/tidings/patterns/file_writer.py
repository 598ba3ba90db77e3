"""EIP: Channel Adapter, for folders (EIP: File Transfer): each message becomes a whole file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidings.channels import Topic
from tidings.kernel.errors import Reject
from tidings.kernel.message import Message, new_id
from tidings.kernel.topics import token
from tidings.router import Router

from ._pattern import describe


def write_files(
    app: Router,
    source: Topic[Any] | str,
    folder: str | Path,
    /,
    *,
    name: Callable[[Message[bytes]], str] = lambda message: token(message.id),
    group: str = "",
) -> None:
    """Write each message of a topic or pattern into a file of a folder, as it came. EIP: Channel Adapter.

    ``name``: from the message (``data`` is its body) to the file's name; default: its id. A file appears whole, and on
    the disk, before its message is settled; a message that comes again replaces it. ``group``: default
    ``"<app>.write-<folder>"``. A name that leads elsewhere makes its message a dead letter.
    """
    place = Path(folder)

    async def write(message: Message[bytes]) -> None:
        chosen = name(message)
        if not chosen or chosen.startswith(".") or "/" in chosen or "\0" in chosen:
            raise Reject(f"{chosen!r} is no file name")
        await asyncio.to_thread(_write, place / chosen, message.data)

    write.__name__ = f"write-{place.name or 'files'}"
    pattern, bus = (source, "") if isinstance(source, str) else (source.template, source.bus)
    on = app.on(pattern, bus=bus, group=group) if group else app.on(pattern, bus=bus)
    on(describe(write, "channel adapter"))


def _write(path: Path, body: bytes) -> None:
    """The whole file or nothing, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{new_id()}")
    with hidden.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    hidden.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
