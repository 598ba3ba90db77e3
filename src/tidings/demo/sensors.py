"""The machine's sensors: what is measured, and the devices that measure it.

A device is a generator: each ``next()`` is one measurement, and what it must remember in between (the counters of a
second ago) are its local variables. Its first measurement only takes the counters; ``Machine`` throws it away.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import count

import psutil  # type: ignore[import-untyped]
from msgspec import Struct

from tidings import token

HOST = token(socket.gethostname() or "localhost")
BUSIEST = 3  # processes, by name
MOST = 6  # disks, and network interfaces


class Reading(Struct, frozen=True):
    """One value of one quantity of one device."""

    host: str
    device: str
    quantity: str
    unit: str
    value: float
    time: float

    @property
    def series(self) -> str:
        """What it is a reading of: the same for all that may be compared with it."""
        return f"{self.device}.{self.quantity}"


Measured = tuple[str, str, str, float]  # device, quantity, unit, value
Device = Iterator[list[Measured]]


class Machine:
    """All devices that work here; a container may have no disks and no network."""

    def __init__(self) -> None:
        self.lines = uptime()
        self.devices: list[Device] = [cores(), memory(), disks(), network(), processes(), temperatures()]
        self.measure()

    def measure(self) -> list[Reading]:
        """One reading of everything. A device that cannot be read (any more) is left out from then on."""
        readings = []
        for device in list(self.devices):
            try:
                measured = next(device)
            except (psutil.Error, OSError, RuntimeError, AttributeError, NotImplementedError, StopIteration):
                self.devices.remove(device)
                continue
            now = time.time()
            readings += [Reading(HOST, token(name), what, unit, round(v, 2), now) for name, what, unit, v in measured]
        return readings


def cores() -> Device:
    """The load of each core."""
    while True:
        loads = psutil.cpu_percent(percpu=True)
        yield [(f"core-{index}", "load", "%", load) for index, load in enumerate(loads)]


def memory() -> Device:
    """Memory and swap in use, and how full the disk of the working directory is."""
    while True:
        measured = [("memory", "used", "%", psutil.virtual_memory().percent)]
        swap = psutil.swap_memory()
        if swap.total:
            measured.append(("swap", "used", "%", swap.percent))
        measured.append(("storage", "used", "%", psutil.disk_usage(".").percent))
        yield measured


def disks() -> Device:
    """Bytes per second of each disk that has ever been used."""

    def read() -> dict[str, tuple[int, int]]:
        disks = psutil.disk_io_counters(perdisk=True) or {}
        used = {f"disk-{name}": (disk.read_bytes, disk.write_bytes) for name, disk in disks.items()}
        return {name: totals for name, totals in list(used.items()) if any(totals)}

    return per_second(read, ("read", "written"))


def network() -> Device:
    """Bytes per second of each network interface that has ever been used, without the loopback."""

    def read() -> dict[str, tuple[int, int]]:
        nics = psutil.net_io_counters(pernic=True) or {}
        used = {f"net-{name}": (nic.bytes_recv, nic.bytes_sent) for name, nic in nics.items() if name[:2] != "lo"}
        return {name: totals for name, totals in used.items() if any(totals)}

    return per_second(read, ("received", "sent"))


def per_second(read: Callable[[], Mapping[str, tuple[int, int]]], quantities: tuple[str, str]) -> Device:
    """How fast counters grow."""
    before, then = read(), time.monotonic()
    yield []
    while True:
        totals, now = read(), time.monotonic()
        elapsed = max(now - then, 0.001)
        yield [
            (name, quantity, "B/s", max(0.0, new - old) / elapsed)
            for name in list(totals)[:MOST]
            if name in before
            for quantity, new, old in zip(quantities, totals[name], before[name], strict=True)
        ]
        before, then = totals, now


def processes() -> Device:
    """The busiest programs: the load of all processes of one name (kworker/1:0 is kworker), in percent of one core."""
    while True:
        loads: Counter[str] = Counter()
        for process in psutil.process_iter(["name", "cpu_percent"]):
            name = (process.info["name"] or "unnamed").lstrip("(-").partition("/")[0]
            loads[name or "unnamed"] += process.info["cpu_percent"] or 0
        yield [(f"program-{name}", "load", "%", load) for name, load in loads.most_common(BUSIEST) if load]


def temperatures() -> Device:
    """The hottest spot of each chip that tells; few virtual machines have one."""
    while True:
        chips = psutil.sensors_temperatures()
        yield [(f"chip-{name}", "heat", "C", max(spot.current for spot in spots)) for name, spots in chips.items()]


def uptime() -> Iterator[str]:
    """An old device that speaks lines of text, over a bad cable: the third line, and then every tenth, arrives torn."""
    for number in count(1):
        averages = ", ".join(f"{load:.2f}" for load in psutil.getloadavg())
        line = f"up {time.time() - psutil.boot_time():.0f} s, load average: {averages}"
        yield line[:27] if number % 10 == 3 else line
