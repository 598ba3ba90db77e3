"""The disk is full, read-only or gone while a bus is at work; and a reader that lets the log grow."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from tests.faults.disk_check import DEADLINE, Child, gaps, look, made, workers
from tests.faults.disk_torn import restarts
from tests.faults.disk_worker import Spec
from tests.faults.report import Seen, nemesis

from tidings.kernel.errors import BusFull, BusReadOnly

SIZE = 6 * 2**20  # bytes of the small disk
NOTICED = 1.5  # seconds a bus may take to see that its file is gone
LOG = 64 * 2**20  # bytes: the most the log may hold on to, or grow by, when no reader is in the way


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of ``SIZE`` in ``folder``. False where mounting is not permitted: then it is just a folder."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def fragile_disk(folder: Path) -> Iterator[Callable[[], bool]]:
    """An ext4 file system in a file, and how to break it: then the kernel makes it read-only though files are open.

    Breaking it answers False where this machine does not permit any of it.
    """
    folder.mkdir(parents=True)
    image, device, mounted = folder.with_name(folder.name + ".img"), "", False

    def run(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def hurt() -> bool:
        with suppress(OSError):  # it says so itself
            Path(f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error").write_text("1")
        return mounted

    try:
        with suppress(OSError, subprocess.CalledProcessError):
            run("truncate", "-s", "32M", str(image))
            run("mkfs.ext4", "-q", str(image))
            device = run("losetup", "--find", "--show", str(image))
            run("mount", "-o", "errors=remount-ro", device, str(folder))
            mounted = True
        yield hurt
    finally:
        if mounted:
            run("umount", "--lazy", str(folder))
        if device:
            run("losetup", "--detach", device)


def fill(folder: Path, leave: int = 0) -> Path:
    """A ballast file that takes all that is free but ``leave`` bytes."""
    ballast, free = folder / "ballast", os.statvfs(folder)
    with ballast.open("wb", buffering=0) as file:
        left = free.f_bavail * free.f_bsize - leave
        try:
            while left > 0:
                left -= file.write(bytes(min(left, 65536)))
        except OSError:  # the bus was faster
            pass
    return ballast


async def going_on(children: Sequence[Child], since: float) -> float:
    """Seconds until messages are accepted again and all that were are handled."""
    publisher, consumer = children
    more = publisher.count("accepted") + 20
    await publisher.until(lambda: publisher.count("accepted") >= more, "20 more accepted")
    took = time.monotonic() - since
    publisher.process.finish()
    await publisher.gone()
    accepted = set(publisher.ids("accepted"))
    handled = consumer.handled
    done = lambda: len(handled) >= len(accepted) and accepted <= handled  # noqa: E731
    await consumer.until(done, f"all {len(accepted)} accepted handled", within=DEADLINE + len(accepted) / 5000)
    consumer.process.finish()
    await consumer.gone()
    return took


async def judge(path: Path, children: Sequence[Child], seen: Seen, where: str) -> None:
    """Everything accepted is stored and handled, nothing was skipped, every error was a clear one."""
    accepted = {id for child in children for id in child.ids("accepted")}
    handled = [id for child in children for id in child.ids("handled")]
    left = await look(path, set(handled))
    seen.rounds += 1
    seen.accepted += len(accepted)
    seen.lost += len(accepted - set(left.stored))
    seen.duplicated += len(handled) - len(set(handled))
    seen.bound += sum(child.count("refused") for child in children)  # each may have been stored, and came again
    faults = [*left.faults, *gaps(left.stored), *(fault for child in children for fault in child.faults())]
    seen.faults += [f"{where}: {fault}" for fault in faults]


def pair(path: Path, seed: int, **more: Any) -> tuple[Spec, Spec]:
    publisher = Spec(path=str(path), seed=seed, name="p", publishers=2, size=4000, pause=0.004, **more)
    return publisher, msgspec.structs.replace(publisher, name="c", publishers=0, consume=True)


async def _full(folder: Path, seed: int, seen: Seen, in_log: bool) -> None:
    disk = folder / f"disk{seed}"
    with small_disk(disk) as mounted:
        path, where = disk / "bus.db", f"seed {seed}"
        async with workers(folder, *pair(path, seed, state="" if mounted else "ENOSPC")) as children:
            publisher, consumer = [await child.ready() for child in children]
            wanted = (lambda: publisher.count("accepted") > 100) if in_log else (lambda: restarts(path) > 0)
            await publisher.until(wanted, "a bus with a log")
            ballast = fill(disk, Random(seed).randrange(200_000) if in_log else 0) if mounted else None
            for child in () if mounted else children:
                child.process.signal(signal.SIGUSR1)
            await publisher.until(lambda: publisher.count("refused") > 5, "a refusal")
            before = set(publisher.ids("accepted"))
            await asyncio.sleep(0.5)  # how far do consumers come meanwhile?
            behind = before - set(consumer.ids("handled"))
            if ballast is not None:
                ballast.unlink()
            for child in () if mounted else children:
                child.process.signal(signal.SIGUSR2)
            seen.recovered = max(seen.recovered or 0.0, await going_on(children, time.monotonic()))
            codes = {told.code for told in publisher.told if told.what == "refused"}
            if codes != {BusFull.code}:
                seen.faults.append(f"{where}: a full disk was reported as {codes}")
            await judge(path, children, seen, where)
            seen.note = f"{'a real full disk' if mounted else 'writes that fail with ENOSPC'}; while it was full, "
            seen.note += f"{len(behind)} of {len(before)} accepted messages waited"
            others = sum("full" in told.why for child in children for told in child.told if told.what == "event")
            seen.evidence = f"in the last round {publisher.count('refused')} publishes were refused as {BusFull.code}, "
            seen.evidence += f"and {others} settlements, beats or checkpoints failed"


@nemesis("disk full", "Nothing more can be written, to the log or to the main file; then there is room again.", full=20)
async def disk_full(folder: Path, seed: int, rounds: int) -> Seen:
    seen = Seen(rounds=0, accepted=0, lost=0)
    for n in range(rounds):
        await _full(made(folder), seed + n, seen, in_log=(seed + n) % 2 == 0)
    return seen


@nemesis(
    "read-only remount",
    "The file system becomes read-only under load, and writable again; and is read-only when a bus is opened.",
    full=20,
)
async def read_only(folder: Path, seed: int, rounds: int) -> Seen:
    seen = Seen(rounds=0, accepted=0, lost=0)
    refused = closed = 0
    for n in range(rounds):
        disk = folder / f"disk{n}"
        with small_disk(disk) as mounted:
            refused += await _turned(folder, disk / "bus.db", seed + n, seen)
            if mounted:
                closed += await _opened_read_only(disk, disk / "bus.db", seen, f"seed {seed + n}")
    seen.note = await _emergency(folder, seed, seen)
    if refused and closed in (0, rounds):
        seen.evidence = f"{refused} publishes refused; opening refused {closed} times"
    return seen


async def _turned(folder: Path, path: Path, seed: int, seen: Seen) -> int:
    """Calls fail as on a file system that became read-only, and work again; how many publishes were refused."""
    async with workers(folder, *pair(path, seed, state="EROFS")) as children:
        publisher, _ = [await child.ready() for child in children]
        some_time = Random(seed).randint(20, 200)
        await publisher.until(lambda: publisher.count("accepted") > some_time, "some load")
        for child in children:
            child.process.signal(signal.SIGUSR1)
        await publisher.until(lambda: publisher.count("refused") > 5, "a refusal")
        for child in children:
            child.process.signal(signal.SIGUSR2)
        seen.recovered = max(seen.recovered or 0.0, await going_on(children, time.monotonic()))
        await judge(path, children, seen, f"seed {seed}")
        return publisher.count("refused")


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


async def _opened_read_only(disk: Path, path: Path, seen: Seen, where: str) -> bool:
    """A real remount: Linux refuses it while files are open for writing, so the bus is closed."""
    remount(disk, "ro")
    left = await look(path)
    remount(disk, "rw")
    if not left.refused.startswith(BusReadOnly.code):
        seen.faults.append(f"{where}: opened on a read-only file system: {left.refused or 'nothing was refused'}")
    again = await look(path)
    seen.faults += [f"{where}: writable again: {fault}" for fault in again.faults]
    return bool(left.refused)


async def _emergency(folder: Path, seed: int, seen: Seen) -> str:
    """A real file system with an error: it stays read-only until it is mounted again."""
    with fragile_disk(folder / "ext4") as hurt:
        path = folder / "ext4" / "bus.db"
        async with workers(folder, *pair(path, seed)) as children:
            publisher, _ = [await child.ready() for child in children]
            await publisher.until(lambda: publisher.count("accepted") > 50, "some load")
            if not hurt():
                return "a real one was not permitted here"
            await publisher.until(lambda: publisher.count("refused") > 5, "a refusal")
            for child in children:
                child.process.finish()
                await child.gone()
        for left in ("", "-wal"):
            shutil.copy(f"{path}{left}", folder / f"saved.db{left}")
        await judge(folder / "saved.db", children, seen, f"seed {seed}, ext4")
        return "and of ext4 with an error, which stayed read-only"


Loss = Callable[[Path], None]


def unlink(path: Path) -> None:
    for end in ("", "-wal", "-shm"):
        Path(f"{path}{end}").unlink()


def replace(path: Path) -> None:
    """By an older copy of itself, as a careless restore from a backup does."""
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    copy.rename(path)


async def _gone(folder: Path, seed: int, lose: Loss, seen: Seen) -> None:
    path, where = made(folder) / "bus.db", f"seed {seed}, {lose.__name__}"
    async with workers(folder, *pair(path, seed)) as children:
        publisher, _ = [await child.ready() for child in children]
        await publisher.until(lambda: publisher.count("accepted") > 50, "some load")
        lose(path)
        lost = time.monotonic()
        before = publisher.count("accepted")
        try:
            await publisher.until(lambda: publisher.count("refused") > 1, "an error", within=2 * NOTICED)
            seen.recovered = max(seen.recovered or 0.0, time.monotonic() - lost)
            after = publisher.count("accepted")
            await asyncio.sleep(0.3)
            if publisher.count("accepted") > after:
                seen.faults.append(f"{where}: publishes were accepted again after the loss was seen")
            seen.evidence = f"seen within {seen.recovered:.1f} s; {after - before} were accepted until then"
        except AssertionError:
            count = publisher.count("accepted") - before
            seen.faults.append(f"{where}: {count} publishes were accepted into a file that is gone, and no error came")
        seen.rounds += 1
        seen.accepted += before
        seen.faults += [f"{where}: {fault}" for child in children for fault in child.faults()]


@nemesis("file gone", "The bus file is deleted, or replaced by a copy, while processes have it open.", quick=2, full=10)
async def file_gone(folder: Path, seed: int, rounds: int) -> Seen:
    seen = Seen(rounds=0, accepted=0, lost=0)
    for n in range(rounds):
        await _gone(folder / f"{n}", seed + n, (unlink, replace)[(seed + n) % 2], seen)
    return seen


@nemesis(
    "log growth",
    "A reader holds its snapshot while many messages pass (50,000 a round): the log cannot begin anew; then it goes.",
    quick=1,
    full=20,
)
async def log_growth(folder: Path, seed: int, rounds: int) -> Seen:
    """One snapshot over all rounds."""
    path, messages = made(folder) / "bus.db", 50_000 * rounds
    seen = Seen(rounds=0, accepted=0, lost=0)
    size = 2000 if rounds < 5 else 100  # enough for a log that is worth reporting
    publisher = Spec(path=str(path), seed=seed, name="p", publishers=8, burst=50, size=size)
    consumer = msgspec.structs.replace(publisher, name="c", publishers=0, consume=True)
    async with workers(folder, publisher, consumer) as children:
        p, _ = [await child.ready() for child in children]
        await passed(p, 2000)
        async with workers(folder, Spec(path=str(path), role="snapshot")) as (reader,):
            await reader.ready()
            start = size_of_log(path)
            await passed(p, messages)
            held = size_of_log(path)
            reader.process.finish()
            await reader.gone()
            if not reader.count("unmoved"):
                seen.faults.append("the reader's snapshot moved")
        done = time.monotonic()
        began_anew = restarts(path)
        await p.until(lambda: restarts(path) > began_anew, "a log that begins anew")
        seen.recovered = time.monotonic() - done
        await passed(p, 50_000)
        grown = size_of_log(path) - held
        await going_on(children, time.monotonic())
    if grown > LOG:
        seen.faults.append(f"seed {seed}: the log grew by {grown:,} bytes after the reader had gone")
    told = [t for child in children for t in child.told if t.what == "event" and t.why.startswith("bus wal")]
    if not told:
        seen.faults.append(f"seed {seed}: nothing was reported of a log of {held:,} bytes")
    await judge(path, children, seen, f"seed {seed}")
    seen.rounds = rounds
    if held - start > 4 * 2**20:
        seen.evidence = f"the log grew from {start / 2**20:.0f} to {held / 2**20:.0f} MiB, by {grown / 2**20:.0f} after"
    seen.note = f"reported: {told[0].why}" if told else ""
    return seen


def size_of_log(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


async def passed(child: Child, messages: int) -> None:
    """So many more were accepted."""
    wanted = child.count("accepted") + messages // 50
    await child.until(lambda: child.count("accepted") >= wanted, f"{messages} more messages", within=600)
