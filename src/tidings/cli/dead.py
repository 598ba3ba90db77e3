"""``tidings dead``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter
from msgspec.structs import replace

from tidings import App, Message
from tidings.kernel.dead import original_headers
from tidings.kernel.errors import InvalidOption, NotFound, nearest
from tidings.kernel.topics import DEAD, check_topic
from tidings.kernel.transport import Inspectable
from tidings.letters import DeadLetter, fold, marker, revived

from . import show
from ._bus import Source, find_source, inspectable, opened, retained
from ._options import DryRun, Json, Url, flag
from .groups import unknown

app = cyclopts.App(name="dead", help="Dead letters: list, show, replay.")

BATCH = 500

Group = Annotated[str | None, Parameter(name="--group", help="Only those of this group.")]


def checked(group: str | None) -> str | None:
    """A group's name, if it can be one."""
    return group if group is None else check_topic(group)


def group_of(letter: DeadLetter) -> str:
    """The group that failed."""
    return letter.message.header("tdggroup") or letter.message.destination.removeprefix(DEAD)


def kind_of(letter: DeadLetter) -> str:
    """What it died of, in a word: the exception's type, or else the reason."""
    return letter.error or letter.reason


def detail_of(letter: DeadLetter) -> str:
    """The text of its exception, without the type."""
    return letter.message.header("tdgdetail").removeprefix(f"{letter.error}: ")


def died_at(letter: DeadLetter) -> float:
    try:
        return float(letter.message.header("tdgdeadat"))
    except ValueError:
        return letter.message.time


async def letters_of(bus: Inspectable, group: str | None) -> list[DeadLetter]:
    """All dead letters, or those of one group, oldest first. Raises ``NotFound`` for a group nobody ever heard of."""
    found = fold([stored async for stored in retained(bus, DEAD + (group or ">"))])
    if group is not None and not found and not await bus.groups(group):
        raise await unknown(bus, group)
    return found


# -- ls


@app.command
def ls(
    group: Annotated[str | None, Parameter(help="Only those of this group.")] = None,
    /,
    *,
    all: Annotated[bool, flag("List each, also those that were replayed.")] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """List dead letters: for each group and error how many, the newest, and one as an example."""
    found = asyncio.run(_load(find_source(url), checked(group)))
    if json:
        show.document([summary(letter) for letter in found] if all else _counted(found))
    elif not found:
        show.note("no dead letters")
    elif all:
        _list_each(found)
    else:
        _list_counted(found)


async def _load(source: Source, group: str | None) -> list[DeadLetter]:
    async with opened(source) as opened_app:
        return await letters_of(inspectable(opened_app.bus()), group)


def summary(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter in a list."""
    return {
        "position": letter.position,
        "id": letter.message.id,
        "group": group_of(letter),
        "topic": letter.message.topic,
        "key": letter.message.key,
        "reason": letter.reason,
        "error": letter.error,
        "detail": detail_of(letter),
        "died": show.stamp(died_at(letter)),
        "mark": letter.mark,
    }


def _counted(letters: Sequence[DeadLetter]) -> list[dict[str, Any]]:
    piles: dict[tuple[str, str], list[DeadLetter]] = {}
    for letter in letters:
        piles.setdefault((group_of(letter), kind_of(letter)), []).append(letter)
    counted = []
    for (group, kind), pile in sorted(piles.items()):
        waiting = [letter for letter in pile if not letter.mark]
        newest = max(waiting or pile, key=died_at)
        counted.append(
            {
                "group": group,
                "error": kind,
                "reason": newest.reason,
                "dead": len(waiting),
                "replayed": len(pile) - len(waiting),
                "newest": show.stamp(died_at(newest)),
                "example": newest.message.id,
                "position": newest.position,
                "detail": detail_of(newest),
            }
        )
    return counted


def _list_counted(letters: Sequence[DeadLetter]) -> None:
    newest = {letter.position: died_at(letter) for letter in letters}
    rows = [
        [
            row["group"],
            row["error"],
            str(row["dead"]),
            str(row["replayed"]),
            f"{show.ago(newest[row['position']])} ago",
            row["example"],
            _short(row["detail"]),
        ]
        for row in _counted(letters)
    ]
    columns = ("group", "error", "dead", "replayed", "newest", "example", "detail")
    show.table(columns, rows, right=("dead", "replayed"))


def _list_each(letters: Sequence[DeadLetter]) -> None:
    rows = [
        [
            str(letter.position),
            letter.message.id,
            group_of(letter),
            letter.message.topic,
            kind_of(letter),
            f"{show.ago(died_at(letter))} ago",
            letter.mark,
            _short(detail_of(letter)),
        ]
        for letter in letters
    ]
    show.table(("position", "id", "group", "topic", "error", "died", "mark", "detail"), rows, right=("position",))


def _short(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 60 else f"{line[:59]}…"


# -- show


@app.command(name="show")
def show_letter(
    letter: Annotated[str, Parameter(help="Its id, the beginning of its id, or its position.")],
    /,
    *,
    group: Group = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Show all that is known of a dead letter: what it was, why it died, traceback, body."""
    found = asyncio.run(_find(find_source(url), letter, checked(group)))
    if json:
        user_headers = original_headers(found.message.headers)
        told = {name: value for name, value in found.message.headers or () if name.startswith("tdg")}
        event = show.event(replace(found.message, headers=user_headers))
        show.document({**summary(found), "told": told, "message": event})
    else:
        _print(found)


async def _find(source: Source, name: str, group: str | None) -> DeadLetter:
    async with opened(source) as opened_app:
        return named(await letters_of(inspectable(opened_app.bus()), group), name)


def named(letters: Sequence[DeadLetter], name: str) -> DeadLetter:
    """The dead letter of a position, an id, or the beginning of one. Of several deaths of a message: the last."""
    found = [letter for letter in letters if str(letter.position) == name]
    found = found or [letter for letter in letters if letter.message.id == name]
    found = found or [letter for letter in letters if len(name) >= 4 and letter.message.id.startswith(name)]
    places = {(letter.message.id, group_of(letter)) for letter in found}
    if len(places) > 1:
        listed = ", ".join(f"{letter.position} ({group_of(letter)})" for letter in found[:5])
        raise NotFound(f"{name!r} is {len(places)} dead letters", mend=f"give the position, or --group: {listed}")
    if not found:
        ids = [letter.message.id for letter in letters]
        raise NotFound(
            f"there is no dead letter {name!r}", mend=nearest(name, ids) or "`tidings dead ls --all` lists them"
        )
    return found[-1]


def _print(letter: DeadLetter) -> None:
    message, told = letter.message, letter.message.header
    facts = {
        "id": message.id,
        "position": str(letter.position),
        "group": group_of(letter),
        "topic": message.topic,
        "key": message.key,
        "published": f"{show.stamp(message.time)} by {message.source or 'somebody'}",
        "died": f"{show.stamp(died_at(letter))} on {told('tdghost')} ({show.ago(died_at(letter))} ago)",
        "reason": letter.reason,
        "error": f"{letter.error}: {detail_of(letter)}" if letter.error else "",
        "attempts": f"{told('tdgfailures', '0')} failed, {told('tdgcrashes', '0')} crashed",
        "mark": letter.mark,
        "type": message.type,
        "content": message.content_type,
        "correlation": message.correlation_id,
        "causation": message.causation_id,
    }
    for name, value in facts.items():
        if value:
            style = show.RED if name in ("reason", "error") else ""
            show.say(f"{show.styled(f'{name:<12}', show.BOLD)} {show.styled(show.clean(value), style)}")
    for name, value in original_headers(message.headers) or ():
        show.say(f"{show.styled('header      ', show.BOLD)} {show.clean(name)}={show.clean(value)}")
    if trace := told("tdgtraceback"):
        show.say(f"\n{show.clean(trace, chr(10)).rstrip()}")
    show.say(f"\n{show.body_pretty(message)}")


# -- replay


@app.command
def replay(
    *letters: Annotated[str, Parameter(help="Ids or positions.")],
    group: Group = None,
    all: Annotated[bool, flag("All that were not replayed yet.")] = False,
    error: Annotated[str | None, Parameter(help="All with this error, or this reason.")] = None,
    to: Annotated[str | None, Parameter(help="To this group instead: the one that failed was renamed.")] = None,
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Give dead letters back to the group that failed, and to nobody else.

    A dead letter stays where it is, marked as replayed.
    """
    if not letters and not all and error is None:
        raise InvalidOption(
            "which dead letters?", mend="ids or positions, --error TYPE, or --all (with --group: of a group)"
        )
    if letters and (all or error is not None):
        raise InvalidOption("ids and --all or --error exclude each other", mend="drop one")
    asyncio.run(_Replay(to, dry_run, json).run(find_source(url), letters, checked(group), error))


class _Replay:
    def __init__(self, to: str | None, dry_run: bool, json: bool) -> None:
        self.to, self.dry_run, self.json = to, dry_run, json

    async def run(self, source: Source, names: Sequence[str], group: str | None, error: str | None) -> None:
        async with opened(source) as opened_app:
            bus = inspectable(opened_app.bus())
            chosen = _chosen(await letters_of(bus, group), names, error)
            counts = await self._check_groups(bus, chosen)
            if not self.dry_run:
                for first in range(0, len(chosen), BATCH):
                    await self._replay(opened_app, chosen[first : first + BATCH])
        if self.json:
            replayed = [summary(letter) for letter in chosen]
            show.document(
                {"replayed": 0 if self.dry_run else len(chosen), "dry_run": self.dry_run, "letters": replayed}
            )
            return
        done = "would replay" if self.dry_run else "replayed"
        for name, count in counts.items():
            show.say(f"{done} {count:,} dead letter{'s' * (count != 1)} to {name}")
        if not chosen:
            show.say(f"{done} nothing")

    async def _check_groups(self, bus: Inspectable, chosen: Sequence[DeadLetter]) -> dict[str, int]:
        """How many go to which group; refuses a group that does not exist, warns of one without members."""
        known = {found.name: found for found in await bus.groups()}
        counts: dict[str, int] = {}
        for letter in chosen:
            name = self.to or group_of(letter)
            counts[name] = counts.get(name, 0) + 1
        for name, count in counts.items():
            if name not in known:
                why = f"nobody would receive the {count:,} messages"
                mend = f"{nearest(name, known)} ".lstrip() + "if it was renamed: --to NEW; if not: run its app once"
                raise NotFound(f"there is no group {name!r}", why=why, mend=mend)
            if not known[name].members:
                show.warn(f"{name} has no members now: the messages wait until its app runs")
        return counts

    async def _replay(self, opened_app: App, chosen: Sequence[DeadLetter]) -> None:
        """Message and marker in one publish where that is atomic; else the marker comes after."""
        sent: list[Message[Any]] = [revived(letter.message, self.to or group_of(letter)) for letter in chosen]
        marks = [marker(letter, group_of(letter), "replayed") for letter in chosen]
        if opened_app.bus().capabilities.publish_atomic:
            await opened_app.publish_many([*sent, *marks])
        else:
            await opened_app.publish_many(sent)
            await opened_app.publish_many(marks)


def _chosen(letters: Sequence[DeadLetter], names: Sequence[str], error: str | None) -> list[DeadLetter]:
    """The dead letters that were asked for, once each, without those that were replayed already."""
    if not names:
        waiting = [letter for letter in letters if not letter.mark]
        if error is None:
            return waiting
        kinds = {kind for letter in waiting for kind in (letter.error, letter.reason) if kind}
        if waiting and error not in kinds:
            listed = f"there is {', '.join(sorted(kinds)[:8])}"
            raise NotFound(f"no dead letter has error {error!r}", mend=nearest(error, kinds) or listed)
        return [letter for letter in waiting if error in (letter.error, letter.reason)]
    found = {letter.position: letter for letter in (named(letters, name) for name in names)}
    for letter in found.values():
        if letter.mark:
            why = "had it failed again, there would be a new dead letter"
            raise NotFound(f"dead letter {letter.position} was replayed already", why=why, mend="`tidings dead ls`")
    return list(found.values())
