"""Where bodies lie that are too large for a bus: a folder, this machine's memory, or any store that fsspec knows.

A blob is written under the day it came, ``2026-11-27/<SHA-256>``. So writing it again changes nothing, whoever reads it
can tell that it is whole, and old ones go by the day: nobody writes a blob of a day that is collected.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from tidings.kernel.errors import InvalidOption, MissingExtra
from tidings.kernel.message import new_id


class Blobs(Protocol):
    """A store of blobs. Its methods are called in threads, from several processes at once."""

    def put(self, name: str, body: bytes) -> None:
        """Write a blob: when this returns it is there, whole, and as durable as the store can make it."""

    def get(self, name: str) -> bytes:
        """Read a blob; raises ``FileNotFoundError``."""

    def days(self) -> Sequence[str]:
        """The days, ``2026-11-27``, of which there are blobs."""

    def remove(self, day: str) -> None:
        """Remove all blobs of a day."""


class FolderBlobs:
    """Blobs in a folder, which the processes share: each a file, flushed to the disk before it has its name."""

    durable = True

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def put(self, name: str, body: bytes) -> None:
        path = self.path / name
        self._make(path.parent)
        if not (path.exists() and path.stat().st_size == len(body)):
            part = path.with_name(f".{new_id()}")  # a killed process leaves it; it goes with its day
            try:
                with part.open("xb") as file:
                    file.write(body)
                    self._flush(file.fileno())
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        self._flush_folder(path.parent)  # also where another process has just given it its name

    def get(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def days(self) -> Sequence[str]:
        return [path.name for path in self.path.iterdir()] if self.path.exists() else []

    def remove(self, day: str) -> None:
        shutil.rmtree(self.path / day, ignore_errors=True)

    def _make(self, folder: Path) -> None:
        if not folder.exists():
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            self._flush_folder(folder.parent)

    def _flush_folder(self, folder: Path) -> None:
        opened = os.open(folder, os.O_RDONLY)
        try:
            self._flush(opened)
        finally:
            os.close(opened)

    def _flush(self, number: int) -> None:
        if self.durable:
            os.fsync(number)


class SharedBlobs(FolderBlobs):
    """Blobs in this machine's memory, shared by its processes under a name; a reboot forgets them.

    Linux only (``/dev/shm``). Raises ``InvalidOption`` elsewhere, and where the name belongs to another user.
    """

    durable = False

    def __init__(self, name: str) -> None:
        memory = Path("/dev/shm")
        if not memory.is_dir() or not name.isidentifier():
            mend = "a name of letters, digits and '_', on Linux; or FolderBlobs(path)"
            raise InvalidOption(f"no memory can be shared as {name!r}", mend=mend)
        super().__init__(memory / f"tidings-{name}")
        with suppress(FileExistsError):
            self.path.mkdir(0o700)
        if self.path.is_symlink() or self.path.stat().st_uid != os.geteuid():
            raise InvalidOption(f"{self.path} belongs to somebody else", mend="choose another name")


class FsspecBlobs:
    """Blobs in any store that fsspec knows: ``"s3://bucket/blobs"``, ``"gs://…"``, ``"sftp://…"``.

    ``options`` are those of its file system. Raises ``MissingExtra``, ``InvalidOption``.
    """

    def __init__(self, url: str, **options: Any) -> None:
        try:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]
        except ImportError as error:
            mend = "pip install 'tidings[claim]'"
            raise MissingExtra("fsspec is not installed", why=str(error), mend=mend) from None
        try:
            self.files, self.path = url_to_fs(url, **options)
        except ImportError as error:  # s3fs, gcsfs, ...
            raise MissingExtra(f"{url!r} needs a package that is not installed", why=str(error)) from None
        except ValueError as error:
            raise InvalidOption(f"{url!r} is no store", why=str(error), mend="s3://bucket/folder") from None

    def put(self, name: str, body: bytes) -> None:
        path = f"{self.path}/{name}"
        try:
            whole = self.files.size(path) == len(body)
        except FileNotFoundError:
            whole = False
        if not whole:  # or only a part, where a process died in a store that writes in place
            self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.files.pipe_file(path, body)

    def get(self, name: str) -> bytes:
        found: bytes = self.files.cat_file(f"{self.path}/{name}")
        return found

    def days(self) -> Sequence[str]:
        self.files.invalidate_cache()
        try:
            listed = self.files.ls(self.path, detail=False)
        except FileNotFoundError:
            return []
        return [path.rstrip("/").rpartition("/")[2] for path in listed]

    def remove(self, day: str) -> None:
        self.files.rm(f"{self.path}/{day}", recursive=True)
