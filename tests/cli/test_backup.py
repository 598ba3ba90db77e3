"""``tidings backup`` and ``tidings restore``: whole copies, and nothing overwritten unasked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Shell

Numbers = list[int]

WRITER = """
import asyncio, itertools
from tidings import App, Topic

async def main():
    app, numbers = App("writer", "sqlite:///shop.db"), Topic("numbers", int)
    async with app.connect():
        for n in itertools.count():
            await app.publish_many(numbers(n) for _ in range(20))
            if n == 5:
                print("writing", flush=True)

asyncio.run(main())
"""


def numbers(shell: Shell, file: str) -> Numbers:
    found = shell("peek", "numbers", "--limit", "1000000", "--json", "--url", f"sqlite:///{file}").json
    return [message["data"] for message in (found["messages"] if isinstance(found, dict) else found)]


def test_of_a_bus_in_use(shell: Shell) -> None:
    """Somebody writes all the while: the copy is a whole bus, of one moment."""
    with subprocess.Popen([sys.executable, "-c", WRITER], cwd=shell.folder, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout
            assert writer.stdout.readline() == b"writing\n"
            told = shell("backup", "copy.db", "--json").json
        finally:
            writer.kill()
    assert told["bytes"] == (shell.folder / "copy.db").stat().st_size
    assert sorted(path.name for path in shell.folder.glob("*copy.db*")) == ["copy.db"]
    copied = numbers(shell, "copy.db")
    assert copied == [n for n in range(copied[-1] + 1) for _ in range(20)]
    assert len(copied) >= 120


def test_there_and_back(shell: Shell, letters: list[dict[str, object]]) -> None:
    before = shell("dead", "ls", "--all", "--json").json
    shell("backup", "safe.db")
    shell("dead", "replay", "--all")
    for ending in ("", "-wal", "-shm"):
        (shell.folder / f"shop.db{ending}").unlink(missing_ok=True)
    assert shell("restore", "safe.db").out.startswith("restored safe.db to sqlite:////")
    assert shell("dead", "ls", "--all", "--json").json == before
    shell("dead", "replay", "--all")
    shop = shell.start("run", "shop")
    shop.until("dead letter of shop.bill")
    assert shop.end() == 0


def test_what_is_there_is_kept(shell: Shell, known: None) -> None:
    (shell.folder / "safe.db").write_text("mine")
    assert "nobody is there to be asked" in shell("backup", "safe.db", code=2).err
    assert "kept safe.db" in shell.on_terminal("backup", "safe.db", keys="n\n", after="[y/N]").out
    assert shell("backup", "safe.db", "--dry-run").out.startswith("would back up sqlite:///")
    assert (shell.folder / "safe.db").read_text() == "mine"
    shell("backup", "safe.db", "--yes")
    shell("publish", "numbers", "1")
    assert "nobody is there to be asked" in shell("restore", "safe.db", code=2).err
    assert shell("restore", "safe.db", "--dry-run").out.startswith("would restore safe.db")
    assert numbers(shell, "shop.db") == [1]
    shell("restore", "safe.db", "--yes")
    assert "nothing is retained" in shell("topics", "numbers", code=2).err


def test_a_bus_in_use_is_never_overwritten(shell: Shell, known: None) -> None:
    shell("backup", "safe.db")
    shop = shell.start("run", "shop")
    shop.until("listens on")
    refused = shell("restore", "safe.db", "--yes", code=3).err
    assert "shop.db is in use" in refused
    shell("publish", "orders.placed", '{"id": "A3", "total": 1}')
    shop.until("billed A3")
    assert shop.end() == 0
    shell("restore", "safe.db", "--yes")


def test_over_what_a_killed_process_left(shell: Shell, known: None) -> None:
    """Its write-ahead log belongs to the old file: nothing of it may appear in the new one."""
    shell("backup", "safe.db")
    with subprocess.Popen([sys.executable, "-c", WRITER], cwd=shell.folder, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == b"writing\n"
        writer.kill()
    assert (shell.folder / "shop.db-wal").stat().st_size > 0
    shell("restore", "safe.db", "--yes")
    assert not (shell.folder / "shop.db-wal").exists()
    assert "nothing is retained" in shell("topics", "numbers", code=2).err


def test_a_bus_in_use_is_no_place_for_a_backup(shell: Shell, known: None) -> None:
    """The app would go on with a file that nobody finds any more."""
    (shell.folder / "link.db").symlink_to("shop.db")
    shell("publish", "numbers", "1", "--url", "sqlite:///other.db")
    shop = shell.start("run", "shop")
    shop.until("listens on")
    for file in ("shop.db", "link.db"):
        assert "is the bus itself" in shell("backup", file, "--yes", code=2).err
    assert "shop.db is in use" in shell("backup", "shop.db", "--yes", "--url", "sqlite:///other.db", code=3).err
    shell("publish", "orders.placed", '{"id": "A3", "total": 1}')
    shop.until("billed A3")
    assert shop.end() == 0


@pytest.mark.parametrize("left", ["all", "only the log"])
def test_a_backup_over_what_a_killed_process_left(shell: Shell, left: str) -> None:
    shell("publish", "numbers", "-7", "--url", "sqlite:///other.db")
    with subprocess.Popen([sys.executable, "-c", WRITER], cwd=shell.folder, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == b"writing\n"
        writer.kill()
    assert (shell.folder / "shop.db-wal").stat().st_size > 0
    if left == "only the log":
        (shell.folder / "shop.db").unlink()
    words = ("backup", "shop.db", "--url", "sqlite:///other.db")
    assert "nobody is there to be asked" in shell(*words, code=2).err
    shell(*words, "--yes")
    assert numbers(shell, "shop.db") == [-7]


def test_nobody_else_may_read_the_copy(shell: Shell, known: None) -> None:
    bus, safe = shell.folder / "shop.db", shell.folder / "safe.db"
    bus.chmod(0o600)
    shell("backup", "safe.db")
    assert safe.stat().st_mode & 0o777 == 0o600
    safe.chmod(0o640)
    shell("backup", "safe.db", "--yes")
    assert safe.stat().st_mode & 0o777 == 0o640  # as it was
    shell("restore", "safe.db", "--yes")
    assert bus.stat().st_mode & 0o777 == 0o600
    safe.chmod(0o400)
    shell("restore", "safe.db", "--url", "sqlite:///new.db")
    assert (shell.folder / "new.db").stat().st_mode & 0o777 == 0o600  # whoever owns a bus writes to it


def test_over_a_damaged_bus(shell: Shell, known: None) -> None:
    shell("backup", "safe.db")
    (shell.folder / "shop.db").write_bytes(b"\xff" * 20_000)
    shell("groups", code=3)
    shell("restore", "safe.db", "--yes")
    assert len(shell("groups", "--json").json) == 3


@pytest.mark.parametrize("cut", ["middle", "end"])
def test_a_damaged_backup_is_refused(shell: Shell, known: None, cut: str) -> None:
    shell("publish", "numbers", "--lines", input="\n".join(map(str, range(3_000))))
    shell("backup", "safe.db")
    whole = (shell.folder / "safe.db").read_bytes()
    middle = len(whole) // 2 // 8192 * 8192
    damaged = whole[:middle] + b"\xff" * 8192 + whole[middle + 8192 :] if cut == "middle" else whole[:-8192]
    (shell.folder / "safe.db").write_bytes(damaged)
    assert "safe.db is damaged" in shell("restore", "safe.db", "--yes", code=3).err
    assert len(numbers(shell, "shop.db")) == 3_000


def test_what_is_refused(shell: Shell, known: None) -> None:
    (shell.folder / "inner").mkdir()
    shell.write("note.txt", "no bus")
    shutil.copy(shell.folder / "shop.db", shell.folder / "live.db")
    Path(f"{shell.folder}/live.db-wal").write_bytes(b"something")
    for words, code, said in (
        ("backup inner", 2, "is a folder"),
        ("backup nix/safe.db", 2, "there is no folder"),
        ("backup x.db --url sqlite:///nix.db", 3, "there is no bus file"),
        ("backup x.db --url memory://", 2, "no file that could be copied"),
        ("backup x.db --url kafka://localhost", 2, "MirrorMaker"),
        ("backup x.db --url postgresql://localhost/x", 2, "pg_dump"),
        ("restore x.db --url nats://localhost", 2, "nats stream backup"),
        ("restore nix.db", 2, "there is no file nix.db"),
        ("restore shop.db", 2, "is the bus itself"),
        ("restore note.txt", 3, "is no bus"),
        ("restore live.db", 2, "is no backup"),
    ):
        assert said in shell(*words.split(), code=code).err, words
    assert not (shell.folder / "x.db").exists()
