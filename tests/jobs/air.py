"""Air quality of Beijing, hour by hour: one topic per station, three groups.

``python -m tests.jobs.air publish <url> <file> ...`` publishes station files in three parts and waits for a line on
its standard input before each; ``python -m tests.jobs.air consume <url> <folder>`` runs the handlers until SIGTERM.
What a handler has handled is in the ledger of its process, ``<folder>/<pid>``, before it returns: one line a message.
Both say at the end what happened to their bus.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from tidings import App, Message, Topic

PARTS, BATCH = 3, 1000
CONCURRENCY, DAILY_BATCH, ALERT_THREADS = 16, 100, 8
ALERT_STATION, ALERT = "Dongsi", 150.0  # µg/m³ of PM2.5
GROUPS = ("air.count", "air.daily", "air.alert")


class Reading(Struct):
    """One hour at one station; ``None`` where a sensor dropped out."""

    no: int
    year: int
    month: int
    day: int
    hour: int
    pm25: float | None
    pm10: float | None
    so2: float | None
    no2: float | None
    co: float | None
    o3: float | None
    temperature: float | None
    pressure: float | None
    dew_point: float | None
    rain: float | None
    wind: str | None
    wind_speed: float | None
    station: str

    @property
    def id(self) -> str:
        return f"{self.station}/{self.no}"

    @property
    def date(self) -> str:
        return f"{self.year}-{self.month:02}-{self.day:02}"


def readings(path: Path) -> Iterator[Reading]:
    """A station file, row by row. ``NA`` is a sensor that dropped out; so is the one cell of all that is blank."""
    with gzip.open(path, "rt", newline="") as text:
        rows = csv.reader(text)
        next(rows)
        for row in rows:
            known = [None if value.strip() in ("NA", "") else value for value in row]
            numbers = [None if value is None else float(value) for value in known[5:15]]
            wind_speed = None if known[16] is None else float(known[16])
            yield Reading(*map(int, row[:5]), *numbers, known[15], wind_speed, row[17])  # type: ignore[arg-type, call-arg]


air = Topic("air.{station}", Reading)
app = App("air")
ledger = -1


def note(group: str, lines: Iterable[tuple[str, object]]) -> None:
    """Append to this process's ledger, in one write."""
    os.write(ledger, "".join(f"{group}\t{id}\t{value}\n" for id, value in lines).encode())


@app.on("air.>", concurrency=CONCURRENCY, start="first")
async def count(reading: Reading) -> None:
    note("air.count", [(reading.id, reading.station)])


@app.on(air, batch=DAILY_BATCH, concurrency=CONCURRENCY, within="20ms", start="first")
async def daily(batch: list[Reading]) -> None:
    note("air.daily", [(r.id, f"{r.station} {r.date} {r.pm25}") for r in batch])


@app.on(f"air.{ALERT_STATION}", concurrency=ALERT_THREADS, start="first")
def alert(reading: Reading) -> None:
    note("air.alert", [(reading.id, reading.pm25 is not None and reading.pm25 > ALERT)])


# -- the processes


async def publish(url: str, files: Sequence[str]) -> None:
    """Every station's first third, then every second, then every last."""
    app.use(url)
    everything = [list(readings(Path(name))) for name in files]
    topics = {rows[0].station: air.bind(station=rows[0].station) for rows in everything}
    drafts: list[Message[Reading]] = []
    async with app.connect():
        for part in range(PARTS):
            await asyncio.to_thread(sys.stdin.readline)
            for rows in everything:
                third = -(-len(rows) // PARTS)
                for reading in rows[part * third : (part + 1) * third]:
                    drafts.append(topics[reading.station](reading, id=reading.id))
                    if len(drafts) == BATCH:
                        await app.publish_many(drafts)
                        drafts.clear()
            await app.publish_many(drafts)
            drafts.clear()
    print(json.dumps(app.events), flush=True)


def consume(url: str, folder: str) -> None:
    """As under ``tidings run``."""
    global ledger
    sys.setswitchinterval(0.0005)
    ledger = os.open(Path(folder) / str(os.getpid()), os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
    app.run(url)
    print(json.dumps(app.events), flush=True)


if __name__ == "__main__":
    what, at, *rest = sys.argv[1:]
    if what == "publish":
        asyncio.run(publish(at, rest))
    else:
        consume(at, *rest)
