"""``tidings groups``."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import suppress
from typing import Annotated, Any

import cyclopts
import msgspec
from cyclopts import Parameter
from msgspec.structs import asdict, replace

from tidings import App
from tidings.control import Standing, standing
from tidings.kernel.errors import BusError, NotFound, nearest
from tidings.kernel.topics import DEAD, check_pattern, check_topic, is_pattern
from tidings.kernel.transport import GroupInfo, Inspectable, Transport
from tidings.letters import fold

from . import show
from ._asking import agreed
from ._bus import Source, find_source, inspectable, manageable, opened, retained
from ._looks import Look, Rates, checked_interval, group_rates, look, rounded, shown, unsettled
from ._options import DryRun, Json, Url, Yes, flag
from ._retiring import at_rest, check_retired
from ._target import find_app

app = cyclopts.App(name="groups", help="Groups: who waits for how much; rename, retire, drop.")

NUMBERS = ("lag", "in flight", "parked", "dead", "in/s", "out/s", "members")
OTHERS = ("rename", "retire", "drop")


@app.default
def ls(
    pattern: Annotated[str, Parameter(help="Names of groups: shop.bill, or shop.> for all of an app.")] = ">",
    /,
    *,
    rates: Annotated[bool, flag("Look twice, and say how many messages a second come and are settled.")] = False,
    watch: Annotated[bool, flag("Look again and again, with rates. Ctrl-C ends.")] = False,
    interval: Annotated[str, Parameter(help="How long between the looks of --rates and --watch.")] = "1s",
    url: Url = None,
    json: Json = False,
) -> None:
    """List groups, the durable subscriptions of a bus.

    lag: messages not yet handed out. in flight: in a handler's hands. parked: waiting for another attempt.
    dead: dead letters not yet replayed. oldest: how long the first unsettled message has waited.
    paused: by whom, where a group is. in/s: messages that came between two looks; out/s: those that were settled; empty
    where that cannot be told.
    """
    pattern, length = check_pattern(pattern), checked_interval(interval)
    asyncio.run(_list(find_source(url), pattern, length if rates or watch else None, watch, json))


async def _list(source: Source, pattern: str, interval: float | None, watch: bool, json: bool) -> None:
    async with opened(source) as opened_app:
        bus, before = opened_app.bus(), None
        if interval is not None and not watch:
            before = await _look(bus, pattern)
            await asyncio.sleep(interval)
        now = await _look(bus, pattern)
        if not now.groups and not is_pattern(pattern):
            raise await unknown(inspectable(bus), pattern, OTHERS)
        if interval is not None and not now.counted:
            show.note("no rates: this bus does not tell how much was published")
        if watch and interval is not None:
            await _watch(bus, pattern, now, interval, json)
        elif json:
            show.document(_documents(before, now, interval is not None))
        elif now.groups:
            columns, rows = _table(before, now, interval is not None)
            show.table(columns, rows, right=NUMBERS)
        else:
            show.note("no groups yet: `tidings run` registers those of an app")


async def _look(transport: Transport, pattern: str) -> Look:
    seen, bus = await look(transport, pattern), inspectable(transport)
    return seen._replace(groups={name: await _with_open_letters(bus, group) for name, group in seen.groups.items()})


async def _watch(bus: Transport, pattern: str, now: Look, interval: float, json: bool) -> None:
    """Each look as a table over the one before; in a pipe one after the other; as JSON a line each."""
    before: Look | None = None
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    with show.live() as draw:
        while True:
            at = time.time()
            if json:
                line = {"time": show.stamp(at), "groups": _documents(before, now, True)}
                show.say(msgspec.json.encode(line).decode())
            else:
                columns, rows = _table(before, now, True)
                if not show.terminal(sys.stdout):
                    columns, rows = ["time", *columns], [[show.clock(at), *row] for row in rows]
                draw(columns, rows, NUMBERS)
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await stopped.wait()
            if stopped.is_set():
                return
            before, now = now, await _look(bus, pattern)


def _documents(before: Look | None, now: Look, rates: bool) -> list[dict[str, Any]]:
    documents = []
    for name, group in now.groups.items():
        holds = now.ordered.get(name, Standing())
        paused = {"paused": holds.paused, "paused_by": holds.by if holds.paused else None}
        documents.append({**asdict(group), "oldest": show.stamp(group.oldest), **paused})
        if rates:
            speed = group_rates(name, before, now) if before is not None else Rates(None, None)
            documents[-1] |= {"rate_in": rounded(speed.came), "rate_out": rounded(speed.settled)}
    return documents


def _table(before: Look | None, now: Look, rates: bool) -> tuple[list[str], list[list[str]]]:
    """Columns and rows."""
    speeds = ["in/s", "out/s"] if rates else []
    paused = {name: holds.by for name, holds in now.ordered.items() if holds.paused and name in now.groups}
    last = ["oldest", "members", *(["paused"] if paused else [])]
    columns = ["group", "app", "pattern", *NUMBERS[:4], *speeds, *last]
    rows = []
    for name, group in now.groups.items():
        speed = group_rates(name, before, now) if before is not None else Rates(None, None)
        counts = [str(count) for count in (group.lag, group.in_flight, group.parked, group.dead)]
        measured = [shown(speed.came), shown(speed.settled)] if rates else []
        state = [f"by {paused[name]}" if name in paused else ""] if paused else []
        about = [show.ago(group.oldest), str(group.members), *state]
        rows.append([name, group.app, group.pattern, *counts, *measured, *about])
    return columns, rows


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
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Rename a group whose function was renamed: it keeps its place and its backlog.

    No process may be running it.
    """
    check_topic(new)
    asyncio.run(_rename(find_source(url), old, new, dry_run))
    if json:
        show.document({"renamed": old, "to": new, "dry_run": dry_run})
    else:
        show.say(f"{'would rename' if dry_run else 'renamed'} {old} to {new}")


async def _rename(source: Source, old: str, new: str, dry_run: bool) -> None:
    async with opened(source) as opened_app:
        bus = manageable(opened_app.bus())
        groups = inspectable(opened_app.bus())
        group = await named(groups, old)
        if (await standing(opened_app.bus(), group.app)).get(old, Standing()).paused:
            show.warn(f"{old} is paused, and {new} will not be: `tidings pause {new}` once it runs")
        if not dry_run:
            await bus.rename(old, new)
            return
        at_rest(group)
        if new in [group.name for group in await groups.groups()]:
            raise BusError(f"group {new!r} exists", mend=f"drop it first, or drop {old!r}")


@app.command
def retire(
    name: Annotated[str, Parameter(help="The group.")],
    /,
    *,
    code: Annotated[str | None, Parameter(name="--app", help="Its app's code: module:app, or path/file.py.")] = None,
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Drop a group that no handler of its app has any more; refuses what would lose a message.

    That no handler has it is seen in the app's code (--app), or from the app itself: it runs, and not for this group.
    Nothing may wait for it: `groups rename` keeps what does, `groups drop` gives it up. Its dead letters stay.
    """
    letters = asyncio.run(_retire(find_source(url), name, find_app(code) if code is not None else None, dry_run))
    if json:
        show.document({"group": name, "retired": not dry_run, "dry_run": dry_run, "dead": letters})
    else:
        show.say(f"{'would retire' if dry_run else 'retired'} {name}")
    if letters:
        stay = f"its {letters:,} dead letters stay" if letters > 1 else "its dead letter stays"
        show.note(f"{stay}: tidings dead replay --all --group {name} --to OTHER")


async def _retire(source: Source, name: str, code: App | None, dry_run: bool) -> int:
    """How many dead letters it leaves."""
    async with opened(source) as opened_app:
        bus = inspectable(opened_app.bus())
        group = await named(bus, name)
        check_retired(group, await bus.groups(), code)
        if not dry_run:
            await manageable(opened_app.bus()).drop(name)
        return (await _with_open_letters(bus, group)).dead


async def named(bus: Inspectable, name: str) -> GroupInfo:
    """The group of this name. Raises ``NotFound``."""
    for group in await bus.groups():
        if group.name == name:
            return group
    raise await unknown(bus, name)


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
        waiting = unsettled(await named(inspectable(bus), name))
        if dry_run:
            done = "would drop"
        elif yes or agreed(f"drop {name}, and the {waiting:,} messages that wait for it?"):
            await manageable(bus).drop(name)
            done = "dropped"
        else:
            done = "kept"
    if json:
        show.document({"group": name, "waiting": waiting, "dropped": done == "dropped"})
    else:
        show.say(f"{done} {name}; {waiting:,} messages wait for it" if done != "dropped" else f"dropped {name}")
