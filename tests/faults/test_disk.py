"""The pieces of the disk's nemeses, bugs planted for them to find, and bugs of the library that they found."""

from __future__ import annotations

import zlib
from pathlib import Path
from random import Random
from typing import Any

import apsw
import msgspec
import pytest
from tests.faults.disk_check import Left, gaps, look, workers
from tests.faults.disk_power import black_out, record
from tests.faults.disk_torn import Killed, judge
from tests.faults.disk_worker import Spec
from tests.faults.vfs import PREFIX, Disk, Plan, Record, Trace, kind, read_trace
from tests.transports.consuming import take
from tests.transports.sqlite.helpers import bus, group, message

from tidings.kernel.errors import BusCorrupt
from tidings.kernel.transport import Event
from tidings.transports.sqlite import SQLite
from tidings.transports.sqlite.log import Log
from tidings.transports.sqlite.transport import SQLiteTransport

# -- the disk


def replay(*records: Record) -> Disk:
    disk = Disk()
    for one in records:
        disk.apply(one)
    return disk


def outcomes(disk: Disk, sector: int = 512) -> set[tuple[tuple[str, bytes], ...]]:
    return {tuple(sorted(disk.lose_power(Random(seed), sector).items())) for seed in range(300)}


def test_what_was_synced_is_left_and_the_rest_may_be() -> None:
    disk = replay(Record("write", "a", 0, b"safe"), Record("sync", "a"), Record("write", "a", 4, b"!"))
    assert outcomes(disk) == {(("a", b"safe"),), (("a", b"safe!"),)}
    assert disk.unsynced == 1


def test_a_file_that_was_never_synced_may_be_gone() -> None:
    assert outcomes(replay(Record("write", "a", 0, b"x"))) == {(), (("a", b"x"),)} | {(("a", b""),)}


def test_a_write_is_torn_at_its_sectors_and_changes_nothing_beside_it() -> None:
    disk = replay(Record("write", "a", 0, b"." * 1024), Record("sync", "a"), Record("write", "a", 500, b"x" * 24))
    found = {content for ((_, content),) in outcomes(disk)}
    assert {content.count(b"x") for content in found} >= {0, 12, 24}
    assert all(content[:500] == b"." * 500 and content[524:] == b"." * 500 for content in found)


def test_a_deletion_lasts_once_its_folder_was_synced() -> None:
    written = Record("write", "a", 0, b"x"), Record("sync", "a")
    assert outcomes(replay(*written, Record("delete", "a", 1))) == {()}
    assert outcomes(replay(*written, Record("delete", "a"))) == {(), (("a", b"x"),)}
    assert outcomes(replay(*written, Record("delete", "a"), Record("sync", "b"))) == {(("b", b""),)}


def test_a_truncation_may_be_lost_until_it_is_synced() -> None:
    disk = replay(Record("write", "a", 0, b"xyz"), Record("sync", "a"), Record("truncate", "a", 1))
    assert outcomes(disk) == {(("a", b"xyz"),), (("a", b"x"),)}
    disk.apply(Record("sync", "a"))
    assert outcomes(disk) == {(("a", b"x"),)}


def test_a_trace_ends_where_its_writer_was_killed(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace")
    trace.mark("one")
    trace.note(Record("write", "a", 7, b"data"))
    payload = trace.encoder.encode(Record("mark", "half"))
    with (tmp_path / "trace").open("ab") as file:
        file.write((PREFIX.pack(len(payload), zlib.crc32(payload)) + payload)[:-1])
    assert read_trace(tmp_path / "trace") == [Record("mark", "one"), Record("write", "a", 7, b"data")]


def test_files_of_a_database() -> None:
    assert [kind(f"/x/bus.db{end}") for end in ("", "-wal", "-shm", "-journal")] == ["main", "wal", "shm", "journal"]


# -- the judges


def test_a_gap_is_seen() -> None:
    assert gaps(["p.0", "q.0", "p.1", "p.1", "p.2", "last.9"]) == []
    assert gaps(["p.0", "p.2"]) == ["p.2 comes after p.0"]
    assert gaps(["p.1"]) == ["p.1 comes after p.-1"]
    assert gaps(["p.0", "p.1", "p.0"]) == ["p.0 comes after p.1"]


def test_a_wounded_bus_is_judged() -> None:
    run = Killed(Path(), Left(stored=["p.0", "p.1", "p.2"], bodies={"p.0": 1, "p.1": 2, "p.2": 3}), set(), 0, 1)
    assert judge(run, Left(stored=["p.0", "p.1"], bodies={"p.0": 1, "p.1": 2})) == []
    assert judge(run, Left(refused="TDG-E023")) == []
    assert judge(run, Left(faults=["a bare exception"]))[0] == "a bare exception"
    assert "of it are missing" in judge(run, Left(stored=["p.0", "p.2"]))[1]
    assert judge(run, Left(stored=[])) == ["1 messages are gone that were in the main file"]
    assert "other bodies" in judge(run, Left(stored=["p.0"], bodies={"p.0": 9}))[0]


async def test_damage_is_refused_only_where_it_was_done(tmp_path: Path) -> None:
    (tmp_path / "bus.db").write_bytes(b"Dear diary, " * 500)
    assert (await look(tmp_path / "bus.db", damaged=True)).faults == []
    assert "is damaged" in (await look(tmp_path / "bus.db")).faults[0]


# -- planted bugs


@pytest.mark.slow
async def test_a_disk_that_forgets_to_sync_is_found(tmp_path: Path) -> None:
    losses = await black_out(tmp_path, 1, 20, syncs=False)
    assert losses.lost > 0


@pytest.mark.slow
async def test_a_failing_call_reaches_the_bus_and_is_told(tmp_path: Path) -> None:
    plans = [Plan("pwrite64", 40), Plan("fsync", 4), Plan("pwrite64", 40, "ENOSPC")]
    async with workers(tmp_path, Spec(path=str(tmp_path), role="sweep", plans=plans)) as (child,):
        await child.gone()
    swept = [told for told in child.told if told.what == "swept"]
    assert [told.hit for told in swept] == [["pwrite64 wal"], ["fsync wal"], ["pwrite64 wal"]]
    assert [told.why[:8] for told in swept] == ["TDG-E021", "TDG-E021", "TDG-E025"]
    assert child.faults() == []


@pytest.mark.slow
async def test_a_worker_that_breaks_is_seen(tmp_path: Path) -> None:
    """A publish that fails with an error that is none of the bus's."""
    spec = Spec(path=str(tmp_path / "bus.db"), publishers=1, size=0)  # randrange(0) raises ValueError
    async with workers(tmp_path, spec) as (child,):
        await child.ready()
        child.process.finish()
        await child.gone()
    assert "ValueError" in child.faults()[0]


# -- found


@pytest.mark.slow
async def test_sync_normal_does_not_sync_each_commit(tmp_path: Path) -> None:
    """?sync=normal was ignored: the connection kept the FULL it was opened with. (power loss, sync=normal: seed 1)"""

    async def syncs(sync: str) -> float:
        records = read_trace(await record(tmp_path / sync, 2, sync=sync, messages=300, alone=True))
        accepted = sum(r.what == "mark" and '"accepted"' in r.file for r in records)
        return sum(r.what == "sync" and kind(r.file) == "wal" for r in records) / accepted

    assert await syncs("normal") < await syncs("full") / 5


async def test_a_row_that_cannot_be_decoded_is_damage(tmp_path: Path) -> None:
    """A bare DecodeError came out of peek. (cut file: seed 1)"""
    async with bus(tmp_path) as b:
        await b.subscribe(group())
        await b.publish([message(n) for n in range(3)])
    con = apsw.Connection(str(tmp_path / "bus.db"))
    con.execute("UPDATE log_1 SET record = x'c1' WHERE seq = 2")
    con.close()
    async with bus(tmp_path) as b:
        with pytest.raises(BusCorrupt, match="is damaged"):
            await b.peek(">")
        consumer = await b.subscribe(group())
        with pytest.raises(BusCorrupt, match="is damaged"):
            await take(consumer, 3)


async def test_a_parked_message_that_is_not_in_the_log_is_damage(tmp_path: Path) -> None:
    """A bare KeyError came out of receive. (cut file: seed 3)"""
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        await b.publish([message(1)])
        await take(consumer, 1)
        await consumer.close()
    con = apsw.Connection(str(tmp_path / "bus.db"))
    con.execute("DELETE FROM log_1")
    con.close()
    async with bus(tmp_path) as b:
        consumer = await b.subscribe(group())
        with pytest.raises(BusCorrupt, match="not in the log"):
            await take(consumer, 1)


async def test_a_damaged_page_met_while_looking_is_damage(tmp_path: Path) -> None:
    """A bare CorruptError came out of peek. (cut file: seed 1)"""
    async with bus(tmp_path) as b:
        await b.publish([message(n) for n in range(3000)])
    path = tmp_path / "bus.db"
    whole = path.read_bytes()
    middle = len(whole) // 2 // 4096 * 4096
    path.write_bytes(whole[:middle] + bytes(8 * 4096) + whole[middle + 8 * 4096 :])
    async with bus(tmp_path) as b:
        with pytest.raises(BusCorrupt, match="is damaged"):
            await b.peek(">", limit=10_000)


class BadDisk(Log):
    """A log that cannot be read while ``broken``."""

    broken = False

    def begin(self, now: float) -> None:
        if self.broken:
            raise apsw.IOError("disk I/O error")
        super().begin(now)


class OnBadDisk(SQLiteTransport):
    def _log(self, con: apsw.Connection) -> BadDisk:
        return BadDisk(con, 2**30, 1_000_000, 2**30)


async def test_a_consumer_can_be_closed_while_the_disk_fails(tmp_path: Path) -> None:
    """The subscription ended with an error in the log, as if its handler had a bug. (IO error: seed 4)"""
    told: list[Event] = []
    transport = OnBadDisk(SQLite(path=str(tmp_path / "bus.db")))
    await transport.open(told.append)
    log: Any = transport.steps.log
    consumer = await transport.subscribe(group())
    await transport.publish([message(1)])
    await take(consumer, 1)
    log.broken = True
    await consumer.close()
    assert any(event.kind == "lost" and "disk I/O error" in event.detail for event in told)
    log.broken = False
    await transport.close()


def test_a_spec_travels_as_json() -> None:
    spec = Spec(path="x", plans=[Plan("open", 3, "EMFILE")], state="EROFS")
    assert msgspec.json.decode(msgspec.json.encode(spec), type=Spec) == spec
