"""The power fails: what was synced is there, of the rest a part; and files that were cut or scratched."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from random import Random

import msgspec
from msgspec import Struct
from tests.faults.disk_check import gaps, look, made, some, workers
from tests.faults.disk_worker import Spec, Told
from tests.faults.report import Seen, nemesis
from tests.faults.vfs import Disk, Record, read_trace

CUTS = 40  # power failures tried on one run
SECTORS = (512, 4096)


class Blackout(Struct):
    """The power fails after record ``at`` of a trace: the files that are left, and what had been told by then."""

    at: int
    files: dict[str, bytes]
    unsynced: int
    accepted: list[str]
    handled: set[str]


async def record(
    folder: Path, seed: int, *, sync: str = "full", syncs: bool = True, messages: int = 1200, alone: bool = False
) -> Path:
    """Three processes publish and handle for a while; one leaves half-way, as another comes. Then all are killed, or,
    for every other seed, close the bus. The trace of all they wrote.

    ``alone``: they only publish, and each message has a commit of its own.
    """
    trace = made(folder) / "trace"
    trace.touch()
    spec = Spec(
        path=str(folder / "bus.db"),
        seed=seed,
        sync=sync,
        syncs=syncs,
        trace=str(trace),
        publishers=1 if alone else 4,
        pause=0.004,
        consume=not alone,
    )
    named = [msgspec.structs.replace(spec, name=name) for name in ("a", "b", "c")]
    async with workers(folder, *named[:2]) as first:
        await _accepted(trace, messages // 2)
        first[0].process.finish()
        async with workers(folder, named[2]) as second:
            await _accepted(trace, messages)
            for child in (first[1], *second) if seed % 2 else ():
                child.process.finish()
                await child.gone()
    return trace


async def _accepted(trace: Path, count: int) -> None:
    async with asyncio.timeout(60):
        while _told(trace) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def _told(trace: Path) -> int:
    return trace.read_bytes().count(b'"accepted"')


def blackouts(records: list[Record], luck: Random, cuts: int) -> list[Blackout]:
    """Power failures at random places, half of them right after a publisher was told that a message is safe."""
    told = [n + 1 for n, r in enumerate(records) if r.what == "mark" and '"accepted"' in r.file]
    places = sorted(luck.choice(told) if luck.random() < 0.5 else luck.randint(1, len(records)) for _ in range(cuts))
    disk, at, accepted, handled = Disk(), 0, list[str](), set[str]()
    found = []
    for place in places:
        for one in records[at:place]:
            disk.apply(one)
            if one.what == "mark":
                line = msgspec.json.decode(one.file, type=Told)
                if line.what == "accepted":
                    accepted += line.ids
                elif line.what == "handled":
                    handled.add(line.id)
        at = place
        files = disk.lose_power(luck, luck.choice(SECTORS))
        found.append(Blackout(place, files, disk.unsynced, list(accepted), set(handled)))
    return found


class Losses(Struct):
    """What power failures did. ``lost``: messages that were accepted and are gone; ``again``: handled twice."""

    seen: Seen
    lost: int = 0
    cuts_that_lost: int = 0
    again: int = 0
    unsynced: int = 0


async def fail(blackout: Blackout, folder: Path, losses: Losses, where: str) -> None:
    """Write what is left into a folder, open the bus, and compare."""
    made(folder)
    for file, content in blackout.files.items():
        (folder / file).write_bytes(content)
    left = await look(folder / "bus.db", blackout.handled)
    seen = losses.seen
    gone = set(blackout.accepted) - set(left.stored)
    losses.lost += len(gone)
    losses.cuts_that_lost += bool(gone)
    losses.again += len(blackout.handled.intersection(left.received))
    losses.unsynced += blackout.unsynced > 0
    seen.faults += [f"{where}: {text}" for text in left.faults + gaps(left.stored)]
    if gone:
        seen.note = f"{where}: first loss: {some(gone)}"
    seen.accepted += len(blackout.accepted)
    seen.rounds += 1
    seen.recovered = max(seen.recovered or 0.0, left.opened)
    shutil.rmtree(folder)


async def black_out(folder: Path, seed: int, rounds: int, *, sync: str = "full", syncs: bool = True) -> Losses:
    """``rounds`` power failures, ``CUTS`` on each recorded run."""
    losses = Losses(Seen(rounds=0, accepted=0, lost=0))
    for run in range(-(-rounds // CUTS)):
        trace = await record(folder / f"run{run}", seed + run, sync=sync, syncs=syncs)
        luck = Random(f"{seed + run}/cuts")
        for blackout in blackouts(read_trace(trace), luck, min(CUTS, rounds - run * CUTS)):
            where = f"seed {seed + run}, record {blackout.at} of {trace}"
            await fail(blackout, folder / "left", losses, where)
    return losses


@nemesis(
    "power loss",
    "The power fails: only what was synced is left, and of the rest a part, torn by sectors of 512 or 4096 bytes.",
    quick=40,
    full=1000,
)
async def power_loss(folder: Path, seed: int, rounds: int) -> Seen:
    losses = await black_out(folder, seed, rounds)
    seen = losses.seen
    seen.lost = losses.lost
    if losses.unsynced:
        seen.evidence = f"{losses.unsynced} of {seen.rounds} failures met unsynced writes"
    seen.note = seen.note or f"{losses.again} handled again"
    return seen


@nemesis(
    "power loss, sync=normal",
    "The same with ?sync=normal, which may lose the last messages, and nothing but these.",
    quick=40,
    full=400,
)
async def power_loss_normal(folder: Path, seed: int, rounds: int) -> Seen:
    losses = await black_out(folder, seed, rounds, sync="normal")
    seen = losses.seen
    if losses.lost:
        seen.evidence = f"{losses.cuts_that_lost} of {seen.rounds} failures lost {losses.lost:,} accepted messages, "
        seen.evidence += "as sync=normal says"
    seen.note = "always the last ones: never a gap, never a damaged file"
    return seen
