"""A year of a service desk, event by event, keyed by incident: one app, on whichever bus its URL names.

``python -m tests.jobs.incidents <url> <file>`` publishes the file while four handlers work, waits until all is done,
and prints what came of it as one line of JSON (``Outcome``): the same on every bus, but for the figures of time.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from statistics import median

import msgspec
from msgspec import Struct

from tidings import App, Backoff, Delivery, Message, Reject, Topic

BATCH, PATIENCE = 1000, 300.0  # messages; seconds
PROBES = 20
FIRST, FACTOR, ATTEMPTS = 0.3, 5.0, 3  # the second wait is longer than is waited in place


class Event(Struct):
    """One line of the audit log."""

    row: int
    number: str
    state: str
    modified: int
    reopened: int
    group: str

    @property
    def stubborn(self) -> bool:
        """Fails until the last attempt, or longer."""
        return self.state == "Resolved" and self.reopened >= 2

    @property
    def hopeless(self) -> bool:
        return self.stubborn and self.reopened >= 5

    @property
    def meaningless(self) -> bool:
        return self.state == "-100"


class Notice(Struct):
    """What is told to the one who called."""

    number: str
    row: int


class Outcome(Struct):
    """What came of it all. Seconds; ``waits``: before the second attempt, and the third: the shortest of all, and the
    median of the probes, which were sent when nothing else was left to do: nothing stood in line before them.
    """

    folded: int
    digest: str
    disorder: int
    again: int
    letters: list[str]
    notices: str
    attempts: dict[int, int]
    waits: list[tuple[float, float]]
    publishing: float
    handling: float


def events(path: Path) -> Iterator[Event]:
    """The file, line by line."""
    with gzip.open(path, "rt", newline="") as text:
        for row, line in enumerate(csv.DictReader(text)):
            modified, reopened = int(line["sys_mod_count"]), int(line["reopen_count"])
            yield Event(row, line["number"], line["incident_state"], modified, reopened, line["assignment_group"])


def digest(last: dict[str, Event]) -> str:
    """The last state of every incident, in one short line."""
    lines = (f"{number} {e.row} {e.state} {e.modified} {e.group}\n" for number, e in sorted(last.items()))
    return sha256("".join(lines).encode()).hexdigest()


app = App("desk", backoff=Backoff(attempts=ATTEMPTS, first=FIRST, factor=FACTOR), breaker=None)
changed = Topic("incidents.changed", Event)
notified = Topic("incidents.notified", Notice)
probed = Topic("incidents.probed", int)

last: dict[str, Event] = {}
seen = {"fold": 0, "disorder": 0, "again": 0, "notify": 0}
letters: list[str] = []
notices: set[int] = set()
starts: defaultdict[int, list[float]] = defaultdict(list)
probes: defaultdict[int, list[float]] = defaultdict(list)


@app.on(changed, concurrency=64)
async def fold(event: Event) -> None:
    """An incident is what its last event says."""
    known = last.get(event.number)
    seen["fold"] += 1
    seen["disorder"] += known is not None and known.row > event.row
    seen["again"] += known is not None and known.row == event.row
    last[event.number] = event


@app.on(changed, to=notified, concurrency=64)
async def notify(event: Event, delivery: Delivery) -> Notice | None:
    """Fails often, for some events."""
    if event.meaningless:
        raise Reject(f"{event.state} is no state")
    if event.stubborn:
        starts[event.row].append(time.time())
        if event.hopeless or delivery.attempt < ATTEMPTS:
            raise RuntimeError("nobody picks up the phone")
    seen["notify"] += 1
    return Notice(event.number, event.row) if event.state == "Closed" and event.reopened else None


@app.on(notified)
async def told(notice: Notice) -> None:
    notices.add(notice.row)


@app.on(probed)
async def probe(number: int) -> None:
    probes[number].append(time.time())
    if len(probes[number]) < ATTEMPTS:
        raise RuntimeError("once more")


@app.on("_dead.desk.notify")
async def bury(message: Message[Event]) -> None:
    letters.append(f"{message.data.row} {message.header('tdgreason')} {message.header('tdgfailures')}")


async def main(url: str, path: Path) -> Outcome:
    everything = list(events(path))
    fates = [event.meaningless or event.hopeless for event in everything]
    wanted = {e.row for e in everything if e.state == "Closed" and e.reopened and not e.hopeless}
    app.use(url)
    async with app:
        began = time.monotonic()
        for at in range(0, len(everything), BATCH):
            await app.publish_many([changed(e, id=f"i{e.row}", key=e.number) for e in everything[at : at + BATCH]])
        published = time.monotonic()
        while (
            seen["fold"] < len(everything)
            or seen["notify"] < fates.count(False)
            or len(letters) < fates.count(True)
            or notices != wanted
        ):
            assert time.monotonic() < published + PATIENCE, f"{seen}, {len(letters)} letters, {len(notices)} notices"
            await asyncio.sleep(0.05)
        ended = time.monotonic()
        await app.publish_many([probed(number) for number in range(PROBES)])
        while [len(times) for times in probes.values()] != [ATTEMPTS] * PROBES:
            assert time.monotonic() < ended + PATIENCE, f"{dict(probes)}"
            await asyncio.sleep(0.05)
    waits = [[b - a for a, b in pairwise(times)] for times in (*starts.values(), *probes.values())]
    quiet = zip(*waits[-PROBES:], strict=True)
    return Outcome(
        folded=seen["fold"],
        digest=digest(last),
        disorder=seen["disorder"],
        again=seen["again"],
        letters=sorted(letters),
        notices=sha256(repr(sorted(notices)).encode()).hexdigest(),
        attempts={row: len(times) for row, times in sorted(starts.items())},
        waits=[(min(nth), median(alone)) for nth, alone in zip(zip(*waits, strict=True), quiet, strict=True)],
        publishing=published - began,
        handling=ended - began,
    )


if __name__ == "__main__":
    sys.setswitchinterval(0.0005)
    outcome = asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
    print(msgspec.json.encode(outcome).decode(), flush=True)
