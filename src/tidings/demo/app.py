"""The demo: the machine it runs on, watched through Tidings. Read it from top to bottom, in ten minutes.

    clock      ─ sample ──────▶ sensors.<host>.<device>.<quantity>, legacy.<host>.<device>
    legacy     ─ translate ───▶ sensors, or what it cannot understand: _dead.demo.translate
    sensors    ─ window ──────▶ windows.<host>.<device>.<quantity>
    sensors    ─ minutes ─────▶ minutes.<host>.<device>.<quantity>
    windows    ─ score ───────▶ anomalies
    anomalies  ─ route ───────▶ alerts.<severity>
    requests   ─ summarize ───▶ replies
    sensors, alerts, _dead ───▶ the screen

Left and right are topics on a bus: here a file, later perhaps a broker, which is another URL and no other code. In the
middle are functions, the ones below, each with a place of its own in that file. Kill the process with ``kill -9``
whenever you like and start it again: each function goes on where it was, and no message is lost.

``tidings demo`` adds a screen; ``tidings run tidings.demo.app:app`` runs the same without one.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Struct

from tidings import App, Depends, Message, Reject, Service, Topic

from .analysis import Minute, Minutes, Recent, surprise
from .sensors import HOST, Machine, Reading

# --- An app has a name and a bus. Without a server: the bus is this file, which any number of processes may share.

app = App("demo", "sqlite:///tidings-demo.db?retain=1h&max_size=256MiB")

# --- What travels. A topic has a name and a type; {captures} stand for one token each. What is published to it must be
# --- of that type, and what arrives is decoded to it, or it is a dead letter.


class Window(Struct, frozen=True):
    """A reading and the values that led to it."""

    reading: Reading
    values: list[float]


class Anomaly(Struct, frozen=True):
    """A reading that deserves a look, and how much."""

    reading: Reading
    score: float


readings = Topic("sensors.{host}.{device}.{quantity}", Reading)
legacy = Topic("legacy.{host}.{device}", str)
windows = Topic("windows.{host}.{device}.{quantity}", Window)
minutely = Topic("minutes.{host}.{device}.{quantity}", Minute)
anomalies = Topic("anomalies", Anomaly)
alerts = Topic("alerts.{severity}", Anomaly)


# --- A source. A plain function runs in a thread, so it may take its time. A tick is one message for all processes on
# --- this bus, so a second demo beside the first shares the work instead of measuring everything twice. (Were the bus a
# --- broker, and each process on a host with sensors of its own, this would be @app.every("1s", each=True).) What a
# --- handler returns or yields is published as its own message is settled: on this bus in one transaction.


@app.every("1s")
def sample(machine: Annotated[Machine, Depends(Machine, scope="app")]) -> Iterator[Message[Any]]:
    for reading in machine.measure():
        topic = readings.bind(host=HOST, device=reading.device, quantity=reading.quantity)
        yield topic(reading, key=reading.series)  # messages of one key stay in order
    yield legacy.bind(host=HOST, device="uptime")(next(machine.lines))


# --- A translator (EIP: Message Translator). One device speaks lines of text, and some arrive torn. Reject: no attempt
# --- will ever succeed, so to the dead letters at once. (Any other exception: up to 8 attempts, with growing waits.)


@app.on(legacy)
async def translate(line: Message[str], host: str, device: str) -> list[Message[Reading]]:
    found = re.search(r"load average: (\S+), (\S+), (\S+)$", line.data)
    if found is None:
        raise Reject(f"no load average in {line.data!r}")
    loads = zip(("load1", "load5", "load15"), found.groups(), strict=True)
    told = [Reading(host, device, name, "", float(load), line.time) for name, load in loads]
    return [readings.bind(host=host, device=device, quantity=r.quantity)(r, key=r.series) for r in told]


# --- Two groups on the same topic: each gets every reading, at its own pace. ordered=True: a key's messages one at a
# --- time, in order, and in one process for as long as it lives; so it may remember. What it remembers dies with it:
# --- that costs window some history, and minutes the minute under way.

recent = Recent()
ongoing = Minutes()


@app.on(readings, ordered=True)
async def window(reading: Reading, device: str, quantity: str) -> Message[Window]:
    values = recent.add(reading.series, reading.value)
    topic = windows.bind(host=reading.host, device=device, quantity=quantity)
    return topic(Window(reading, values), key=reading.series)


@app.on(readings, ordered=True, batch=500, within="250ms")
async def minutes(batch: list[Reading]) -> list[Message[Minute]]:
    return [
        minutely.bind(host=last.host, device=last.device, quantity=last.quantity)(minute, key=last.series)
        for last, minute in ongoing.add(batch)
    ]


# --- Heavy work: milliseconds of arithmetic each, in a pool of processes, one for each core. Such a function knows only
# --- its message, so any process may run it. It returns a payload of the topic named by to=, or nothing.

FLOOR = {"%": 2.0, "B/s": 50_000.0, "": 0.2}  # by unit: how much a value may wander without meaning


@app.on(windows, run="process", to=anomalies)
def score(window: Window) -> Anomaly | None:
    floor = FLOOR.get(window.reading.unit, 1.0)
    now, before = surprise(window.values, floor), surprise(window.values[:-1], floor)
    return Anomaly(window.reading, round(now, 1)) if now >= 5 > before else None


# --- A router by content (EIP: Content-Based Router) needs no framework: it is if, or match.


@app.on(anomalies)
async def route(found: Anomaly) -> Message[Anomaly]:
    match found:
        case Anomaly(score=score) if score >= 16:
            severity = "critical"
        case Anomaly(reading=Reading(device="memory" | "swap" | "storage")):
            severity = "warning"  # what runs full is worse than what runs hot
        case Anomaly(score=score) if score >= 8:
            severity = "warning"
        case _:
            severity = "notice"
    return alerts.bind(severity=severity)(found, key=found.reading.series)


# --- The live view. live=True: no group and no memory, every process gets a copy of what happens while it looks, at
# --- most once. Dead letters are messages as well: the original body and headers, with the reason added.


class View:
    """What has been seen since the process started, the newest last."""

    def __init__(self) -> None:
        self.latest: dict[str, Reading] = {}
        self.trail = Recent(60)
        self.alerts: deque[tuple[str, Anomaly]] = deque(maxlen=100)
        self.severities: Counter[str] = Counter()
        self.dead: deque[Message[bytes]] = deque(maxlen=100)


view = View()


@app.on(readings, live=True)
async def watch(reading: Reading) -> None:
    view.latest[reading.series] = reading
    view.trail.add(reading.series, reading.value)


@app.on(alerts, live=True)
async def alarm(found: Anomaly, severity: str) -> None:
    view.alerts.append((severity, found))
    view.severities[severity] += 1


@app.on("_dead.>", live=True)
async def mourn(letter: Message[bytes]) -> None:
    view.dead.append(letter)


# --- Request and reply (EIP: Request-Reply). From another terminal: tidings request sensors.summary


class Question(Struct, frozen=True):
    """Of which device; of all, if empty."""

    device: str = ""


class Summary(Struct, frozen=True):
    """The newest value of every series, and how many alerts there were."""

    host: str
    sensors: dict[str, float]
    alerts: dict[str, int]


summary = Service("sensors.summary", Question | None, Summary)


@app.answer(summary)
async def summarize(question: Question | None) -> Summary:
    device = question.device if question else ""
    values = {s: r.value for s, r in sorted(view.latest.items()) if device in ("", r.device)}
    return Summary(HOST, values, dict(view.severities))
