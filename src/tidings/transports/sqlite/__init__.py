"""The embedded bus: one SQLite file, shared by any number of processes of one machine, durable and without a server.

Theory of operation. A message is stored once in a log, however many groups read it; a group is a position in it. A
process *claims* a stretch, and settles numbers of it; only what fails gets a row of its own (``parked``). One thread
per process does all writing and commits many operations at once (``writer.py``); an operation is a *step*: a plain
function inside a transaction (``log.py``: storing and finding; ``groups.py``: who is there and reads what;
``claims.py``: who holds what). ``transport.py`` is the event loop's side.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, unquote

import apsw
import msgspec
from msgspec import Struct

from tidings.kernel import errors
from tidings.kernel.errors import Duration, InvalidOption, InvalidURL, nearest
from tidings.kernel.message import seconds
from tidings.transports._points import passed

from .log import MOST_BYTES, SCHEMA, Log, sql

if TYPE_CHECKING:
    from .transport import SQLiteTransport

__all__ = ["SQLite"]

APPLICATION = 0x54444E47  # "TDNG"
PAGE = 8192  # bytes; an eighth less work than with 4,096 for what is stored together, a tenth more for a single message
STUCK = 10.0  # another process holds the write lock for so long: reported, and waited for
NETWORK = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "lustre", "gluster", "beegfs", "fuse.sshfs", "fuse.s3", "davfs")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)?", re.IGNORECASE)
_UNITS = {
    "b": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}


class SQLite(Struct, frozen=True, kw_only=True):
    """Options of the embedded bus.

    ``path``: the file; its folder must exist. ``lease``: how long a silent process keeps what it holds (one that is
    provably dead loses it at once). ``sync``: ``full`` survives power loss, ``normal`` only the process's death.
    ``retain`` and ``max_size``: what is kept for replay; never less than what a group still needs, so a backlog of
    ``max_size`` makes publishing raise ``BusFull``.
    """

    path: str
    lease: Duration = "30s"
    sync: Literal["full", "normal"] = "full"
    retain: Duration = "7d"
    max_size: int | str = 2**30
    segment_rows: int = 1_000_000  # tuning: when a new log table begins
    segment_bytes: int | None = None  # None: a sixteenth of max_size, at most 64 MiB

    def __post_init__(self) -> None:
        if not self.path:
            raise InvalidOption("the SQLite bus needs a path", mend="sqlite:///shop.db, or sqlite:////var/lib/shop.db")
        if self.sync not in ("full", "normal"):
            raise InvalidOption(f"sync cannot be {self.sync!r}", mend="full (survives power loss) or normal")
        if self.lease_seconds <= 0 or seconds(self.retain, "retain") < 0:
            raise InvalidOption("lease cannot be 0", mend='a duration like "30s"')
        for name in ("segment_rows", "segment_bytes"):
            if not isinstance(value := getattr(self, name), int | None) or value == 0:
                raise InvalidOption(f"{name} cannot be {value!r}", mend="a number, at least 1")
        size(self.max_size)

    @property
    def lease_seconds(self) -> float:
        return seconds(self.lease, "lease")

    @classmethod
    def from_url(cls, url: str) -> SQLite:
        """Options from ``sqlite:///relative.db?lease=1s`` or ``sqlite:////absolute.db``; raises ``InvalidURL``."""
        rest, _, query = url.partition("?")
        scheme, colon, path = rest.partition("://")
        if scheme != "sqlite" or not colon or not path.startswith("/") or path == "/":
            raise InvalidURL(
                f"{url!r} is no SQLite URL",
                mend="sqlite:///shop.db is relative to the working directory, sqlite:////var/lib/shop.db absolute",
            )
        known = ("lease", "sync", "retain", "max_size", "segment_rows", "segment_bytes")
        options: dict[str, Any] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name not in known:
                what, why = f"the SQLite bus has no option {name!r}", f"it has {', '.join(known)}"
                raise InvalidURL(what, why=why, mend=nearest(name, known))
            options[name] = int(value) if name.startswith("segment_") and value.isdigit() else value
        try:
            return cls(path=unquote(path[1:]), **options)
        except (InvalidOption, TypeError, msgspec.ValidationError) as error:
            raise InvalidURL(f"{url!r}: {getattr(error, 'what', error)}", mend=getattr(error, "mend", "")) from None

    def file(self) -> Path:
        """The absolute path."""
        return Path(self.path).expanduser().absolute()

    def transport(self) -> SQLiteTransport:
        from .transport import SQLiteTransport

        return SQLiteTransport(self)


def size(value: int | str) -> int:
    """A number of bytes: ``1048576``, ``"64MiB"``, ``"1GiB"``; raises ``InvalidOption``."""
    found = _SIZE.fullmatch(str(value).strip())
    if isinstance(value, bool) or not found or not (total := int(float(found[1]) * _UNITS[(found[2] or "b").lower()])):
        raise InvalidOption(f"a size cannot be {value!r}", mend='"64MiB", "1GiB" or a number of bytes')
    return total


# -- opening the file --------------------------------------------------------------------------------------------


def _patient() -> Callable[[int], bool]:
    """Ask again every 0.2 to 2 ms: SQLite's own handler sleeps up to 100 ms, and lets a busy neighbour starve us."""
    since = 0.0

    def wait(tries: int) -> bool:
        nonlocal since
        now = time.monotonic()
        since = since if tries else now
        time.sleep(min(0.0002 * (tries + 1), 0.002))
        return now - since < STUCK

    return wait


def connect(path: Path, *, read: bool = False) -> apsw.Connection:
    """A connection to a bus file, made or checked. Raises ``BusUnavailable`` or the subclass that says why."""
    _check_library(apsw.sqlite_lib_version())
    _check_place(path)
    try:
        con = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        con.set_busy_handler(_patient())
        con.limit(apsw.SQLITE_LIMIT_LENGTH, MOST_BYTES)
        if con.readonly("main"):
            raise read_only(path)
        _check_end(con, path)
        _check_schema(con, path)
        con.execute("PRAGMA synchronous = FULL; PRAGMA cache_size = -16000; PRAGMA temp_store = MEMORY")
        con.execute(f"PRAGMA query_only = {int(read)}")
        con.set_wal_hook(lambda *_: apsw.SQLITE_OK)  # also switches automatic checkpoints off
    except apsw.Error as error:
        raise translate(error, path) from error
    return con


def _check_library(version: str) -> None:
    numbers = tuple(map(int, version.split(".")))
    if (3, 7, 0) <= numbers <= (3, 51, 2):
        raise errors.UnsafeLibrary(
            f"SQLite {version} can damage this bus",
            why="3.7.0 to 3.51.2 lose data when several connections write and checkpoint (the WAL-reset bug)",
            mend="pip install --upgrade apsw (3.51.3 or newer brings its own SQLite)",
        )


def _check_place(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise errors.BusUnavailable(
            f"{path} cannot be opened", why=f"there is no folder {folder}", mend=f"mkdir -p {folder}"
        )
    if path.is_dir():
        raise errors.BusUnavailable(f"{path} cannot be opened", why="it is a folder", mend="name a file")
    if (kind := file_system(path.resolve())).startswith(NETWORK):
        raise errors.BusUnavailable(
            f"{path} cannot be opened",
            why=f"it is on a network file system ({kind}), where SQLite's locks and shared memory do not work",
            mend="put the file on a local disk, or use a broker: one --url away",
        )


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system ``path`` is on; ``""`` where nobody can tell."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return ""
    points = [(line[1].encode().decode("unicode_escape"), line[2]) for line in lines if len(line) > 2]
    inside = [(len(point), kind) for point, kind in points if path.is_relative_to(point)]
    return max(inside, key=lambda entry: entry[0])[1] if inside else ""


def _check_end(con: apsw.Connection, path: Path) -> None:
    """A file that ends within a page was cut: SQLite takes the rest for zeros, and those for rows without a topic.

    Unless the write-ahead log has that page: then a copy into the file was cut short, and nothing is lost.
    """
    whole = path.stat().st_size % con.execute("PRAGMA page_size").get == 0
    if not whole and (told := con.execute("PRAGMA quick_check(1)").get) != "ok":
        raise errors.BusCorrupt(f"{path} is damaged", why=told, mend="restore it from a backup")


def _check_schema(con: apsw.Connection, path: Path) -> None:
    if not _is_bus(con, path):
        con.execute(f"PRAGMA page_size = {PAGE}")
        _switch_to_wal(con, path)
        con.execute("BEGIN IMMEDIATE")
        if not con.execute("PRAGMA user_version").get:  # unless another process was first
            con.execute(sql("schema"))
            con.execute(f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {SCHEMA}")
            Log(con, 0, 0, 0).roll()
        passed("schema")
        con.execute("COMMIT")
    if (mode := con.execute("PRAGMA journal_mode").get) != "wal":
        raise errors.BusCorrupt(
            f"{path} is no bus any more", why=f"its journal mode is {mode}", mend="restore it from a backup"
        )


def _is_bus(con: apsw.Connection, path: Path) -> bool:
    """False for a new, empty file. Nothing is written into a file that is not ours."""
    about = "user_version, application_id, (SELECT count(*) FROM sqlite_schema)"  # one look: others may be making it
    schema, owner, tables = con.execute(f"SELECT {about} FROM pragma_user_version, pragma_application_id").get
    if schema > SCHEMA and owner == APPLICATION:
        raise errors.BusTooNew(
            f"{path} was written by a newer Tidings",
            why=f"its schema is {schema}, this version knows up to {SCHEMA}",
            mend="pip install --upgrade tidings",
        )
    if 0 < schema < SCHEMA and owner == APPLICATION:
        raise errors.BusUnavailable(
            f"{path} was written by an older Tidings",
            why=f"its schema is {schema}, this version reads {SCHEMA}",
            mend="let its groups catch up with the version that wrote it, then begin a new file",
        )
    if owner != APPLICATION and tables:
        raise errors.BusCorrupt(f"{path} is no bus", why="it is another program's database", mend="name another file")
    return bool(owner == APPLICATION)


def _switch_to_wal(con: apsw.Connection, path: Path) -> None:
    """Needs the file for a moment, and no busy handler is asked when two processes make it at once."""
    deadline = time.monotonic() + STUCK
    while True:
        try:
            mode = con.execute("PRAGMA journal_mode = WAL").get
        except apsw.BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)
            continue
        if mode != "wal":
            raise errors.BusUnavailable(
                f"{path} cannot be opened", why=f"no write-ahead log here: {mode}", mend="use a local disk"
            )
        return


def read_only(path: Path) -> errors.BusReadOnly:
    return errors.BusReadOnly(
        f"{path} cannot be written",
        why="the file, its folder or its file system is read-only for this user",
        mend=f"give this user the right to write {path.parent} and the files in it",
    )


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def translate(error: apsw.Error | msgspec.DecodeError | OSError, path: Path) -> errors.BusError:
    """SQLite's error as ours, with the file's absolute path; what cannot be decoded was damaged, too."""
    why = str(error)
    if isinstance(error, apsw.FullError):
        return errors.BusFull(
            f"{path}: the disk is full", why=f"{why}; what was accepted is safe", mend="make room on the disk"
        )
    denied = isinstance(error, apsw.CantOpenError | apsw.IOError) and not _writable(path.parent)
    if isinstance(error, apsw.ReadOnlyError) or denied:
        return read_only(path)
    if isinstance(error, apsw.CorruptError | apsw.NotADBError | msgspec.DecodeError):
        return errors.BusCorrupt(
            f"{path} is damaged, or is no bus", why=why, mend="restore it from a backup, or name another file"
        )
    return errors.BusUnavailable(f"{path} cannot be used", why=why, mend="is the file there, and the disk healthy?")


# -- which process this is -----------------------------------------------------------------------------------------


@cache
def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def started_at(pid: int) -> int:
    """When a process was started; 0 if it is not running (or a corpse that nobody has fetched yet)."""
    fields = _read.__wrapped__(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return 0 if not fields or fields[0] in "ZX" else int(fields[19])


def identity(pid: int) -> tuple[str, int, int, str]:
    """(boot, pid, start, pid namespace): enough to prove that a process is gone."""
    namespace = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return _read("/proc/sys/kernel/random/boot_id"), pid, started_at(pid), namespace
