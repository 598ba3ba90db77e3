"""The file of clients that ``tidings token`` keeps: names, hashes of tokens, rights. Read anew on SIGHUP."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from tidings.kernel.errors import InvalidOption, UsageError

from .access import Client

if sys.platform != "win32":
    import fcntl


def read(path: Path) -> tuple[Client, ...]:
    """The clients; none where there is no file. Raises ``InvalidOption``."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Client, ...])
    except FileNotFoundError:
        return ()
    except UsageError as error:
        error.where = str(path)
        raise
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        mend = "mend it, or move it away and add tokens anew"
        raise InvalidOption(f"{path} cannot be read", why=str(error), mend=mend, where=str(path)) from None


def write(path: Path, clients: Sequence[Struct]) -> None:
    """Replace the file at once, whole and on disk, for its owner's eyes only. Raises ``InvalidOption``."""
    encoded = msgspec.json.format(msgspec.json.encode(clients)) + b"\n"
    try:
        fd, new = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with open(fd, "wb") as file:
                file.write(encoded)
                file.flush()
                os.fsync(fd)
            os.replace(new, path)
        except BaseException:
            os.unlink(new)
            raise
    except OSError as error:
        mend = "make its folder, or give this user the right to write there"
        raise InvalidOption(f"{path} cannot be written", why=str(error), mend=mend, where=str(path)) from None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Nobody else changes the file meanwhile: the folder is locked, as the file itself is replaced."""
    try:
        fd = os.open(path.parent, os.O_RDONLY)
    except OSError:  # Windows, or `write` says what is wrong with it
        yield
        return
    try:
        if sys.platform != "win32":
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
