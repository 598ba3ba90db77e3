"""What ``tidings doctor`` finds on this machine, without a bus."""

from __future__ import annotations

import math
import os
import platform
import re
import resource
import shutil
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Literal

from msgspec import Struct

from tidings.kernel.errors import UnsafeLibrary

State = Literal["ok", "warning", "wrong"]

GIB = 2**30
LEAST_FILES = 1024
OTHERS = ("dev", "bench", "docs")  # extras of whoever works on Tidings itself
NEEDS = re.compile(r"(?P<name>[\w.-]+)(?:\[[^]]*\])?(?P<versions>[^;]*);.*extra == .(?P<extra>[\w-]+).")


class Finding(Struct, frozen=True):
    """One thing that was looked at: what it is, whether that is well, and if not how to mend it."""

    area: str
    name: str
    state: State
    found: str
    mend: str = ""


def machine() -> list[Finding]:
    posix = os.name == "posix"
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    return [
        Finding("machine", "system", "ok" if posix else "warning", system, "" if posix else "use Linux or macOS"),
        Finding("machine", "cores", "ok", _cores()),
        _memory(),
        _here(),
    ]


def _cores() -> str:
    count = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").partition(" ")
    limited = f", limited to {int(quota) / int(period):g} by its control group" if quota.isdigit() else ""
    return f"{usable} of {count}" + limited


def _memory() -> Finding:
    told = dict(re.findall(r"(\w+): +(\d+) kB", _text("/proc/meminfo")))
    if "MemAvailable" not in told:
        return Finding("machine", "memory", "ok", "this system does not tell how much is free")
    total, free = int(told["MemTotal"]) * 1024, int(told["MemAvailable"]) * 1024
    found = f"{size(free)} free of {size(total)}"
    if (limit := _text("/sys/fs/cgroup/memory.max")).isdigit():
        found += f", limited to {size(int(limit))} by its control group"
    if free < total / 20:
        return Finding("machine", "memory", "warning", found, "end what is not needed: the system may kill processes")
    return Finding("machine", "memory", "ok", found)


def _here() -> Finding:
    try:
        return disk("machine", Path.cwd())
    except FileNotFoundError:
        return Finding("machine", "folder", "wrong", "the working directory was deleted", "cd to one that exists")


def disk(area: str, folder: Path) -> Finding:
    """The room on the disk of a folder."""
    room = shutil.disk_usage(folder)
    found = f"{size(room.free)} free of {size(room.total)} at {folder}"
    if room.free >= min(GIB, room.total / 20):
        return Finding(area, "disk", "ok", found)
    return Finding(area, "disk", "wrong" if room.free < GIB / 16 else "warning", found, "make room on this disk")


def python() -> list[Finding]:
    kind, build = platform.python_implementation(), "with GIL"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        build = "free-threaded, GIL " + ("on" if getattr(sys, "_is_gil_enabled", lambda: True)() else "off")
    usual = kind == "CPython" and build == "with GIL"
    slow = sys.flags.dev_mode or bool(os.environ.get("PYTHONASYNCIODEBUG"))
    mend = "" if usual else "CPython with its GIL is what is tested"
    interval = f"{sys.getswitchinterval() * 1e3:g} ms here; `tidings run` sets 0.5 ms"
    return [
        Finding(
            "python", "version", "ok" if usual else "warning", f"{kind} {platform.python_version()}, {build}", mend
        ),
        Finding("python", "tidings", "ok", f"{metadata.version('tidings')} in {Path(__file__).parents[1]}"),
        Finding("python", "switch interval", "ok", interval),
        Finding(
            "python", "debug mode", "warning", "on: several times slower", "unset PYTHONDEVMODE, PYTHONASYNCIODEBUG"
        )
        if slow
        else Finding("python", "debug mode", "ok", "off"),
    ]


def sqlite() -> list[Finding]:
    import apsw

    from tidings.transports.sqlite import _check_library

    version = apsw.sqlite_lib_version()
    found = f"SQLite {version}, of apsw {apsw.apsw_version()}"
    try:
        _check_library(version)
    except UnsafeLibrary as error:
        return [Finding("python", "sqlite", "wrong", f"{found}: {error.why}", error.mend)]
    return [Finding("python", "sqlite", "ok", f"{found}: safe")]


def extras() -> list[Finding]:
    """What the optional features need, and whether it is there."""
    wanted: dict[str, list[tuple[str, str]]] = {}
    for line in metadata.requires("tidings") or ():
        if (need := NEEDS.fullmatch(line)) and need["extra"] not in OTHERS:
            wanted.setdefault(need["extra"], []).append((need["name"], need["versions"]))
    return [_extra(name, needs) for name, needs in wanted.items()]


def _extra(extra: str, needs: list[tuple[str, str]]) -> Finding:
    command = f"pip install 'tidings[{extra}]'"
    installed = {name: _version(name) for name, _ in needs}
    if not all(installed.values()):
        return Finding("extras", extra, "ok", f"not installed; if you need it: {command}")
    found = ", ".join(f"{name} {version}" for name, version in installed.items())
    old = [name for name, versions in needs if _numbers(installed[name]) < _numbers(_least(versions))]
    if old:
        needed = ", ".join(f"{name}{versions}" for name, versions in needs if name in old)
        return Finding("extras", extra, "warning", f"{found}; needed is {needed}", f"{command} --upgrade")
    return Finding("extras", extra, "ok", found)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _least(versions: str) -> str:
    found = re.search(r">=\s*([\d.]+)", versions)
    return found[1] if found else "0"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def limits() -> list[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    few = files != resource.RLIM_INFINITY and files < LEAST_FILES
    return [
        Finding("limits", "open files", "warning", str(files), f"ulimit -n {LEAST_FILES}, or LimitNOFILE= of systemd")
        if few
        else Finding("limits", "open files", "ok", limit(files)),
        Finding("limits", "file size", "ok", limit(largest))
        if largest == resource.RLIM_INFINITY
        else Finding("limits", "file size", "warning", size(largest), "ulimit -f unlimited: a bus file may not grow"),
    ]


def limit(value: float) -> str:
    return "unlimited" if value in (resource.RLIM_INFINITY, math.inf) else f"{value:,g}"


def size(count: float) -> str:
    """Bytes as people write them."""
    for unit, scale in (("TiB", 2**40), ("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.4g} {unit}"
    return f"{count:.0f} bytes"


def _text(path: str) -> str:
    """What a file of the system says; nothing where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
