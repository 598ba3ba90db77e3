"""``tidings peek``."""

from __future__ import annotations

import asyncio
from typing import Annotated

from cyclopts import Parameter

from tidings.kernel.errors import NotFound, nearest
from tidings.kernel.topics import check_pattern, is_pattern, matches
from tidings.kernel.transport import Inspectable, Stored

from . import show
from ._bus import Source, find_source, inspectable, opened
from ._filters import Headers, Key, Since, Where, checked_limit, filters
from ._options import Json, Url, flag
from ._scan import Scan, Wanted, all_of


def peek(
    topic: Annotated[str, Parameter(help="A topic, or a pattern: * is one token, a last > one or more.")],
    /,
    *,
    limit: Annotated[int, Parameter(help="At most so many.")] = 10,
    oldest: Annotated[bool, flag("The oldest, instead of the newest.")] = False,
    key: Key = None,
    header: Headers = [],  # noqa: B006
    since: Since = None,
    where: Where = [],  # noqa: B006
    url: Url = None,
    json: Json = False,
) -> None:
    """Show retained messages, the newest unless you say otherwise. Delivery is not disturbed: nobody misses one.

    Options exclude: a message is shown if it is what all of them say. With --json: a list, under CloudEvents names.
    """
    pattern, limit = check_pattern(topic), checked_limit(limit)
    tests = filters(key, header, since, where)
    scan, found = asyncio.run(_peek(find_source(url), pattern, limit, oldest, tests))
    if json:
        show.document([show.event(stored.message) for stored in found])
    else:
        for stored in found:
            show.message(stored.message)
    show.note(str(scan) if found or not scan.total else f"{scan}; none is what the options say")


async def _peek(
    source: Source, pattern: str, limit: int, oldest: bool, tests: list[Wanted]
) -> tuple[Scan, list[Stored]]:
    async with opened(source) as app:
        bus = inspectable(app.bus())
        scan = Scan(bus, pattern)
        if oldest:
            found = await scan.first(all_of(tests), limit)
        elif tests:
            found = await scan.last(all_of(tests), limit)
        else:
            found = await scan.tip(limit)
        if not scan.total and not found:
            await refuse_unknown(bus, pattern)
        return scan, found


async def refuse_unknown(bus: Inspectable, pattern: str) -> None:
    """Raises ``NotFound``, with the nearest, for a topic of which nothing is retained and that no group reads."""
    if is_pattern(pattern) or any(matches(group.pattern, pattern) for group in await bus.groups()):
        return
    names = [topic.name for topic in await bus.topics(f"{pattern.partition('.')[0]}.>" if pattern[0] == "_" else ">")]
    mend = nearest(pattern, names) or "`tidings topics` lists those there are"
    raise NotFound(f"nothing is retained of {pattern!r}", mend=mend)
