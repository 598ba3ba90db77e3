"""``tidings backup`` and ``tidings restore``: of a bus that is one SQLite file."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import apsw
from cyclopts import Parameter

from tidings.kernel.errors import BusCorrupt, BusError, InvalidOption, Unsupported
from tidings.transports.sqlite import APPLICATION, read_only, translate
from tidings.transports.sqlite.log import SCHEMA

from . import show
from ._asking import agreed
from ._bus import Source, file_of, find_source, opened
from ._options import DryRun, Json, Url, Yes
from ._progress import Progress

PAGES = 1_000  # copied at once
READ = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
TOOLS = {
    "postgres": "pg_dump, or a base backup",
    "nats": "`nats stream backup`, or `nats account backup`",
    "rabbitmq": "a copy of its data directory while it is stopped (definitions alone hold no messages)",
    "redis": "BGSAVE, and a copy of dump.rdb and the append-only files",
    "kafka": "replication, MirrorMaker 2, or snapshots of its volumes",
}


def backup(
    file: Annotated[Path, Parameter(help="Where to.")],
    /,
    *,
    yes: Yes = False,
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Copy a SQLite bus to a file while it is in use: as it is at this moment, and checked.

    Everything is in it: messages, groups and how far they are, dead letters. A bus that any process has open is never
    overwritten.
    """
    source = find_source(url)
    bus = _file(source)
    _refuse_kind(file)
    if file.exists() and bus.exists() and file.samefile(bus):
        raise InvalidOption(f"{file} is the bus itself")
    if _there(file) and not dry_run and not yes and not agreed(f"overwrite {file}?"):
        show.note(f"kept {file}")
        return
    began = time.monotonic()
    with _alone(file):
        size = asyncio.run(_backup(source, file, dry_run))
    _tell("back up" if dry_run else "backed up", str(source), str(file), size, began, dry_run, json)


async def _backup(source: Source, file: Path, dry_run: bool) -> int:
    """How many bytes."""
    async with opened(source) as app:
        bus: apsw.Connection = app.bus().client
        bus.execute("BEGIN; SELECT seq FROM meta")  # one look: who writes meanwhile does not make the copy begin anew
        size = int(bus.execute("PRAGMA page_count").get) * int(bus.execute("PRAGMA page_size").get)
        if not dry_run:
            with _instead_of(file, _file(source)) as copy:
                await asyncio.to_thread(_copy_pages, bus, copy)
                await asyncio.to_thread(_check, copy)
        bus.execute("ROLLBACK")
        return size


def _copy_pages(bus: apsw.Connection, copy: Path) -> None:
    target = apsw.Connection(str(copy))
    try:
        with target.backup("main", bus, "main") as running:
            running.step(1)
            with Progress("pages", running.page_count) as progress:
                while not running.done:
                    running.step(PAGES)
                    done = running.page_count - running.remaining
                    progress(done, done)
    except apsw.Error as error:
        raise translate(error, copy) from error
    finally:
        target.close()


def restore(
    file: Annotated[Path, Parameter(help="What `tidings backup` made.")],
    /,
    *,
    yes: Yes = False,
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Make a SQLite bus of a backup, which is checked first. What is there is overwritten only with --yes.

    A bus that any process has open is never overwritten.
    """
    source = find_source(url)
    target = _file(source)
    began = time.monotonic()
    if not file.is_file():
        raise InvalidOption(f"there is no file {file}")
    if target.exists() and file.samefile(target):
        raise InvalidOption(f"{file} is the bus itself")
    if Path(f"{file}-wal").exists() and Path(f"{file}-wal").stat().st_size:
        why = f"{file}-wal holds messages that are not in {file}"
        raise InvalidOption(f"{file} is no backup", why=why, mend=f"tidings backup --url sqlite:///{file} FILE")
    _refuse_kind(target)
    _check(file)
    if _there(target) and not dry_run and not yes and not agreed(f"overwrite {target}?"):
        show.note(f"kept {target}")
        return
    with _alone(target):
        if not dry_run:
            with _instead_of(target, file) as copy:
                shutil.copyfile(file, copy)
                _check(copy)
    _tell("restore" if dry_run else "restored", str(file), str(source), file.stat().st_size, began, dry_run, json)


# -- files


def _file(source: Source) -> Path:
    """The bus's file. Raises ``Unsupported`` where it is none, naming the tool of that bus."""
    options = source.options()
    file = file_of(options)
    if file is None:
        module = type(options).__module__
        mend = next((tool for kind, tool in TOOLS.items() if kind in module), "the broker's own tools")
        raise Unsupported(f"{type(options).__name__} is no file that could be copied", mend=mend)
    return file


def _there(path: Path) -> bool:
    """Whether anything would be overwritten: a write-ahead log may hold messages that are nowhere else."""
    return path.exists() or Path(f"{path}-wal").exists()


def _refuse_kind(path: Path) -> None:
    """Raises ``InvalidOption`` where no file can be made."""
    if path.is_dir():
        raise InvalidOption(f"{path} is a folder", mend=f"{path / 'bus.backup'}")
    if not path.absolute().parent.is_dir():
        raise InvalidOption(f"there is no folder {path.absolute().parent}")


def _check(path: Path) -> None:
    """Raises ``BusCorrupt`` for a file that is no bus, or no whole one."""
    try:
        con = apsw.Connection(f"file:{path.absolute().as_uri()[7:]}?immutable=1", flags=READ)
        try:
            if con.execute("PRAGMA application_id").get != APPLICATION:
                raise BusCorrupt(f"{path} is no bus", mend="name a file that `tidings backup` made")
            if (schema := con.execute("PRAGMA user_version").get) != SCHEMA:
                why = f"its schema is {schema}, this version reads {SCHEMA}"
                raise BusCorrupt(f"{path} was written by another version of Tidings", why=why, mend="restore with that")
            if (told := con.execute("PRAGMA integrity_check(1)").get) != "ok":
                raise BusCorrupt(f"{path} is damaged", why=told, mend="take an older backup")
        finally:
            con.close()
    except apsw.Error as error:
        raise translate(error, path) from error


@contextmanager
def _instead_of(path: Path, source: Path) -> Iterator[Path]:
    """A new file that takes the place of ``path`` once it is whole and on the disk; until then nothing is changed.

    Nobody may read it who could not read the file it replaces, or else the one it is made from.
    """
    copy = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield copy
        _own(copy, path if path.exists() else source)
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        for end in ("-wal", "-shm"):  # of the file that was there, or of one that was deleted: no part of this one
            Path(f"{path}{end}").unlink(missing_ok=True)
        os.replace(copy, path)
        folder = os.open(path.absolute().parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        raise InvalidOption(f"{path} cannot be written", why=error.strerror or str(error)) from None
    finally:
        for left in (copy, Path(f"{copy}-journal"), Path(f"{copy}-wal"), Path(f"{copy}-shm")):
            left.unlink(missing_ok=True)


def _own(copy: Path, like: Path) -> None:
    """Give it the owner, where this user may, and the mode of another file; its owner can always write to it."""
    told = like.stat()
    for owner, group in ((-1, told.st_gid), (told.st_uid, -1)):
        with suppress(PermissionError):
            os.chown(copy, owner, group)
    mode = told.st_mode & 0o777 | 0o600
    copy.chmod(mode if copy.stat().st_gid == told.st_gid else mode & ~0o070)  # what one group may, another may not


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else has the bus open, and nobody can open it. Raises ``BusError`` where somebody has.

    Its write-ahead log is gone meanwhile: SQLite would take it for that of the file which is put in its place.
    """
    if not path.exists():
        yield
        return
    con, before, mode = _connection(path), path.stat().st_ino, "DELETE"
    try:
        mode = con.execute("PRAGMA journal_mode").get
        con.execute("PRAGMA locking_mode = EXCLUSIVE")
        con.execute("PRAGMA journal_mode = DELETE")  # needs the file for itself
        con.execute("BEGIN EXCLUSIVE")
    except apsw.BusyError:
        con.close()
        why, mend = "another process has it open", "stop its processes; nothing was changed"
        raise BusError(f"{path} is in use", why=why, mend=mend) from None
    except (apsw.NotADBError, apsw.CorruptError):  # what a backup is for
        con.close()
        yield
        return
    except apsw.Error as error:
        con.close()
        raise translate(error, path) from error
    try:
        yield
    finally:
        con.execute("ROLLBACK")
        if path.stat().st_ino == before:  # it was not replaced: as it was
            con.execute(f"PRAGMA journal_mode = {mode}")
        con.close()


def _connection(path: Path) -> apsw.Connection:
    """Raises ``BusError`` for a file that this user may not write: what is protected is not overwritten."""
    if not os.access(path, os.W_OK):
        raise read_only(path.absolute())
    try:
        return apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    except apsw.Error as error:
        raise translate(error, path) from error


def _tell(done: str, source: str, target: str, size: int, began: float, dry_run: bool, json: bool) -> None:
    took = time.monotonic() - began
    if json:
        told = {"from": source, "to": target, "bytes": size, "dry_run": dry_run, "seconds": round(took, 3)}
        show.document(told)
    else:
        verb = f"would {done}" if dry_run else done
        show.say(f"{verb} {source} to {target}: {size / 1e6:,.1f} MB, checked, in {took:.1f} s")
