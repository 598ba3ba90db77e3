"""Files that are no bus, or cannot be one: a clear error each, with the absolute path, and nothing written."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from tests.transports.consuming import settle, take, until
from tests.transports.sqlite.helpers import bus, group, message

from tidings.kernel.errors import (
    BusCorrupt,
    BusError,
    BusFull,
    BusReadOnly,
    BusTooNew,
    BusUnavailable,
    InvalidURL,
    NotOpen,
    TidingsError,
    UnsafeLibrary,
)
from tidings.transports import sqlite
from tidings.transports.sqlite import SQLite


async def refused(folder: Path, kind: type[TidingsError]) -> TidingsError:
    with pytest.raises(kind) as raised:
        async with bus(folder):
            pass
    assert type(raised.value) is kind
    assert str(folder / "bus.db") in str(raised.value)
    assert raised.value.why
    assert raised.value.mend
    return raised.value


async def test_no_database(tmp_path: Path) -> None:
    (tmp_path / "bus.db").write_bytes(b"Dear diary, " * 500)
    await refused(tmp_path, BusCorrupt)
    assert (tmp_path / "bus.db").read_bytes() == b"Dear diary, " * 500


async def test_another_programs_database(tmp_path: Path) -> None:
    con = apsw.Connection(str(tmp_path / "bus.db"))
    con.execute("CREATE TABLE diary(day)")
    con.close()
    before = (tmp_path / "bus.db").read_bytes()
    await refused(tmp_path, BusCorrupt)
    assert (tmp_path / "bus.db").read_bytes() == before


async def test_a_newer_bus(tmp_path: Path) -> None:
    async with bus(tmp_path):
        pass
    con = apsw.Connection(str(tmp_path / "bus.db"))
    con.execute("PRAGMA user_version = 99")
    con.close()
    await refused(tmp_path, BusTooNew)


async def test_a_torn_file(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        await b.publish([message(n) for n in range(2000)])
    path = tmp_path / "bus.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + os.urandom(len(whole) - 4096))
    with pytest.raises(BusCorrupt):
        async with bus(tmp_path) as b:
            await b.publish([message(1)])


async def test_a_file_cut_within_a_page(tmp_path: Path) -> None:
    """Found by the nemesis "cut file", seed 93383: messages of that page were missing, and nobody was told."""
    async with bus(tmp_path) as b:
        await b.publish([message(n) for n in range(2000)])
    path = tmp_path / "bus.db"
    con = apsw.Connection(str(path))
    leaf = con.execute("SELECT max(pageno) FROM dbstat WHERE name = 'log_1' AND pagetype = 'leaf'").get
    con.close()
    os.truncate(path, (leaf - 1) * sqlite.PAGE + 2000)
    await refused(tmp_path, BusCorrupt)


async def test_no_folder(tmp_path: Path) -> None:
    await refused(tmp_path / "missing", BusUnavailable)


async def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "bus.db").mkdir()
    await refused(tmp_path, BusUnavailable)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name).resolve()


@pytest.mark.parametrize("what", ["bus.db", "."])
async def test_read_only(open_folder: Path, what: str) -> None:
    if what == "bus.db":
        async with bus(open_folder):
            pass
    (open_folder / what).chmod(0o555)
    root = os.geteuid() == 0
    if root:  # root may write anywhere
        os.seteuid(65534)
    try:
        await refused(open_folder, BusReadOnly)
    finally:
        if root:
            os.seteuid(0)


def test_errors_of_sqlite_become_ours(tmp_path: Path) -> None:
    path = tmp_path / "bus.db"
    kinds = {
        apsw.FullError: BusFull,
        apsw.ReadOnlyError: BusReadOnly,
        apsw.CorruptError: BusCorrupt,
        apsw.NotADBError: BusCorrupt,
        apsw.IOError: BusUnavailable,
        apsw.BusyError: BusUnavailable,
    }
    for theirs, ours in kinds.items():
        error = sqlite.translate(theirs("it is so"), path)
        assert type(error) is ours
        assert str(path) in str(error)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_network_file_system(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path}/my\\040share {kind} rw 0 0\n")
    assert sqlite.file_system(tmp_path / "my share" / "bus.db", mounts) == kind
    assert sqlite.file_system(tmp_path / "bus.db", mounts) == "ext4"
    assert sqlite.file_system(tmp_path / "bus.db", tmp_path / "none") == ""
    monkeypatch.setattr(sqlite, "file_system", lambda path: kind)
    with pytest.raises(BusUnavailable, match="network file system"):
        sqlite.connect(tmp_path / "bus.db")


@pytest.mark.parametrize("version", ["3.7.0", "3.46.1", "3.51.2"])
def test_an_unsafe_library(tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
    with pytest.raises(UnsafeLibrary, match="apsw"):
        sqlite.connect(tmp_path / "bus.db")


async def test_a_full_disk_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        await b.publish([message(n) for n in range(100)])
        pages = b.writer.con.execute("PRAGMA page_count").get
        await b.writer.submit(lambda: None)
        b.writer.con.execute(f"PRAGMA max_page_count = {pages + 3}")

        async def flood() -> None:
            for _ in range(100):
                await b.publish([message(0) for _ in range(100)])

        with pytest.raises(BusFull, match="disk is full"):
            await flood()
        b.writer.con.execute("PRAGMA max_page_count = 1000000")
        lag = (await b.groups())[0].lag
        await settle(consumer, await take(consumer, lag))
        await b.publish([message(7)])
        (last,) = await take(consumer, 1)
        assert last.message.body == b"7"


async def test_a_claim_fails_and_nothing_else_comes(tmp_path: Path) -> None:
    """What woke the consumer came only once: asked again, it looks."""
    async with bus(tmp_path) as b, bus(tmp_path) as other:
        consumer = await b.subscribe(group())
        waiting = asyncio.ensure_future(consumer.receive(1))
        await until(lambda: not consumer.more and consumer.future is not None)  # at the end of the log, and asleep
        b.writer.con.execute("PRAGMA query_only = 1")
        await other.publish([message(1)])
        with pytest.raises(BusError):
            await waiting
        b.writer.con.execute("PRAGMA query_only = 0")
        await settle(consumer, await take(consumer, 1))


async def test_used_before_and_after(tmp_path: Path) -> None:
    transport = SQLite(path=str(tmp_path / "bus.db")).transport()
    with pytest.raises(NotOpen):
        await transport.publish([message(1)])
    await transport.close()
    async with bus(tmp_path) as b:
        pass
    with pytest.raises(NotOpen):
        await b.publish([message(1)])
    await b.close()


def test_urls() -> None:
    options = SQLite.from_url("sqlite:///shop%20x.db?lease=1s&sync=normal&retain=2d&max_size=64MiB")
    assert (options.path, options.lease, options.sync, options.retain) == ("shop x.db", "1s", "normal", "2d")
    assert options.file() == Path.cwd() / "shop x.db"
    assert options.transport().capabilities.durable == "process"
    assert SQLite.from_url("sqlite:////var/x.db").file() == Path("/var/x.db")
    assert SQLite(path="x").transport().capabilities.durable == "power"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://x.db", "sqlite:///shop.db"),
        ("sqlite:///", "sqlite:///shop.db"),
        ("sqlite:///x.db?leas=1s", "did you mean 'lease'"),
        ("sqlite:///x.db?lease=soon", "lease"),
        ("sqlite:///x.db?sync=off", "normal"),
        ("sqlite:///x.db?max_size=big", "64MiB"),
    ],
)
def test_urls_that_mean_nothing(url: str, says: str) -> None:
    with pytest.raises(InvalidURL, match="TDG-E006") as raised:
        SQLite.from_url(url)
    assert says in str(raised.value)
