"""``tidings topics``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter
from msgspec import Struct

from tidings.kernel.topics import check_pattern, matches
from tidings.kernel.transport import GroupInfo, Inspectable, TopicInfo

from . import show
from ._bus import Source, find_source, inspectable, opened
from ._looks import Look, checked_interval, reads, rounded, shown, topic_rate, topics_in
from ._options import Json, Url, flag
from ._scan import RESERVED
from .peek import refuse_unknown


class Listed(Struct):
    """A topic in the list. ``rate``: messages a second that came; None where it was not measured."""

    name: str
    messages: int
    newest: str | None
    readers: list[str]
    rate: float | None = None


def topics(
    pattern: Annotated[str, Parameter(help="Topics: * is one token, a last > one or more.")] = ">",
    /,
    *,
    rates: Annotated[bool, flag("Look twice, and say how many messages a second came.")] = False,
    interval: Annotated[str, Parameter(help="How long between the looks of --rates.")] = "1s",
    all: Annotated[bool, flag("Our own too: dead letters, private addresses, requests.")] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """List topics of which messages are retained.

    messages: how many are retained. newest: how long ago the last one came. readers: groups whose pattern it is in.
    in/s: how many came between two looks, so long apart as --interval says; empty when retention dropped some.
    """
    pattern, length = check_pattern(pattern), checked_interval(interval)
    found, ages = asyncio.run(_list(find_source(url), pattern, all, length if rates else None))
    if json:
        show.document(found)
    elif found:
        columns = ("topic", "messages", *(["in/s"] * rates), "newest", "readers")
        rows = [
            [topic.name, f"{topic.messages:,}", *([shown(topic.rate)] * rates), age, " ".join(topic.readers)]
            for topic, age in zip(found, ages, strict=True)
        ]
        show.table(columns, rows, right=("messages", "in/s"))
    else:
        show.note(f"nothing is retained of {pattern}")


async def _list(source: Source, pattern: str, all: bool, interval: float | None) -> tuple[list[Listed], list[str]]:
    async with opened(source) as app:
        bus = inspectable(app.bus())
        before = after = await _look(bus, pattern, all)
        if interval is not None:
            await asyncio.sleep(interval)
            after = await _look(bus, pattern, all)
        if not after.topics:
            await refuse_unknown(bus, pattern)
            if app.bus().capabilities.peek == "unavailable":
                show.note("this bus retains dead letters and nothing else: --all lists them")
        infos, groups = [after.topics[name] for name in sorted(after.topics)], await bus.groups()
        listed = [_listed(info, groups) for info in infos]
        for topic in listed if interval is not None else ():
            topic.rate = rounded(topic_rate(topic.name, before, after))
        return listed, [f"{show.ago(info.last)} ago" if info.last is not None else "" for info in infos]


async def _look(bus: Inspectable, pattern: str, all: bool) -> Look:
    """The topics in a pattern; with ``all``, a wildcard that comes first may stand for a reserved token too."""
    at, found = time.monotonic(), await topics_in(bus, [pattern])
    if all:
        reserved = await topics_in(bus, RESERVED)
        found |= {name: info for name, info in reserved.items() if matches(f"x.{pattern}", f"x.{name}")}
    return Look(at, found, {})


def _listed(info: TopicInfo, groups: Sequence[GroupInfo]) -> Listed:
    readers = [group.name for group in groups if reads(group, info.name)]
    return Listed(info.name, info.messages, show.stamp(info.last), readers)
