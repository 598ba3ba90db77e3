"""EIP: Channel Purger. What waits for a group is skipped, or its dead letters are given up: ``tidings purge``."""

from __future__ import annotations

from msgspec.structs import replace

from tidings.app import App
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import NotFound, Unsupported, nearest
from tidings.kernel.topics import DEAD, check_topic
from tidings.kernel.transport import GroupInfo, Inspectable, Manageable, Stored, Transport
from tidings.letters import fold, marker

PAGE = 500  # messages looked at, and published, at once


async def purge(app: App, group: str, /, *, bus: str = "") -> int:
    """Let a group skip what waits for it; how many messages that were. EIP: Channel Purger.

    It goes on with what is published from now on. No process may be running it: open the app with ``app.connect()``.
    Nothing is erased: other groups still get all of it; what this one already tried and will try again stays with it,
    and so do its dead letters (``purge_dead``).

    Raises ``NotFound``; ``Unsupported`` for a bus on which a group cannot skip (SQLite and PostgreSQL can);
    ``BusError`` for a group that is at work.
    """
    transport = app.bus(bus)
    if not isinstance(transport, Manageable):
        raise _unsupported(transport)
    before = await _group(transport, check_topic(group))
    await transport.seek(group, current_clock().now())
    skipped = before.lag - (await _group(transport, group)).lag
    if before.lag and skipped <= 0:
        raise _unsupported(transport)
    return skipped


async def purge_dead(app: App, group: str, /, *, bus: str = "") -> int:
    """Give up a group's dead letters, those that were replayed too; how many there were. EIP: Channel Purger.

    They are marked, not erased: no list shows them any more and no replay finds them, but as long as the bus keeps
    them, they are in ``_dead.<group>``. Raises ``NotFound``; ``Unsupported`` for a bus that cannot.
    """
    transport = app.bus(bus)
    await _group(transport, check_topic(group))
    letters = fold(await _dead(transport, group))
    for first in range(0, len(letters), PAGE):
        some = letters[first : first + PAGE]
        await app.publish_many(replace(marker(letter, group, "purged"), bus=bus) for letter in some)
    return len(letters)


async def _group(transport: Transport, name: str) -> GroupInfo:
    if not isinstance(transport, Inspectable):
        raise _unsupported(transport)
    groups = {found.name: found for found in await transport.groups()}
    if name not in groups:
        raise NotFound(f"there is no group {name!r}", mend=nearest(name, groups) or "`tidings groups` lists them")
    return groups[name]


async def _dead(transport: Transport, group: str) -> list[Stored]:
    assert isinstance(transport, Inspectable)
    found: list[Stored] = []
    while page := await transport.peek(DEAD + group, found[-1].position if found else 0, PAGE):
        found += page
    return found


def _unsupported(transport: Transport) -> Unsupported:
    kind = type(transport).__name__.removesuffix("Transport")
    return Unsupported(f"{kind} does not let its groups be purged", mend="use the broker's own tools")
