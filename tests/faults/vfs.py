"""A disk under SQLite: one that records what a power loss would leave of it, and one whose calls fail.

``Recorder`` is a VFS that works as usual and notes every write, sync, truncation and deletion in one *trace*, which all
processes of a test share; ``mark`` notes what a program was told. ``Disk`` replays a trace up to any point and answers
what a power failure at that point leaves: what was synced, and of the rest a part chosen by a seed, sector by sector.
``Faulty`` is the usual VFS whose system calls fail by plan.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Literal

import apsw
import msgspec
from msgspec import Struct

KEPT = apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL
PREFIX = struct.Struct("<II")  # length and checksum of a record


class Record(Struct, frozen=True, array_like=True):
    """One thing that happened to a file; or a ``mark`` by a program: its text is in ``file``."""

    what: Literal["write", "truncate", "sync", "delete", "mark"]
    file: str
    at: int = 0  # of a write: the offset; of a truncation: the new size; of a deletion: 1 if the folder was synced
    data: bytes = b""


class Trace:
    """The file that records go to. Appending is atomic, so what one process saw of another is noted in that order."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.encoder = msgspec.msgpack.Encoder()

    def note(self, record: Record) -> None:
        payload = self.encoder.encode(record)
        os.write(self.fd, PREFIX.pack(len(payload), zlib.crc32(payload)) + payload)

    def mark(self, text: str) -> None:
        self.note(Record("mark", text))


def read_trace(path: Path) -> list[Record]:
    """All whole records: whoever is killed while it notes something leaves half a record, and the trace ends there."""
    raw, at, decoder = path.read_bytes(), 0, msgspec.msgpack.Decoder(Record)
    records: list[Record] = []
    while at + PREFIX.size <= len(raw):
        length, checksum = PREFIX.unpack_from(raw, at)
        payload = raw[at + PREFIX.size : at + PREFIX.size + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            break
        records.append(decoder.decode(payload))
        at += PREFIX.size + length
    return records


class Recorder(apsw.VFS):
    """The default VFS from now on. ``syncs=False`` plants a bug: a sync that does nothing and claims success.

    Nothing is really synced. A write is noted after it was made, a sync when it is asked for: what the trace calls
    synced was on its way before somebody could rely on it.
    """

    def __init__(self, trace: Trace, *, syncs: bool = True) -> None:
        self.trace, self.syncs = trace, syncs
        super().__init__("recorder", "unix", makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        if name is None or not flags[0] & KEPT:
            return apsw.VFSFile("unix", name, flags)
        path = name if isinstance(name, str) else name.filename()
        return RecordedFile(self, os.path.basename(path), name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        self.trace.note(Record("delete", os.path.basename(filename), int(syncdir and self.syncs)))


class RecordedFile(apsw.VFSFile):
    def __init__(self, vfs: Recorder, file: str, name: str | apsw.URIFilename, flags: list[int]) -> None:
        self.trace, self.syncs, self.file = vfs.trace, vfs.syncs, file
        super().__init__("unix", name, flags)

    def xWrite(self, data: Any, offset: int) -> None:
        super().xWrite(data, offset)
        self.trace.note(Record("write", self.file, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:
        super().xTruncate(newsize)
        self.trace.note(Record("truncate", self.file, newsize))

    def xSync(self, flags: int) -> None:
        if self.syncs:
            self.trace.note(Record("sync", self.file))


class Disk:
    """What is on a disk while a trace is replayed: what is safe, and what is still on its way.

    As on a usual file system with SQLite's own assumptions: of unsynced writes any may have arrived, whole or by
    sectors, in any order; a write changes nothing outside its range; a file is there once it was synced; a deletion
    lasts once its folder, or any file, was synced.
    """

    def __init__(self) -> None:
        self.safe: dict[str, bytearray] = {}
        self.pending: dict[str, list[Record]] = defaultdict(list)

    def apply(self, record: Record) -> None:
        if record.what == "mark":
            return
        if record.what == "sync" or (record.what == "delete" and record.at):
            self._deletions()
            if record.what == "delete":
                self.pending.pop(record.file, None)
                self.safe.pop(record.file, None)
                return
            self.safe.setdefault(record.file, bytearray())
            for change in self.pending.pop(record.file, ()):
                _change(self.safe, change, [(0, len(change.data))])
            return
        self.pending[record.file].append(record)

    def _deletions(self) -> None:
        for file, changes in list(self.pending.items()):
            last = max((n for n, change in enumerate(changes) if change.what == "delete"), default=-1)
            if last >= 0:
                self.safe.pop(file, None)
                self.pending[file] = changes[last + 1 :]

    @property
    def unsynced(self) -> int:
        """Bytes on their way."""
        return sum(len(change.data) for changes in self.pending.values() for change in changes)

    def lose_power(self, luck: Random, sector: int = 512) -> dict[str, bytes]:
        """The files that are left. How much of what is on its way arrives is drawn first: none, some, most or all."""
        left = {file: bytearray(content) for file, content in self.safe.items()}
        share = luck.choice((0.0, 0.3, 0.7, 1.0))
        for changes in self.pending.values():
            for change in changes:
                if change.what != "write":
                    if luck.random() < share:
                        _change(left, change, [])
                    continue
                if pieces := [piece for piece in _sectors(change, sector) if luck.random() < share]:
                    if luck.random() < 0.1:  # one sector is torn itself
                        begin, end = pieces[-1]
                        pieces[-1] = (begin, luck.randint(begin, end))
                    _change(left, change, pieces)
        return {file: bytes(content) for file, content in left.items()}


def _sectors(change: Record, sector: int) -> Iterator[tuple[int, int]]:
    """The parts of a write's data that lie in one sector each."""
    begin, length = 0, len(change.data)
    while begin < length:
        end = min(length, (change.at + begin) // sector * sector + sector - change.at)
        yield begin, end
        begin = end


def _change(files: dict[str, bytearray], change: Record, pieces: Iterable[tuple[int, int]]) -> None:
    if change.what == "delete":
        files.pop(change.file, None)
        return
    content = files.setdefault(change.file, bytearray())
    if change.what == "truncate":
        del content[change.at :]
        content.extend(bytes(change.at - len(content)))
        return
    for begin, end in pieces:
        at = change.at + begin
        if len(content) < at:
            content.extend(bytes(at - len(content)))
        content[at : at + end - begin] = change.data[begin:end]


# -- calls that fail ---------------------------------------------------------------------------------------------------

WORD, INT, POINTER = ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p
# Result, then arguments. Not fcntl: SQLite unlocks while an exception is on its way, when no Python code may run.
CALLS: dict[str, tuple[Any, ...]] = {
    "open": (INT, POINTER, INT, INT),
    "pread64": (WORD, INT, POINTER, WORD, WORD),
    "pwrite64": (WORD, INT, POINTER, WORD, WORD),
    "ftruncate": (INT, INT, WORD),
    "mmap": (WORD, POINTER, WORD, INT, INT, INT, WORD),
    "unlink": (INT, POINTER),
}
SYNC = "fsync"  # no call that SQLite lets us replace: done by the file's own method
CHANGING = {"EROFS": ("pwrite64", "ftruncate", "unlink"), "ENOSPC": ("pwrite64",)}


class Plan(Struct, frozen=True):
    """The ``nth`` passage of ``call`` fails with ``error`` (a name in ``errno``), and so many after it."""

    call: str
    nth: int
    error: str = "EIO"
    times: int = 1


class Faulty(apsw.VFS):
    """The default VFS from now on. ``passed`` counts calls; ``hit`` says which file each fault met: main, wal, shm.

    ``state`` is one of the whole file system: ``EROFS`` (remounted read-only: also opening for writing fails) or
    ``ENOSPC``; ``""``: it is well.
    """

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.state: Literal["", "EROFS", "ENOSPC"] = ""
        self.passed = Counter[str]()
        self.hit: list[str] = []
        self.kept: list[Any] = []  # C code holds these functions
        super().__init__("faulty", "unix", makedefault=True)
        for name, (result, *arguments) in CALLS.items():
            prototype = ctypes.CFUNCTYPE(result, *arguments, use_errno=True)
            replaced = prototype(self._wrap(name, prototype(self.xGetSystemCall(name) or 0)))
            self.kept.append(replaced)
            self.xSetSystemCall(name, ctypes.cast(replaced, ctypes.c_void_p).value or 0)

    def arm(self, plan: Plan | None) -> None:
        self.plan = plan
        self.passed.clear()
        self.hit.clear()

    def _wrap(self, name: str, real: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            error = self._refuses(name, arguments)
            if error is None:
                return real(*arguments)
            ctypes.set_errno(error)
            return -1

        return call

    def _refuses(self, name: str, arguments: tuple[Any, ...]) -> int | None:
        opens = name == "open" and self.state == "EROFS" and arguments[1] & (os.O_RDWR | os.O_WRONLY | os.O_CREAT)
        if opens or name in CHANGING.get(self.state, ()):
            self.hit.append(f"{name} {self._file(name, arguments)}")
            return int(getattr(errno, self.state))
        if name == "unlink" and self._file(name, arguments) != "journal":
            return None  # SQLite ignores it, but the Python layer between would raise it
        return self.fails(name, lambda: self._file(name, arguments))

    def fails(self, name: str, file: Callable[[], str]) -> int | None:
        """Count a passage; the error it shall fail with."""
        self.passed[name] += 1
        plan = self.plan
        if plan is None or plan.call != name or not plan.nth <= self.passed[name] < plan.nth + plan.times:
            return None
        self.hit.append(f"{name} {file()}")
        return int(getattr(errno, plan.error))

    @staticmethod
    def _file(name: str, arguments: tuple[Any, ...]) -> str:
        if name in ("open", "unlink"):
            path = (ctypes.string_at(arguments[0]) or b"").decode()
        else:
            path = os.readlink(f"/proc/self/fd/{arguments[4 if name == 'mmap' else 0]}")
        return kind(path)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return FaultyFile(self, name, flags)


class FaultyFile(apsw.VFSFile):
    def __init__(self, vfs: Faulty, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self.vfs, self.path = vfs, name if isinstance(name, str) else "" if name is None else name.filename()
        super().__init__("unix", name, flags)

    def xSync(self, flags: int) -> None:
        if self.vfs.fails(SYNC, lambda: kind(self.path)) is not None:
            raise apsw.IOError("disk I/O error: sync")
        super().xSync(flags)


def kind(path: str) -> str:
    """Which of a database's files this is."""
    return next((end for end in ("wal", "shm", "journal") if path.endswith("-" + end)), "main")
