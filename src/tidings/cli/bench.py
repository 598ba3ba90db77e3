"""``tidings bench``."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

from cyclopts import Parameter

from tidings.kernel.errors import InvalidOption

from . import show
from ._bus import Source, file_of, find_source
from ._options import Json, Url
from ._speed import PARTS, STAMP, Left, Measured, Speed

COLUMNS = ("measured", "msg/s", "MB/s", *(f"{part} ms" for part in PARTS))


def bench(
    bus: Annotated[str | None, Parameter(name="URL", help="The bus; or give --url.")] = None,
    /,
    *,
    seconds: Annotated[float, Parameter(help="How long each of the five measurements takes, at most.")] = 2.0,
    size: Annotated[int, Parameter(help="Bytes of a message's body.")] = 200,
    url: Url = None,
    json: Json = False,
) -> None:
    """Measure how fast a bus is here, from one process: publish, consume, both, and the delay at a fixed load.

    It publishes on topics of its own, and drops its group afterwards. On SQLite the messages stay until retention
    drops them; a bus whose groups listen to everything is refused.
    """
    if bus is not None and url is not None:
        raise InvalidOption("URL and --url exclude each other", mend="drop one")
    if not 0.1 <= seconds <= 600:
        raise InvalidOption(f"--seconds cannot be {seconds:g}", mend="0.1 to 600")
    if size < STAMP.size:
        mend = f"at least {STAMP.size}: a message carries the moment it was due"
        raise InvalidOption(f"--size cannot be {size}", mend=mend)
    asyncio.run(_bench(Source(bus, "URL") if bus is not None else find_source(url), size, seconds, json))


async def _bench(source: Source, size: int, seconds: float, json: bool) -> None:
    options = source.options()
    file = file_of(options)
    created = file is not None and not file.exists()
    speed = Speed(options, size, seconds, _progress)
    show.note(f"measuring {source}: bodies of {size:,} bytes, up to {seconds:g} s each")
    try:
        measured = await speed.measure()
    finally:
        _progress("")
        if file is None or file.exists():
            left = await speed.clean_up()
            _tell_left(left, source, created)
    if json:
        about = {"url": str(source), "size": size, "durable": speed.durable}
        show.document({**about, "results": [_result(one, size) for one in measured], "left": left})
    else:
        show.table(COLUMNS, [_row(one, size) for one in measured], right=COLUMNS[1:])


def _result(one: Measured, size: int) -> dict[str, Any]:
    figures = {"messages": one.messages, "seconds": round(one.seconds, 3), "rate": round(one.rate, 1)}
    delays = {part: round(delay, 3) for part, delay in one.delays.items()}
    return {"measured": one.name, **figures, "megabytes": round(one.rate * size / 1e6, 3), "delays_ms": delays}


def _row(one: Measured, size: int) -> list[str]:
    delays = [f"{one.delays[part]:.2f}" if part in one.delays else "" for part in PARTS]
    return [one.name, f"{one.rate:,.0f}", f"{one.rate * size / 1e6:,.1f}", *delays]


def _tell_left(left: Left, source: Source, created: bool) -> None:
    if created:
        show.note(f"{source} was made for this; delete it when you are done")
    elif left.messages is None:
        show.note(f"what was published on {left.topics} stays on {source}: this bus cannot be looked into")
    elif left.messages:
        show.note(f"{left.messages:,} messages on {left.topics} stay on {source} until retention drops them")
    for group in left.groups:
        show.note(f"group {group} stays: this bus does not let its groups be dropped")


def _progress(line: str) -> None:
    """A line that is written over, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
