"""Nemeses of size: very many topics and groups, and a backlog that fits in no memory. ``rounds``: tenths of it."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
from msgspec import Struct
from tests.faults.many import Body, Spec
from tests.faults.report import Seen, nemesis

from tidings import App, Topic
from tidings.testing.faults.process import Processes

WITHIN = 600.0  # seconds for any one step
SECONDS = 60.0  # "in seconds", on a slow machine that has other things to do, too
EXTRA = 50 * 2**20  # bytes that a hundred times the backlog may take
GROUPS, TOPICS = 100, 10  # groups in a tenth, topics of each
SMALL, TENTH = 10_000, 100_000  # messages
BATCH = 1_000


class Lived(Struct, frozen=True):
    """A consumer's life: seconds until it was ready, and to end; the most memory it had, in bytes; what it handled."""

    start: float
    stop: float
    peak: int
    counts: bytes  # how often each message

    def slow(self) -> list[str]:
        times = {"start": self.start, "stop": self.stop}
        return [f"it took {taken:.0f} s to {what}" for what, taken in times.items() if taken > SECONDS]

    def __str__(self) -> str:
        return f"{self.start:.1f} s to start, {self.stop:.1f} s to stop, {_mib(self.peak)}"


@nemesis("1,000 groups", "10,000 topics and 1,000 groups in one process, and all of them get work", full=10)
async def many_groups(folder: Path, seed: int, rounds: int) -> Seen:
    groups = GROUPS * rounds
    spec = _spec(folder, f"seed-{seed}", groups=groups, topics=TOPICS, messages=3 * groups * TOPICS)
    lived = await live(spec, first=True)
    evidence = f"{groups * TOPICS:,} topics, {groups:,} groups: {lived}"
    return _seen(lived.counts, evidence, lived.slow())


@nemesis("backlog", "a consumer meets 1,000,000 messages, and needs no more memory than for 10,000", full=10)
async def backlog(folder: Path, seed: int, rounds: int) -> Seen:
    few = await _worked_off(_spec(folder, f"seed-{seed}-few", messages=SMALL))
    lives = await _worked_off(spec := _spec(folder, f"seed-{seed}", messages=TENTH * rounds))
    extra = max(life.peak for life in lives) - max(life.peak for life in few)
    faults = [fault for life in lives for fault in life.slow()]
    faults += [f"{_mib(extra)} more than for {SMALL:,} messages"] if extra > EXTRA else []
    evidence = f"{spec.messages:,} messages: {lives[0]}, {_mib(extra)} more than for {SMALL:,}"
    counts = [sum(each) for each in zip(*(life.counts for life in lives), strict=True)]
    return _seen(counts, evidence, faults)


async def _worked_off(spec: Spec) -> list[Lived]:
    """One process begins, and stops in the middle; another one does the rest."""
    await publish(spec)
    half = await live(msgspec.structs.replace(spec, until=spec.messages // 2))
    rest = await live(msgspec.structs.replace(spec, until=half.counts.count(0)))
    return [half, rest]


async def live(spec: Spec, *, first: bool = False) -> Lived:
    """A consumer's life; ``first``: before anything is published."""
    async with Processes() as processes:
        consumer = await processes.start("tests.faults.many", msgspec.json.encode(spec).decode())
        start = (await consumer.line("ready", WITHIN)).split()[1]
        if first:
            await publish(spec)
        await consumer.line("done", WITHIN)
        began = time.monotonic()
        peak = (await consumer.line("peak", WITHIN)).split()[1]
        stop = time.monotonic() - began
        await consumer.wait()
    return Lived(float(start), stop, int(peak), _read(spec))


async def publish(spec: Spec) -> None:
    topics = [Topic(spec.topic(n), Body) for n in range(spec.groups * spec.topics)]
    async with App("publisher", spec.url).connect() as app:
        for start in range(0, spec.messages, BATCH):
            numbers = range(start, min(start + BATCH, spec.messages))
            await app.publish_many([topics[n % len(topics)](Body(n)) for n in numbers])


def _spec(folder: Path, name: str, **size: int) -> Spec:
    place = folder / name
    place.mkdir(parents=True)
    return Spec(url=f"sqlite:///{place}/bus.db", counts=str(place / "counts"), until=size["messages"], **size)


def _read(spec: Spec) -> bytes:
    return Path(spec.counts).read_bytes()


def _seen(counts: bytes | list[int], evidence: str, faults: list[str]) -> Seen:
    twice = sum(count - 1 for count in counts if count)
    return Seen(
        rounds=1, accepted=len(counts), lost=counts.count(0), duplicated=twice, evidence=evidence, faults=faults
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
