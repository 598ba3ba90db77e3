"""Files that were cut or scratched by hand: a consistent beginning of what there was, or a clear refusal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from msgspec import Struct
from msgspec.structs import replace
from tests.faults.disk_check import Child, Left, gaps, look, made, some, workers
from tests.faults.disk_worker import Spec
from tests.faults.report import Seen, nemesis

from tidings.transports.sqlite import PAGE

WAL_HEADER, FRAME_HEADER = 32, 24
FRAME = FRAME_HEADER + PAGE
EACH = 40  # wounds tried on one killed run


class Killed(Struct):
    """The files of a run whose processes were killed, and what is in them."""

    folder: Path
    whole: Left
    handled: set[str]
    copied: int  # up to here, in bytes, the log was copied into the main file
    least: int  # messages that are there without the log beyond that

    @property
    def wal(self) -> bytes:
        return (self.folder / "bus.db-wal").read_bytes()

    @property
    def closed(self) -> bytes:
        """The main file of the same bus after it was opened and closed: it has no log."""
        return (self.folder / "closed.db").read_bytes()

    @property
    def main(self) -> bytes:
        return (self.folder / "bus.db").read_bytes()


async def _copied_beside_a_reader(child: Child, path: Path, folder: Path, messages: int) -> bool:
    """Kill the child once a part of the log was copied, and a reader keeps the rest; False: nothing can be copied."""
    async with workers(folder, Spec(path=str(path), role="snapshot")) as (reader,):
        await reader.ready()
        await more(child, messages)
        try:
            await child.until(lambda: copied(path), "a checkpoint", within=10.0)
        except AssertionError:
            return False
        child.process.kill()
        await child.gone()
        return True


async def killed_run(folder: Path, seed: int, *, messages: int = 400, size: int = 3000) -> Killed:
    """Publish and handle until the log began anew, let a reader keep it from doing so again, go on, and kill them.

    So the log holds messages of which a part was copied into the main file. Large bodies have pages of their own.
    """
    path = made(folder) / "bus.db"
    spec = Spec(path=str(path), seed=seed, publishers=4, size=size, pause=0.002, consume=True)
    async with workers(folder, spec) as (child,):
        await child.until(lambda: child.count("accepted") and restarts(path) > 1, "a log that began anew")
        await more(child, messages)
        while not await _copied_beside_a_reader(child, path, folder, messages):
            await more(child, messages)  # it looked at a log that had just begun anew: none of that can be copied
        backfilled = copied(path)
        accepted, handled = set(child.ids("accepted")), set(child.ids("handled"))
    copy = folder.with_name(folder.name + "-copy")
    copy.mkdir()
    for end in ("", "-wal"):
        shutil.copy(folder / f"bus.db{end}", copy / f"bus.db{end}")
    left = await look(path)
    assert accepted <= set(left.stored), f"messages were lost by the kill itself: {left.faults}"
    shutil.copy(path, copy / "closed.db")
    run = Killed(copy, left, handled, WAL_HEADER + backfilled * FRAME, 0)
    cut = await opened(folder.with_name(folder.name + "-cut"), run.main, run.wal[: run.copied], handled)
    assert 0 < len(cut.stored) < len(left.stored), f"the log beyond what was copied holds nothing: {cut.faults}"
    return replace(run, least=len(cut.stored))


async def more(child: Child, messages: int) -> None:
    wanted = child.count("accepted") + messages
    await child.until(lambda: child.count("accepted") >= wanted, f"{messages} more messages")


def restarts(path: Path) -> int:
    """How often the log began anew, because all of it had been copied into the main file."""
    return int.from_bytes(Path(f"{path}-wal").read_bytes()[12:16], "big")


def copied(path: Path) -> int:
    """How many frames of the log were copied into the main file since: nBackfill of the WAL index."""
    return int.from_bytes(Path(f"{path}-shm").read_bytes()[96:100], sys.byteorder)


def valid(wal: bytes) -> int:
    """Bytes of the log that were written since it began anew; behind them are frames of before."""
    salts, at = wal[16:24], WAL_HEADER
    while wal[at + 8 : at + 16] == salts and at + FRAME <= len(wal):
        at += FRAME
    return at


Wound = Callable[[Killed, Random], tuple[bytes, bytes, str]]
"""Main file, log and a description, after one more wound."""


def cut_log(run: Killed, luck: Random) -> tuple[bytes, bytes, str]:
    at = luck.randrange(run.copied, valid(run.wal))
    return run.main, run.wal[:at], f"log cut at byte {at} of {valid(run.wal)}"


def scratch_log(run: Killed, luck: Random) -> tuple[bytes, bytes, str]:
    """Bytes of one of the last frames are flipped."""
    wal, end = bytearray(run.wal), valid(run.wal)
    at = luck.randrange(max(run.copied, end - 8 * FRAME), end)
    for n in range(at, min(end, at + luck.randint(1, 64))):
        wal[n] ^= luck.randint(1, 255)
    return run.main, bytes(wal), f"log scratched at byte {at} of {end}"


def cut_main(run: Killed, luck: Random) -> tuple[bytes, bytes, str]:
    at = luck.randrange(len(run.main))
    return run.main[:at], run.wal, f"main file cut at byte {at} of {len(run.main)}"


def cut_main_alone(run: Killed, luck: Random) -> tuple[bytes, bytes, str]:
    """After a clean close: all is in the main file, and there is no log."""
    at = luck.randrange(1, len(run.closed))
    return run.closed[:at], b"", f"main file (closed) cut at byte {at} of {len(run.closed)}"


async def wound(run: Killed, folder: Path, luck: Random, how: Wound) -> tuple[Left, str]:
    main, wal, what = how(run, luck)
    return await opened(folder, main, wal, run.handled), what


async def opened(folder: Path, main: bytes, wal: bytes, handled: set[str]) -> Left:
    made(folder)
    (folder / "bus.db").write_bytes(main)
    if wal:
        (folder / "bus.db-wal").write_bytes(wal)
    left = await look(folder / "bus.db", handled, damaged=True)
    shutil.rmtree(folder)
    return left


def judge(run: Killed, left: Left) -> list[str]:
    """What is wrong with what was found in a wounded bus."""
    found = [*left.faults, *gaps(left.stored)]
    if left.refused:
        return left.faults
    if lost := lost_of(run, left):
        found.append(f"{lost} messages are gone that were in the main file")
    if left.stored != run.whole.stored[: len(left.stored)]:
        missing = set(run.whole.stored) - set(left.stored)
        found.append(f"no beginning of what there was: {some(missing)} of it are missing")
    if changed := {id for id, body in left.bodies.items() if run.whole.bodies.get(id) != body}:
        found.append(f"other bodies than were published: {some(changed)}")
    return found


def lost_of(run: Killed, left: Left) -> int:
    """More than what a log may lose of which the tail is damaged."""
    return 0 if left.refused else max(0, run.least - len(left.stored))


async def torn(folder: Path, seed: int, rounds: int, hows: Sequence[Wound]) -> Seen:
    """``rounds`` wounds, ``EACH`` to the files of one killed run."""
    seen = Seen(rounds=0, accepted=0, lost=0, recovered=0.0)
    refused = shortened = cut = 0
    for n in range(-(-rounds // EACH)):
        run = await killed_run(folder / f"run{n}", seed + n)
        luck = Random(f"{seed + n}/wounds")
        seen.accepted += len(run.whole.stored)
        for _ in range(min(EACH, rounds - n * EACH)):
            left, what = await wound(run, folder / "wounded", luck, luck.choice(hows))
            seen.faults += [f"seed {seed + n}, {run.folder}, {what}: {fault}" for fault in judge(run, left)]
            missing = 0 if left.refused else len(run.whole.stored) - len(left.stored)
            seen.lost += lost_of(run, left)
            refused += bool(left.refused)
            shortened += missing > 0
            cut += missing - lost_of(run, left)
            seen.rounds += 1
            seen.recovered = max(seen.recovered or 0.0, left.opened)
    if refused + shortened:
        seen.evidence = f"{refused} refused as damaged, {shortened} opened with the beginning of what there was: "
        seen.evidence += f"{cut:,} messages went with the damaged tail of the log"
    return seen


@nemesis(
    "torn log",
    "The tail of the write-ahead log, beyond what was copied into the main file, is cut or scratched at any byte.",
    quick=40,
    full=1000,
)
async def torn_log(folder: Path, seed: int, rounds: int) -> Seen:
    return await torn(folder, seed, rounds, (cut_log, scratch_log))


@nemesis(
    "cut file",
    "The main file is cut at any byte, with its log and, after a clean close, without.",
    quick=40,
    full=600,
)
async def cut_file(folder: Path, seed: int, rounds: int) -> Seen:
    return await torn(folder, seed, rounds, (cut_main, cut_main_alone))
