"""What ``tidings doctor`` finds at a bus. Nothing is published, and a bus file that is not there is not made."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tidings.kernel.errors import BusError
from tidings.kernel.transport import Inspectable, Transport
from tidings.transports.sqlite import NETWORK, SQLite, file_system
from tidings.transports.sqlite import size as bytes_of

from . import in_our_shape, show
from ._bus import Source, configured, file_of, is_memory, opened
from ._findings import Finding, disk, size
from ._looks import unsettled

PATIENCE = 15.0  # seconds that a bus has for all of it: librdkafka gives up after 11
SLOW = 0.5  # seconds of a round trip
APART = 1.0  # seconds between two clocks
LARGE_WAL = 2**28  # bytes
NOBODY = "_tidings.doctor"  # no group is called so


async def bus(given: str | None) -> tuple[str, list[Finding]]:
    """The bus as it is shown, and what was found there."""
    try:
        source = configured(given)
        if source is None:
            how = "--url, or TIDINGS_URL, or [tool.tidings] url in pyproject.toml"
            return "", [Finding("bus", "url", "ok", f"none is configured: {how}")]
        options, shown = source.options(), str(source)
        file = file_of(options)
    except Exception as error:
        return "", [_wrong("url", error)]
    findings = [Finding("bus", "url", "ok", f"{shown}, from {source.origin}")]
    if is_memory(options):
        mend = "use sqlite:///file.db for what shall outlive a process"
        return shown, [*findings, Finding("bus", "reachable", "warning", "only within the app's own process", mend)]
    if file is not None and isinstance(options, SQLite):
        try:
            findings += _file(file, options)
            there = file.exists()
        except OSError as error:  # a name that is too long, a disk that fails
            return shown, [*findings, _wrong("file", error)]
        if not there or any(finding.state == "wrong" for finding in findings):
            return shown, findings
    await _ask(source, findings)
    return shown, findings


async def _ask(source: Source, findings: list[Finding]) -> None:
    """Open the bus and add what is found there, up to what goes wrong."""
    before, patience = len(findings), asyncio.timeout(PATIENCE)
    try:
        async with patience:
            async for finding in _asked(source):
                findings.append(finding)
    except Exception as error:
        name = "reachable" if len(findings) == before else "answers"  # one that was opened can be reached
        if patience.expired():
            mend = "is the server overloaded, or a firewall between?"
            findings.append(Finding("bus", name, "wrong", f"no answer within {PATIENCE:g} s", mend))
        else:
            findings.append(_wrong(name, error))


def _wrong(name: str, error: Exception) -> Finding:
    if os.environ.get("TIDINGS_DEBUG"):
        show.traceback_of(error)
    told = in_our_shape(error)
    found = f"{told.code}: {told.what}" + (f": {told.why}" if told.why else "")
    mend = "" if told.mend == BusError.mending else told.mend  # which sends to where we are
    return Finding("bus", name, "wrong", found, mend or f"`tidings explain {told.code}`")


# -- a bus that is a file


def _file(file: Path, options: SQLite) -> list[Finding]:
    if closed := _closed(file.parent):
        found = f"this user may not enter {closed}"
        return [Finding("bus", "rights", "wrong", found, f"chown or chmod {closed} and the files in it")]
    if not file.parent.is_dir():
        return [Finding("bus", "file", "wrong", f"there is no folder {file.parent}", f"mkdir -p {file.parent}")]
    kind = file_system(file.resolve())
    place = Finding("bus", "file system", "ok", kind or "unknown")
    if kind.startswith(NETWORK):
        found = f"{kind}: a network, where SQLite's locks do not work"
        place = Finding("bus", "file system", "wrong", found, "put the file on a local disk, or use a broker")
    elif kind in ("tmpfs", "ramfs"):
        place = Finding("bus", "file system", "warning", f"{kind}: gone after a restart", "put the file on a disk")
    return [place, _rights(file), *_sizes(file, options)]


def _closed(folder: Path) -> Path | None:
    """The topmost folder on the way to one that this user may not enter."""
    way = reversed((folder, *folder.parents))
    return next((path for path in way if os.path.isdir(path) and not os.access(path, os.X_OK)), None)


def _rights(file: Path) -> Finding:
    denied = [path for path in (file.parent, *_parts(file)) if not os.access(path, os.W_OK)]
    if denied:
        found = f"this user may not write {', '.join(map(str, denied))}"
        return Finding("bus", "rights", "wrong", found, f"chown or chmod {file.parent} and the files in it")
    public = [path.name for path in _parts(file) if path.stat().st_mode & stat.S_IWOTH]
    if public:
        return Finding("bus", "rights", "warning", f"everybody may write {', '.join(public)}", f"chmod o-w {file}*")
    return Finding("bus", "rights", "ok", "this user may write")


def _sizes(file: Path, options: SQLite) -> list[Finding]:
    if not file.exists():
        mend = "`tidings run` and `tidings publish` make it; is the folder right?"
        return [Finding("bus", "file", "warning", f"there is no {file} yet", mend), disk("bus", file.parent)]
    log, room = Path(f"{file}-wal"), disk("bus", file.parent)
    taken, waiting = file.stat().st_size, log.stat().st_size if log.exists() else 0
    most, free = bytes_of(options.max_size), shutil.disk_usage(file.parent).free
    if room.state == "ok" and taken + free < most:
        found = f"{room.found}, less than max_size leaves the file to grow"
        half = (taken + free) // 2 // 2**20  # the rest is for the write-ahead log, and for others on this disk
        room = Finding("bus", "disk", "warning", found, f"make room, or ?max_size={half}MiB")
    stuck = waiting > LARGE_WAL
    mend = "something reads the file without end: close it, or restart the app's processes" if stuck else ""
    return [
        Finding("bus", "file", "ok", f"{size(taken)}; max_size {size(most)}"),
        Finding("bus", "write-ahead log", "warning" if stuck else "ok", size(waiting), mend),
        room,
    ]


def _parts(file: Path) -> list[Path]:
    return [path for path in (file, Path(f"{file}-wal"), Path(f"{file}-shm")) if path.exists()]


# -- any bus


async def _asked(source: Source) -> AsyncIterator[Finding]:
    began = time.perf_counter()
    async with opened(source) as app:
        transport = app.bus()
        yield Finding("bus", "reachable", "ok", f"opened in {(time.perf_counter() - began) * 1e3:.0f} ms")
        if isinstance(transport, Inspectable):
            began = time.perf_counter()
            await transport.groups(NOBODY)
            took = time.perf_counter() - began
            found, mend = f"{took * 1e3:.1f} ms", "" if took < SLOW else "is it far away, or overloaded?"
            yield Finding("bus", "round trip", "ok" if took < SLOW else "warning", found, mend)
            yield await _groups(transport)
        yield await _clock(transport)
        yield Finding("limits", "payload", "ok", f"{size(transport.capabilities.max_payload)} on this bus")
        if retain := getattr(source.options(), "retain", None):
            yield Finding("limits", "retention", "ok", f"{retain}, and what groups still need")


async def _groups(transport: Inspectable) -> Finding:
    groups = await transport.groups()
    left = [group for group in groups if not group.members and unsettled(group)]
    if not left:
        return Finding("bus", "groups", "ok", f"{len(groups)}")
    waiting = sum(map(unsettled, left))
    names = ", ".join(group.name for group in left[:3]) + ", …" * (len(left) > 3)
    found = f"{len(groups)}; nobody is there for {waiting:,} messages of {names}"
    return Finding("bus", "groups", "warning", found, "start the app, or `tidings groups drop` what is gone for good")


async def _clock(transport: Transport) -> Finding:
    """This machine's clock beside the server's, where there is one that tells."""
    before = time.time()
    try:
        theirs = await _their_time(transport)
    except Exception as error:
        found = f"it may not be asked: {in_our_shape(error).what}"
        return Finding("clock", "bus", "warning", found, "compare it by hand: delays and leases go by these clocks")
    if theirs is None:
        return Finding("clock", "bus", "ok", "it has no clock of its own that can be asked")
    apart = theirs - (before + time.time()) / 2
    if abs(apart) < APART:
        return Finding("clock", "bus", "ok", f"{abs(apart) * 1e3:.0f} ms apart")
    found = f"the server's clock is {abs(apart):.1f} s {'ahead' if apart > 0 else 'behind'}"
    return Finding("clock", "bus", "warning", found, "let both be set by NTP: delays and leases go by these clocks")


async def _their_time(transport: Transport) -> float | None:
    """Asked through the native client: no transport has a need of it, so the interface does not have it."""
    client: Any = getattr(transport, "client", None)
    kind = type(transport).__name__
    if kind == "PostgresTransport":
        connection = await client()
        try:
            return float(await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())"))
        finally:
            await connection.close()
    if kind == "RedisTransport":
        told, micros = await client.time()
        return float(told) + float(micros) / 1e6
    return None
