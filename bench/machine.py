"""Where it was measured, what that depends on, and who else used it."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec


def machine() -> dict[str, str]:
    """What the figures depend on."""
    import apsw
    import pydantic

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return {
        "python": platform.python_version(),
        "msgspec": msgspec.__version__,
        "pydantic": pydantic.VERSION,
        "apsw": apsw.apsw_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": f"{os.cpu_count()} × {(models or [platform.machine()])[0]}",
        "disk": _disk(Path(os.environ.get("BENCH_DISK") or tempfile.gettempdir())),
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "commit": _commit(),
    }


def described(machine: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def _disk(path: Path) -> str:
    """The file system that bus files are on; a RAM disk would flatter every figure."""
    mounts = Path("/proc/mounts")
    lines = [line.split() for line in mounts.read_text().splitlines()] if mounts.exists() else []
    inside = [(len(line[1]), line[2]) for line in lines if path.resolve().is_relative_to(line[1])]
    return max(inside, default=(0, "unknown"))[1]


def _commit() -> str:
    asked = ("git", "describe", "--always", "--dirty")
    done = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "none"


# -- processors


class Cpu(NamedTuple):
    """Seconds of processor time since the start: all there was, what all used, and what our children did."""

    there: float
    used: float
    ours: float


def cpu_times() -> Cpu:
    """Linux only; elsewhere nobody else is seen."""
    stat, mine = Path("/proc/stat"), resource.getrusage(resource.RUSAGE_CHILDREN)
    ours = mine.ru_utime + mine.ru_stime
    if not stat.exists():
        return Cpu(ours, ours, ours)
    ticks = [int(tick) / os.sysconf("SC_CLK_TCK") for tick in stat.read_text().splitlines()[0].split()[1:9]]
    idle = ticks[3] + ticks[4]  # and waiting for the disk
    return Cpu(sum(ticks), sum(ticks) - idle, ours)


def others_share(before: Cpu, after: Cpu) -> float:
    """Per cent of all processor time that went to somebody else: above a few, the figures are only provisional."""
    there, used, ours = (late - early for early, late in zip(before, after, strict=True))
    return 100 * (used - ours) / there if there else 0.0


def own_cpu() -> float:
    """Seconds that this process and its ended children have used, user and system."""
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in both)


def peak_rss() -> float:
    """MiB: the peak of this process, or of its largest ended child.

    ``ru_maxrss`` of a process that was forked includes its parent's peak; Linux's ``VmHWM`` is its own.
    """
    unit = 2**20 if sys.platform == "darwin" else 2**10
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
    status = Path("/proc/self/status")
    if not status.exists():
        return max(child, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
    own = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return max(child, int(own.split()[1]) / 1024)
