"""A real job, unchanged on every bus: 141,712 events of 24,918 incidents, and the same comes of it.

What the app says came of it is held against the file itself, so no bus is the measure of another.
"""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from tests.conformance.engines import ENGINES, engine_bus
from tests.jobs.incidents import ATTEMPTS, FACTOR, FIRST, Event, Outcome, digest, events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
LATE = 1.5  # seconds that a retry of a bus with nothing else to do may come late: a broker's resolution


def data() -> Path:
    """The file, beside the repository or where ``TIDINGS_SHARED`` says."""
    given = os.environ.get("TIDINGS_SHARED")
    for folder in [Path(given)] if given else [parent / "shared" for parent in Path(__file__).resolve().parents]:
        if (found := folder / "data" / "incidents" / "incident_event_log.csv.gz").is_file():
            return found
    pytest.skip("no shared/data/incidents beside the repository, and TIDINGS_SHARED names none")


def url(bus: str, folder: Path) -> str:
    if bus == "memory":
        return "memory://?messages=400000&size=1GiB"
    if bus == "sqlite":
        return f"sqlite:///{folder}/desk.db"
    fresh = engine_bus(bus).url
    assert fresh is not None
    return fresh(30)


@pytest.fixture(scope="module")
def log() -> list[Event]:
    return list(events(data()))


@pytest.mark.parametrize("bus", ["memory", "sqlite", *ENGINES])
def test_the_same_comes_of_it(bus: str, log: list[Event], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.jobs.incidents", url(bus, tmp_path), str(data())]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    outcome = msgspec.json.decode(ran.stdout, type=Outcome)
    assert outcome.digest == digest({event.number: event for event in log}), "an incident's last state is another"
    assert (outcome.folded, outcome.disorder, outcome.again) == (len(log), 0, 0)
    rejected = [f"{event.row} rejected 0" for event in log if event.meaningless]
    failed = [f"{event.row} failed {ATTEMPTS}" for event in log if event.hopeless]
    assert outcome.letters == sorted(rejected + failed)
    assert outcome.attempts == {event.row: ATTEMPTS for event in log if event.stubborn}
    wanted = sorted(e.row for e in log if e.state == "Closed" and e.reopened and not e.hopeless)
    assert outcome.notices == sha256(repr(wanted).encode()).hexdigest()
    for nth, (shortest, usual) in enumerate(outcome.waits):
        wait = FIRST * FACTOR**nth
        assert wait <= shortest
        assert usual <= wait * 1.25 + LATE
