"""The scenario ``devices``: MQTT devices publish into a durable handler on ``--engine nats``; beside nats-py alone.

Both consume from the same engine, with its defaults, which runs below this process; the devices are another one
(``meters.py``). The three and the NATS server share all cores. Each message counts from when it was due at its device.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec
import nats
from msgspec.structs import replace
from nats.errors import TimeoutError as NothingCame
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig
from tests.servers.base import free_port

from tidings import App, Topic
from tidings.gateway.engine import Engine, Options
from tidings.gateway.engine.configuration import KEY, STREAM
from tidings.gateway.engine.process import program

from ..engines.works import background
from ..harness import Figure, Scenario, Subject, timed_figures
from ..histogram import Timed, timed
from ..measure import bus_folder
from ..pacer import RUNNING_INTERVAL, Stamped
from .meters import Acknowledged
from .processes import allow_files
from .web import LATE, on_uvloop

BARE, OURS = "nats-py", "Tidings"
GROUP, BATCH = "bench", 1000
PATIENCE = 60.0  # seconds until what has not arrived is lost
POLL = 0.01
LINE = 64 * 2**20  # bytes: of what the devices tell at their end

readings = Topic("sensors.{device}.reading", Stamped)
_stamp = msgspec.json.Decoder(Stamped).decode


class Seen:
    """How late each message was; how many came again."""

    def __init__(self) -> None:
        self.delays: dict[int, float] = {}
        self.again = 0

    def see(self, stamp: Stamped) -> None:
        now = time.monotonic()
        if stamp.n in self.delays:
            self.again += 1
        else:
            self.delays[stamp.n] = now - stamp.due


Consuming = Callable[[Engine, Seen], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def by_tidings(engine: Engine, seen: Seen) -> AsyncIterator[None]:
    app = App("bench", engine.url)

    @app.on(readings)
    async def handle(stamp: Stamped) -> None:
        seen.see(stamp)

    async with app:
        yield


@asynccontextmanager
async def by_nats(engine: Engine, seen: Seen) -> AsyncIterator[None]:
    seed = (engine.folder.path / KEY).read_text().strip()
    async with await nats.connect(engine.addresses["apps"], nkeys_seed_str=seed) as connection:
        js = connection.jetstream()
        filtered = ConsumerConfig(durable_name=GROUP, filter_subject="sensors.>", max_ack_pending=2 * BATCH)
        await js.add_consumer(STREAM, filtered)
        pull = await js.pull_subscribe_bind(GROUP, STREAM)
        async with background(_consume(pull, seen)):
            yield


async def _consume(pull: JetStreamContext.PullSubscription, seen: Seen) -> None:
    """As many as are said to wait: a fetch of more would wait for them. Of a batch the last ack is answered."""
    waiting = 0
    while True:
        try:
            messages = await pull.fetch(min(waiting, BATCH) or 1, timeout=1.0)
        except NothingCame:
            continue
        for message in messages:
            seen.see(_stamp(message.data))
        for message in messages[:-1]:
            await message.ack()
        await messages[-1].ack_sync(timeout=PATIENCE)
        waiting = messages[-1].metadata.num_pending


LIBRARIES: dict[str, Consuming] = {BARE: by_nats, OURS: by_tidings}


async def carried(name: str, folder: Path, devices: int, seconds: int) -> Timed:
    """Delays; then those of the acknowledgements, messages that came again, and memory of the server a device."""
    options, seen = Options(data=str(folder / "engine"), port=free_port(), mqtt=free_port()), Seen()
    command = (sys.executable, "-m", "bench.serving.meters", str(options.mqtt), str(devices), str(seconds))
    async with Engine(options) as engine, LIBRARIES[name](engine, seen):
        before = resident(engine)
        meters = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=LINE)
        assert meters.stdin
        assert meters.stdout
        if await meters.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the devices ended with {await meters.wait()}")
        meters.stdin.write(b"\n")
        told = msgspec.json.decode(await meters.stdout.readline() or b"{}", type=Acknowledged)
        await arrived(seen, told.count, devices * seconds)
        memory = (resident(engine) - before) / 1024 / devices
        meters.stdin.write(b"\n")
        if code := await meters.wait():
            raise RuntimeError(f"the devices ended with {code}")
    late = told.delays[int(len(told.delays) * 0.99)] * 1e3
    return timed(list(seen.delays.values()), late, float(seen.again), memory)


async def arrived(seen: Seen, acknowledged: int, messages: int) -> None:
    """Nothing is lost: all were acknowledged, and all have come."""
    if acknowledged != messages:
        raise RuntimeError(f"{acknowledged:,} of {messages:,} messages were acknowledged")
    deadline = time.monotonic() + PATIENCE
    while len(seen.delays) < messages:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(seen.delays):,} of {messages:,} messages arrived")
        await asyncio.sleep(POLL)


def resident(engine: Engine) -> float:
    """Bytes of the NATS server's memory."""
    if engine.server is None or engine.server.process is None:
        raise RuntimeError("the NATS server does not run")
    pages = Path(f"/proc/{engine.server.process.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def measured(name: str, devices: int, seconds: int) -> Timed:
    sys.setswitchinterval(RUNNING_INTERVAL)
    allow_files(devices)
    with bus_folder() as folder:
        return on_uvloop(carried(name, folder, devices, seconds))


def notes() -> str:
    asked = subprocess.run((program(), "--version"), capture_output=True, text=True, check=True)
    clients = f"paho-mqtt {version('paho-mqtt')}, nats-py {version('nats-py')}"
    return f"{asked.stdout.strip()}, file storage synced every second; QoS 1; {clients}"


def scenario(quick: bool) -> Scenario:
    devices, seconds = (100, 2) if quick else (2_000, 10)
    more = Figure("p99 of PUBACK", "ms"), Figure("came again", "messages"), Figure("memory", "KiB/device")

    def subject(name: str) -> Subject:
        late = timed_figures(p99=LATE if name == OURS else None)
        beside = (f"{BARE}: {devices:,} devices, 1 msg/s each",) if name == OURS else ()
        compared = tuple(replace(one, ratio_to=beside) if one.name in ("p50", "p99") else one for one in late)
        measure = partial(measured, name, devices, seconds)
        return Subject(f"{name}: {devices:,} devices, 1 msg/s each", (*compared, *more), measure)

    return Scenario(tuple(map(subject, LIBRARIES)), rounds=3, notes=notes, patience=180.0)
