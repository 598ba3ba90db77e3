"""EIP: Channel Adapter, for folders (EIP: File Transfer): each whole file becomes a message.

A file goes ``folder/`` → ``folder/.taken/`` → ``folder/.done/`` or ``folder/.failed/``, each step by a rename. Who
works on a taken file holds a lock on it, which ends with its process: what is taken and not locked was left behind.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar, overload

from tidings.app import App
from tidings.channels import Topic
from tidings.kernel.errors import BusError, Duration, InvalidOption, text_of
from tidings.kernel.message import seconds
from tidings.router import Router

from ._pattern import describe

log = logging.getLogger("tidings")

T = TypeVar("T")

Signature = tuple[int, int, int]
TAKEN, DONE, FAILED = ".taken", ".done", ".failed"


@overload
def watch_files(
    app: Router,
    folder: str | Path,
    to: Topic[bytes] | Topic[str],
    /,
    *,
    pattern: str = ...,
    every: Duration = ...,
    settle: Duration = ...,
    marker: str = ...,
) -> None: ...
@overload
def watch_files(
    app: Router,
    folder: str | Path,
    to: Topic[T],
    /,
    *,
    read: Callable[[Path], T],
    pattern: str = ...,
    every: Duration = ...,
    settle: Duration = ...,
    marker: str = ...,
) -> None: ...
def watch_files(
    app: Router,
    folder: str | Path,
    to: Topic[Any],
    /,
    *,
    read: Callable[[Path], Any] | None = None,
    pattern: str = "*",
    every: Duration = "1s",
    settle: Duration = "2s",
    marker: str = "",
) -> None:
    """Publish each file that comes into a folder, as one message. EIP: Channel Adapter.

    ``to``: its payload is what the file holds, as ``bytes`` or ``str``, or what ``read(path)`` makes of it (in a
    thread). The key is the file's name; the headers ``file-name`` and ``file-size`` say more. ``pattern``: which names;
    never those that begin with a dot. ``every``: how often to look.

    A file is taken when it is complete: unchanged for ``settle`` (0 for what is renamed into place), or, with
    ``marker=".ok"``, when there is ``<name>.ok``, which is removed. It is moved to ``.taken``, and when the bus has
    accepted it to ``.done``; what ``read`` or the topic refuses goes to ``.failed``, with the reason beside it. At
    least once, also by ``kill -9``: the id comes from name, size, time and contents, so it is the same again. Several
    processes may watch one folder.

    Raises ``InvalidOption``.
    """
    place, wait = Path(folder), seconds(settle, "settle")
    if not to.publishable or (read is None and to.type not in (bytes, str)):
        mend = "Topic(name, bytes), or read=a function from a path to the payload"
        raise InvalidOption(f"the files of {place} cannot be published to {to!r}", mend=mend)
    folder_ = _Folder(place, pattern, wait, marker)
    reader = read or (Path.read_bytes if to.type is bytes else Path.read_text)

    async def watch(app: App) -> None:
        for path in await asyncio.to_thread(folder_.take):
            await _publish(app, path, to, reader)

    watch.__name__ = f"watch-{place.name or 'files'}"
    app.every(every, each=True)(describe(watch, "channel adapter", publishes=(to,)))


class _Folder:
    """A folder that is watched: which of its files are complete."""

    def __init__(self, place: Path, pattern: str, settle: float, marker: str) -> None:
        self.place, self.pattern, self.settle, self.marker = place, pattern, settle, marker
        self.seen: dict[str, tuple[Signature, float]] = {}  # name -> how it was, and since when

    def take(self) -> list[Path]:
        """Move what is complete to ``.taken``, by one process at a time; all that is there."""
        taken = self.place / TAKEN
        for name in (TAKEN, DONE, FAILED):
            (self.place / name).mkdir(parents=True, exist_ok=True)
        guard = os.open(taken, os.O_RDONLY)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
            for path in sorted(self.place.glob(self.pattern)):
                marked = path.with_name(path.name + self.marker)
                if self._complete(path, marked) and not (taken / path.name).exists():  # the one before is not done
                    path.rename(taken / path.name)
                    if self.marker:
                        marked.unlink()
        except FileNotFoundError:
            log.info("a file of %s went away", self.place)
        finally:
            os.close(guard)
        return sorted(taken.iterdir())

    def _complete(self, path: Path, marked: Path) -> bool:
        if path.name.startswith(".") or not path.is_file() or (self.marker and path.name.endswith(self.marker)):
            return False
        if self.marker:
            return marked.exists()
        now, before = _signature(path), self.seen.get(path.name)
        if before is None or before[0] != now:
            self.seen[path.name] = before = (now, monotonic())
        if monotonic() - before[1] < self.settle:
            return False
        del self.seen[path.name]
        return True


async def _publish(app: App, path: Path, to: Topic[Any], read: Callable[[Path], Any]) -> None:
    """Publish a taken file, unless another process does, or somebody still writes into it."""
    with _locked(path) as ours:
        if not ours:
            return
        try:
            before = _signature(path)
            data, id = await asyncio.to_thread(lambda: (read(path), _digest(path)))
            if _signature(path) != before:
                return
            headers = {"file-name": path.name, "file-size": str(before[0])}
            await app.publish(to, data, key=path.name, headers=headers, id=id)
        except BusError as error:
            log.warning("%s is published later: %s", path.name, error)
        except Exception as error:
            log.error("%s cannot be published: %s", path, text_of(error))
            await asyncio.to_thread(_away, path, FAILED, f"{type(error).__name__}: {text_of(error)}\n")
        else:
            await asyncio.to_thread(_away, path, DONE)


def _away(path: Path, folder: str, why: str = "") -> None:
    """Move a file where nobody has its name, or with a number; ``why`` stands beside it."""
    target, number = path.parent.parent / folder / path.name, 1
    while target.exists():
        target, number = target.with_name(f"{path.name}.{number}"), number + 1
    if why:
        target.with_name(f"{target.name}.why").write_text(why)
    path.rename(target)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether the file is there and now ours, until this process ends: nobody else has it."""
    with ExitStack() as stack:
        ours = False
        with suppress(FileNotFoundError, BlockingIOError):
            file = stack.enter_context(path.open("rb"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.fstat(file.fileno()).st_ino == path.stat().st_ino
        yield ours


def _signature(path: Path) -> Signature:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _digest(path: Path) -> str:
    size, modified, _ = _signature(path)
    found = blake2b(f"{path.name}\0{size}\0{modified}\0".encode(errors="surrogateescape"), digest_size=16)
    with path.open("rb") as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()
