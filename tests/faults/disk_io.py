"""One system call fails: every kind of call SQLite makes, at hundreds of places in the life of a bus."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from random import Random

from tests.faults.disk_check import look, made, some, workers
from tests.faults.disk_worker import Spec, Told
from tests.faults.report import Seen, nemesis
from tests.faults.vfs import CALLS, SYNC, Plan

ERRORS = {"pwrite64": ("EIO", "ENOSPC"), "open": ("EIO", "EMFILE"), "mmap": ("ENOMEM",)}
EACH = 60  # plans a process


async def killed_bus(folder: Path, seed: int) -> tuple[Path, set[str]]:
    """A folder with a bus whose process was killed, so its log has to be recovered; and what was handled."""
    bus = made(folder / "killed")
    spec = Spec(path=str(bus / "bus.db"), seed=seed, name="before", publishers=2, consume=True)
    async with workers(folder, spec) as (child,):
        await child.until(lambda: child.count("accepted") > 100, "100 accepted")
        child.process.kill()
        await child.gone()
        return bus, set(child.ids("handled"))


async def passages(folder: Path, seed: int, template: str) -> dict[str, int]:
    """How often each call is made in a life without faults."""
    made(folder)
    plans = [Plan(call, 0, times=0) for call in (*CALLS, SYNC)]
    async with workers(folder, Spec(path=str(folder), role="sweep", seed=seed, plans=plans, template=template)) as (c,):
        await c.gone()
    swept = [told for told in c.told if told.what == "swept"]
    assert len(swept) == len(plans), c.tail()
    return {plan.call: int(told.code) for plan, told in zip(plans, swept, strict=True)}


async def sweep(folder: Path, spec: Spec, before: set[str], seen: Seen) -> Counter[str]:
    """Run the plans in one process, then look at every bus it left; which calls on which files failed. ``before``:
    what was handled already."""
    made(folder)
    seed, plans = spec.seed, spec.plans
    async with workers(folder, spec) as (child,):
        await child.gone(60 + 20 * len(plans))
    swept = {int(told.id): told for told in child.told if told.what == "swept"}
    seen.faults += [f"seed {seed}: {fault}" for fault in child.faults()]
    if len(swept) < len(plans):
        seen.faults.append(f"seed {seed}: it died at {plans[len(swept)]}: {child.tail()}")
    hit = Counter[str]()
    for n, told in swept.items():
        hit.update(told.hit)
        told.done.extend(before)
        await _after(folder / f"{n}" / "bus.db", told, f"seed {seed}, {plans[n]} on {told.hit}", seen)
    return hit


async def _after(path: Path, told: Told, where: str, seen: Seen) -> None:
    """The disk is well again: whatever was accepted is there, and comes unless it was handled. A round without a
    failed call is none."""
    left = await look(path, set(told.done))
    lost = set(told.ids) - set(left.stored)
    seen.rounds += bool(told.hit)
    seen.accepted += len(told.ids)
    seen.lost += len(lost)
    seen.recovered = max(seen.recovered or 0.0, left.opened)
    seen.faults += [f"{where}: {fault}" for fault in left.faults]
    if lost:
        seen.faults.append(f"{where}: lost {some(lost)}")
    shutil.rmtree(path.parent)


@nemesis(
    "IO error",
    "One system call on the main file, the log or its index fails (EIO, ENOSPC, EMFILE, ENOMEM), or a sync does.",
    quick=60,
    full=600,
)
async def io_error(folder: Path, seed: int, rounds: int) -> Seen:
    seen, luck, hit = Seen(rounds=0, accepted=0, lost=0), Random(f"{seed}/io"), Counter[str]()
    killed, before = await killed_bus(folder, seed)
    for n in range(-(-rounds // EACH)):
        template = str(killed) if n % 2 else ""
        places = await passages(folder / f"count{n}", seed, template)
        calls = [call for call, times in places.items() if times]
        plans = []
        for _ in range(min(EACH, rounds - n * EACH)):
            call = luck.choice(calls)
            plans.append(Plan(call, luck.randint(1, places[call]), luck.choice(ERRORS.get(call, ("EIO",)))))
        path = folder / f"sweep{n}"
        spec = Spec(path=str(path), role="sweep", seed=seed + n, plans=plans, template=template)
        hit += await sweep(path, spec, before, seen)
    if hit:
        seen.evidence = ", ".join(f"{times} × {what}" for what, times in hit.most_common())
    return seen
