"""Editing a message's body: in an editor, from the command line or from a file; what it was it stays."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import mkstemp
from typing import Any

import msgspec

from tidings import Message
from tidings.kernel.errors import InvalidOption, PayloadRefused, TidingsError
from tidings.transports._wire import data

from . import show
from ._input import whole


@asynccontextmanager
async def edited(message: Message[Any], body: str | None, file: str | None, keep: bool) -> AsyncIterator[bytes]:
    """The new body: ``body``, what ``file`` holds, or what comes out of an editor.

    What was typed is kept in a file, and told, if what is done with it fails, or with ``keep``.
    Raises ``PayloadRefused`` for what is no JSON where there was JSON, or no text where there was text.
    """
    if body is not None and file is not None:
        raise InvalidOption("--body and --file exclude each other", mend="drop one")
    if body is None and file is None:
        with _in_editor(message, keep) as typed:
            yield typed
    else:
        yield checked(message, await whole(body, file))


def checked(message: Message[Any], body: bytes) -> bytes:
    """``body``, if it is of the kind the message has; JSON without space around it."""
    found = data(message).get("data")
    try:
        if isinstance(found, msgspec.Raw):
            msgspec.json.decode(body)
            return body.strip()
        if isinstance(found, str):
            body.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        kind = "JSON" if isinstance(found, msgspec.Raw) else "text"
        raise PayloadRefused(f"the body was {kind}, and is none now", why=str(error), mend="mend it") from None
    return body


@contextmanager
def _in_editor(message: Message[Any], keep: bool) -> Iterator[bytes]:
    """Raises ``InvalidOption`` where there is no editor, and when it fails: then nothing is replayed."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ("vi" if sys.stdin.isatty() else "")
    found = data(message).get("data")
    if not command or found is None:
        why = "it is no text" if command else "there is no terminal, and no $EDITOR"
        raise InvalidOption("the body cannot be edited here", why=why, mend="--body '{\"id\": 7}', or --file FILE")
    pretty = isinstance(found, msgspec.Raw)
    before = msgspec.json.format(message.body, indent=2) + b"\n" if pretty else message.body
    number, name = mkstemp(suffix=".json" if pretty else ".txt", prefix="dead-letter-")
    os.close(number)
    path = Path(name)
    path.write_bytes(before)
    said = f"what you wrote is in {name}: `tidings dead edit {message.id} --file {name}`"
    try:
        _run(command, name)
        typed = _typed(path, before)
        yield message.body if typed == before else checked(message, typed)
    except BaseException as error:
        keep = True
        if isinstance(error, TidingsError) and _typed(path, before) != before:
            error.mend = f"{error.mend}; {said}" if error.mend else said
        raise
    finally:
        if _typed(path, before) == before or not keep:
            path.unlink(missing_ok=True)
        elif not isinstance(sys.exception(), TidingsError):
            show.note(said)


def _run(command: str, name: str) -> None:
    try:
        code = subprocess.run([*shlex.split(command), name], check=False).returncode
    except (OSError, ValueError) as error:
        why, mend = getattr(error, "strerror", None) or str(error), "export EDITOR=nano"
        raise InvalidOption(f"{command} cannot be started", why=why, mend=mend) from None
    if code:
        raise InvalidOption(f"{command} ended with exit code {code}", why="nothing is replayed", mend="try again")


def _typed(path: Path, before: bytes) -> bytes:
    """What the editor left. One newline more at the end of a text without is the editor's, not the user's."""
    found = path.read_bytes() if path.exists() else before
    return found if before.endswith(b"\n") else found.removesuffix(b"\n")
