"""``tidings groups``."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import cyclopts
from cyclopts import Parameter
from msgspec.structs import asdict, replace

from tidings.kernel.errors import InvalidOption, NotFound, nearest
from tidings.kernel.topics import DEAD, check_pattern, check_topic, is_pattern
from tidings.kernel.transport import GroupInfo, Inspectable
from tidings.letters import fold

from . import show
from ._bus import Source, find_source, inspectable, manageable, opened, retained
from ._options import DryRun, Json, Url, Yes

app = cyclopts.App(name="groups", help="Groups: who waits for how much; rename, drop.")

NUMBERS = ("lag", "in flight", "parked", "dead", "members")


@app.default
def ls(
    pattern: Annotated[str, Parameter(help="Names of groups: shop.bill, or shop.> for all of an app.")] = ">",
    /,
    *,
    url: Url = None,
    json: Json = False,
) -> None:
    """List groups, the durable subscriptions of a bus.

    lag: messages not yet handed out. in flight: in a handler's hands. parked: waiting for another attempt.
    dead: dead letters not yet replayed. oldest: how long the first unsettled message has waited.
    """
    pattern = check_pattern(pattern)
    found = asyncio.run(_list(find_source(url), pattern))
    if json:
        show.document([{**asdict(group), "oldest": show.stamp(group.oldest)} for group in found])
    elif found:
        columns = ("group", "app", "pattern", *NUMBERS[:-1], "oldest", "members")
        show.table(columns, [_row(group) for group in found], right=NUMBERS)
    else:
        show.note("no groups yet: `tidings run` registers those of an app")


def _row(group: GroupInfo) -> list[str]:
    counts = [str(count) for count in (group.lag, group.in_flight, group.parked, group.dead)]
    return [group.name, group.app, group.pattern, *counts, show.ago(group.oldest), str(group.members)]


async def _list(source: Source, pattern: str) -> list[GroupInfo]:
    async with opened(source) as opened_app:
        bus = inspectable(opened_app.bus())
        found = [await _with_open_letters(bus, group) for group in await bus.groups(pattern)]
        if not found and not is_pattern(pattern):
            raise await unknown(bus, pattern, ("rename", "drop"))
        return found


async def _with_open_letters(bus: Inspectable, group: GroupInfo) -> GroupInfo:
    """A bus counts what lies in the dead letters, markers and replayed ones too."""
    if not group.dead:
        return group
    letters = fold([stored async for stored in retained(bus, DEAD + group.name)])
    return replace(group, dead=sum(not letter.mark for letter in letters))


async def unknown(bus: Inspectable, name: str, others: tuple[str, ...] = ()) -> NotFound:
    """An error that names the nearest group."""
    names = [group.name for group in await bus.groups()]
    same_app = sorted(known for known in names if known.startswith(f"{name}."))
    mend = f"{name}.> for all of them" if same_app else nearest(name, [*names, *others])
    mend = mend or (f"there is {', '.join(names[:8])}" if names else "there are none yet")
    return NotFound(f"there is no group {name!r}", mend=mend)


@app.command
def rename(
    old: Annotated[str, Parameter(help="The group as it is called on the bus.")],
    new: Annotated[str, Parameter(help="What its handler is called now: <app>.<function>.")],
    /,
    *,
    url: Url = None,
    json: Json = False,
) -> None:
    """Rename a group whose function was renamed: it keeps its place and its backlog.

    No process may be running it.
    """
    check_topic(new)
    asyncio.run(_rename(find_source(url), old, new))
    if json:
        show.document({"renamed": old, "to": new})
    else:
        show.say(f"renamed {old} to {new}")


async def _rename(source: Source, old: str, new: str) -> None:
    async with opened(source) as opened_app:
        await manageable(opened_app.bus()).rename(old, new)


@app.command
def drop(
    name: Annotated[str, Parameter(help="The group.")],
    /,
    *,
    yes: Yes = False,
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Drop a group: what waits for it will never be handled. Its dead letters stay.

    No process may be running it.
    """
    asyncio.run(_drop(find_source(url), name, yes, dry_run, json))


async def _drop(source: Source, name: str, yes: bool, dry_run: bool, json: bool) -> None:
    async with opened(source) as opened_app:
        bus = opened_app.bus()
        found = [group for group in await inspectable(bus).groups() if group.name == name]
        if not found:
            raise await unknown(inspectable(bus), name)
        waiting = found[0].lag + found[0].in_flight + found[0].parked
        if dry_run:
            done = "would drop"
        elif yes or _agreed(f"drop {name}, and the {waiting:,} messages that wait for it?"):
            await manageable(bus).drop(name)
            done = "dropped"
        else:
            done = "kept"
    if json:
        show.document({"group": name, "waiting": waiting, "dropped": done == "dropped"})
    else:
        show.say(f"{done} {name}; {waiting:,} messages wait for it" if done != "dropped" else f"dropped {name}")


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise InvalidOption("nobody is there to be asked", mend="--yes, or --dry-run to see what would be done")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
