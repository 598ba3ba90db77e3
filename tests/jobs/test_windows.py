"""Windows, alerts and cases of real logs are what a plain computation of the same files says."""

from __future__ import annotations

import asyncio
import csv
import gzip
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.jobs.sensors import (
    DEADLINE,
    HOUR,
    Alert,
    Case,
    Event,
    Hour,
    Job,
    Reading,
    Usual,
    bundles,
    learn,
)
from tests.transports.consuming import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
PATIENCE = 200.0  # seconds
BUNDLE = 500  # events in one message


def data(*parts: str) -> Path:
    """What is beside the repository, or where ``TIDINGS_SHARED`` says."""
    given = os.environ.get("TIDINGS_SHARED")
    for folder in [Path(given)] if given else [parent / "shared" for parent in Path(__file__).resolve().parents]:
        if (found := folder.joinpath("data", *parts)).exists():
            return found
    pytest.skip(f"no shared/data/{'/'.join(parts)} beside the repository, and TIDINGS_SHARED names none")


def hall() -> dict[str, list[Reading]]:
    """The readings of the 47 sensors, by file."""
    folder, found = data("iot_nab", "data"), dict[str, list[Reading]]()
    for path in sorted(folder.glob("*/*.csv")):
        name = path.relative_to(folder).as_posix()
        with path.open() as file:
            rows = [Reading(name, row["timestamp"], float(row["value"])) for row in csv.DictReader(file)]
        found[name] = rows
    return found


def desk() -> list[Event]:
    with gzip.open(data("incidents", "incident_event_log.csv.gz"), "rt") as file:
        kept = Event.__struct_fields__
        rows = [Event(**{name: row[name] for name in kept}) for row in csv.DictReader(file)]
    return sorted(rows, key=lambda event: event.at)


# -- the plain computation


def plain_hours(files: dict[str, list[Reading]]) -> list[Hour]:
    found = []
    for sensor, rows in files.items():
        by_hour: dict[float, list[float]] = defaultdict(list)
        for reading in sorted(rows, key=lambda reading: reading.at):
            by_hour[reading.at.timestamp() // HOUR * HOUR].append(reading.value)
        for start, values in by_hour.items():
            total = 0.0
            for value in values:
                total += value
            found.append(Hour(sensor, start, len(values), total / len(values), min(values), max(values)))
    return sorted(found, key=lambda hour: (hour.start, hour.sensor))


def plain_alerts(hours: Iterable[Hour]) -> list[Alert]:
    known: dict[str, Usual] = {}
    found = []
    for hour in hours:
        known[hour.sensor], alert = learn(known.get(hour.sensor, Usual()), hour)
        if alert:
            found.append(alert)
    return found


def plain_cases(log: Iterable[Event]) -> list[Case]:
    open: dict[str, Case] = {}
    found: list[Case] = []
    for event in log:
        at, case = event.at.timestamp(), open.get(event.number)
        if case is None or at >= case.begun + DEADLINE:
            case = open[event.number] = Case(event.number, at, 0, "", False)
            found.append(case)
        case.events, case.last = case.events + 1, event.incident_state
        case.kept = event.incident_state == "Closed"
    return by_begin(found)


def by_begin(cases: Sequence[Case]) -> list[Case]:
    return sorted(cases, key=lambda case: (case.begun, case.number))


def by_sensor(alerts: Iterable[Alert]) -> list[Alert]:
    return sorted(alerts, key=lambda alert: (alert.sensor, alert.start))


def score(alerts: Iterable[Alert]) -> tuple[int, int, int]:
    """Labelled windows that an alert fell into, labelled windows in all, alerts outside of them."""
    from datetime import UTC, datetime

    def unix(text: str) -> float:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()

    labels: dict[str, Any] = msgspec.json.decode(data("iot_nab", "labels", "combined_windows.json").read_bytes())
    spans = {name: [(unix(a), unix(b)) for a, b in pairs] for name, pairs in labels.items()}
    hit, outside = set[tuple[str, float]](), 0
    for alert in alerts:
        inside = [a for a, b in spans.get(alert.sensor, ()) if a - HOUR < alert.start <= b]
        hit.update((alert.sensor, a) for a in inside)
        outside += not inside
    known = hall()
    return len(hit), sum(len(pairs) for name, pairs in spans.items() if name in known), outside


# -- the pipelines


async def replay(url: str, *arguments: str) -> None:
    console = str(Path(sys.executable).with_name("tidings"))
    command = [console, "replay", *arguments, "--sort", "--url", url, "--json"]
    ran = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    _, said = await ran.communicate()
    assert ran.returncode == 0, said.decode()


async def test_sensors_by_the_hour_and_alerts_replayed(tmp_path: Path) -> None:
    files, url = hall(), f"sqlite:///{tmp_path}/job.db"
    assert len(files) == 47
    expected = plain_hours(files)
    job = Job(url)
    async with job.app as app:
        path = tmp_path / "hall.jsonl"
        path.write_bytes(b"\n".join(msgspec.json.encode(r) for rows in files.values() for r in rows))
        format = ("--key", "sensor", "--time-field", "timestamp")
        await replay(url, str(path), "--topic", "hall.readings", *format)
        await until(lambda: len(job.hours) >= len(expected), within=PATIENCE)
        await until(lambda: app.stats()["job.judge"].handled == len(expected))
        wanted = plain_alerts(expected)
        await until(lambda: len(job.alerts) >= len(wanted))
    assert sorted(job.hours, key=lambda hour: (hour.start, hour.sensor)) == expected
    assert by_sensor(job.alerts) == by_sensor(wanted)
    hit, windows, outside = score(job.alerts)
    assert (hit, windows, outside) == score(wanted)
    assert hit > windows / 3, "so simple a rule finds more than that"


async def test_incidents_with_a_deadline_published(tmp_path: Path) -> None:
    log, url = desk(), f"sqlite:///{tmp_path}/job.db"
    expected = plain_cases(log)
    job = Job(url)
    async with job.app as app:
        await app.publish_many([bundles(log[n : n + BUNDLE]) for n in range(0, len(log), BUNDLE)])
        await until(lambda: len(job.cases) >= len(expected), within=PATIENCE)
        assert app.stats()["job.case_of"].handled == len(log)
    assert by_begin(job.cases) == expected
    assert sum(case.events for case in job.cases) == len(log)
    assert any(not case.kept for case in expected)
