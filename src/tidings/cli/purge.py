"""``tidings purge``."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from cyclopts import Parameter

from tidings.kernel.errors import NotFound, Unsupported
from tidings.kernel.topics import check_topic
from tidings.kernel.transport import GroupInfo, Inspectable

from . import show
from ._asking import agreed
from ._bus import Source, find_source, inspectable, manageable, opened
from ._looks import reads
from ._options import DryRun, Json, Url, Yes
from .groups import named


def purge(
    name: Annotated[str, Parameter(help="The group.")],
    /,
    *,
    yes: Yes = False,
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Let a group skip what waits for it: it goes on with what is published from now on.

    No process may be running it. Nothing is erased: other groups still get all of it, and what this one already tried
    and will try again (parked) stays with it. Its dead letters stay too: `tidings dead purge`.
    """
    asyncio.run(_purge(find_source(url), check_topic(name), yes, dry_run, json))


async def _purge(source: Source, name: str, yes: bool, dry_run: bool, json: bool) -> None:
    async with opened(source) as app:
        bus = inspectable(app.bus())
        group = await _group(bus, name)
        done = "would skip" if dry_run else "skipped"
        if not dry_run and (yes or agreed(f"let {name} skip the {group.lag:,} messages that wait for it?")):
            await manageable(app.bus()).seek(name, time.time())
        elif not dry_run:
            done = "kept"
        now = await _group(bus, name)
    skipped = group.lag - now.lag if done == "skipped" else 0
    if json:
        show.document({"group": name, "waiting": group.lag, "skipped": skipped, "dry_run": dry_run, "left": now.lag})
        return
    count = skipped if done == "skipped" else group.lag
    parked = f"; {now.parked:,} wait for another attempt, and stay" if now.parked else ""
    show.say(f"{done} {count:,} message{'s' * (count != 1)} of {name}{parked}")


async def _group(bus: Inspectable, name: str) -> GroupInfo:
    """Raises ``Unsupported`` for a topic: its messages belong to all who read it."""
    try:
        return await named(bus, name)
    except NotFound:
        if not await bus.topics(name):
            raise
    readers = [group.name for group in await bus.groups() if reads(group, name)]
    why = "its messages are in a log that all groups read; retention drops what is old"
    mend = f"its groups can skip them: tidings purge {readers[0]}" if readers else "nobody reads it: nothing waits"
    raise Unsupported(f"{name} is a topic, and a topic cannot be purged", why=why, mend=mend)
