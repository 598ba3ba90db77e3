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
from tidings.kernel.errors import NotFound, PublishFailed, nearest
from tidings.kernel.transport import Inspectable
from tidings.letters import DeadLetter, marker, revived

from . import show
from ._asking import agreed
from ._bus import Source, find_source, inspectable, opened
from ._editing import edited
from ._letters import (
    Filter,
    check_chosen,
    chosen,
    detail_of,
    died_at,
    filtered,
    fingerprint,
    group_of,
    kind_of,
    named,
    place_of,
    summary,
)
from ._options import DryRun, Json, Url, Yes, flag
from ._progress import Progress

app = cyclopts.App(name="dead", help="Dead letters: list, show, edit, replay, purge.")

BATCH = 500

Group = Annotated[str | None, Parameter(name="--group", help="Only those of this group.")]
Error = Annotated[str | None, Parameter(name="--error", help="Only those with this type of error, or this reason.")]
Fingerprint = Annotated[
    str | None, Parameter(name="--fingerprint", help="Only those that died of the same: `dead ls` shows it.")
]
Since = Annotated[
    str | None,
    Parameter(name="--since", help="Only those that died since then: -1h, or a time.", allow_leading_hyphen=True),
]
To = Annotated[str | None, Parameter(name="--to", help="To this group instead: the one that failed was renamed.")]


# -- ls


@app.command
def ls(
    group: Annotated[str | None, Parameter(help="Only those of this group.")] = None,
    /,
    *,
    error: Error = None,
    fingerprint: Fingerprint = None,
    since: Since = None,
    all: Annotated[bool, flag("List each, also those that were replayed.")] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """List dead letters by what they died of: how many, the first, the last, and one as an example.

    Those with one fingerprint failed in the same group, at the same line of your code, with the same type of error.
    """
    found = asyncio.run(_load(find_source(url), filtered(group, error, fingerprint, since)))
    if json:
        show.document([summary(letter) for letter in found] if all else [_counted(pile) for pile in _piles(found)])
    elif not found:
        show.note("no dead letters")
    elif all:
        _list_each(found)
    else:
        columns = ("fingerprint", "group", "error", "where", "dead", "replayed", "first", "last", "example")
        show.table(columns, [_row(pile) for pile in _piles(found)], right=("dead", "replayed"))


async def _load(source: Source, filter: Filter) -> list[DeadLetter]:
    async with opened(source) as opened_app:
        return await filter.letters(inspectable(opened_app.bus()))


def _piles(letters: Sequence[DeadLetter]) -> list[list[DeadLetter]]:
    """Those of one fingerprint together, from the first to die to the last; the latest pile last."""
    piles: dict[str, list[DeadLetter]] = {}
    for letter in sorted(letters, key=died_at):
        piles.setdefault(fingerprint(letter), []).append(letter)
    return sorted(piles.values(), key=lambda pile: died_at(pile[-1]))


def _counted(pile: Sequence[DeadLetter]) -> dict[str, Any]:
    waiting = [letter for letter in pile if not letter.mark]
    example = (waiting or pile)[-1]
    return {
        "fingerprint": fingerprint(example),
        "group": group_of(example),
        "error": kind_of(example),
        "reason": example.reason,
        "place": place_of(example)[0],
        "dead": len(waiting),
        "replayed": len(pile) - len(waiting),
        "first": show.stamp(died_at(pile[0])),
        "last": show.stamp(died_at(pile[-1])),
        "example": example.message.id,
        "position": example.position,
        "detail": detail_of(example),
    }


def _row(pile: Sequence[DeadLetter]) -> list[str]:
    told = _counted(pile)
    error = f"{told['error']}: {told['detail']}" if told["detail"] else told["error"]
    counts = [str(told["dead"]), str(told["replayed"])]
    ages = [f"{show.ago(died_at(letter))} ago" for letter in (pile[0], pile[-1])]
    return [told["fingerprint"], told["group"], _short(error), told["place"], *counts, *ages, told["example"]]


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
    found = asyncio.run(_find(find_source(url), letter, filtered(group, None, None, None)))
    if json:
        user_headers = original_headers(found.message.headers)
        told = {name: value for name, value in found.message.headers or () if name.startswith("tdg")}
        event = show.event(replace(found.message, headers=user_headers))
        show.document({**summary(found), "told": told, "message": event})
    else:
        _print(found)


async def _find(source: Source, name: str, filter: Filter) -> DeadLetter:
    async with opened(source) as opened_app:
        return named(await filter.letters(inspectable(opened_app.bus())), name)


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


# -- edit


@app.command
def edit(
    letter: Annotated[str, Parameter(help="Its id, the beginning of its id, or its position.")],
    /,
    *,
    body: Annotated[str | None, Parameter(help="The body it should have had.", allow_leading_hyphen=True)] = None,
    file: Annotated[str | None, Parameter(help="The body is in this file; - is standard input.")] = None,
    group: Group = None,
    to: To = None,
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Mend the body of a dead letter, and replay it: in $EDITOR, or with --body or --file.

    JSON must stay JSON, and text text. It keeps its id, topic, key and headers; the dead letter stays as it was,
    marked as edited.
    """
    asyncio.run(
        _edit(find_source(url), letter, filtered(group, None, None, None), body, file, _Replay(to, dry_run, json))
    )


async def _edit(source: Source, name: str, filter: Filter, body: str | None, file: str | None, replay: _Replay) -> None:
    async with opened(source) as opened_app:  # it is not kept open while somebody types
        bus = inspectable(opened_app.bus())
        found = chosen(await filter.letters(bus), (name,))
        await replay.check_groups(bus, found)
    (letter,) = found
    async with edited(letter.message, body, file, replay.dry_run) as changed:
        if changed == letter.message.body:
            show.note("nothing was changed, nothing is replayed")
        else:
            await replay.run(source, (str(letter.position),), filter, changed)


# -- replay


@app.command
def replay(
    *letters: Annotated[str, Parameter(help="Ids or positions.")],
    group: Group = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    since: Since = None,
    all: Annotated[bool, flag("All that were not replayed yet.")] = False,
    to: To = None,
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Give dead letters back to the group that failed, and to nobody else.

    A dead letter stays where it is, marked as replayed.
    """
    filter = filtered(group, error, fingerprint, since)
    check_chosen(letters, filter, all)
    asyncio.run(_Replay(to, dry_run, json).run(find_source(url), letters, filter))


class _Replay:
    """``body``: what they should have had, if it was another."""

    def __init__(self, to: str | None, dry_run: bool, json: bool) -> None:
        self.to, self.dry_run, self.json = to, dry_run, json
        self.warned = set[str]()

    async def run(self, source: Source, names: Sequence[str], filter: Filter, body: bytes | None = None) -> None:
        async with opened(source) as opened_app:
            bus = inspectable(opened_app.bus())
            found = chosen(await filter.letters(bus), names)
            counts = await self.check_groups(bus, found)
            if not self.dry_run:
                with Progress("replayed", len(found)) as progress:
                    for first in range(0, len(found), BATCH):
                        some = found[first : first + BATCH]
                        await self._replay(opened_app, some, body)
                        progress(first + len(some), first + len(some))
        if self.json:
            replayed = [summary(letter) for letter in found]
            show.document({"replayed": 0 if self.dry_run else len(found), "dry_run": self.dry_run, "letters": replayed})
            return
        done = "would replay" if self.dry_run else "replayed"
        for name, count in counts.items():
            show.say(f"{done} {_many(count)} to {name}")
        if not found:
            show.say(f"{done} nothing")

    async def check_groups(self, bus: Inspectable, found: Sequence[DeadLetter]) -> dict[str, int]:
        """How many go to which group; refuses a group that does not exist, warns once of one without members."""
        known = {info.name: info for info in await bus.groups()}
        counts: dict[str, int] = {}
        for letter in found:
            name = self.to or group_of(letter)
            counts[name] = counts.get(name, 0) + 1
        for name, count in counts.items():
            if name not in known:
                why = f"nobody would receive the {count:,} messages"
                mend = f"{nearest(name, known)} ".lstrip() + "if it was renamed: --to NEW; if not: run its app once"
                raise NotFound(f"there is no group {name!r}", why=why, mend=mend)
            if not known[name].members and name not in self.warned:
                self.warned.add(name)
                show.warn(f"{name} has no members now: the messages wait until its app runs")
        return counts

    async def _replay(self, opened_app: App, found: Sequence[DeadLetter], body: bytes | None) -> None:
        """Message and marker in one publish where that is atomic; else the marker comes after."""
        sent: list[Message[Any]] = [revived(letter.message, self.to or group_of(letter)) for letter in found]
        if body is not None:
            sent = [replace(message, body=body) for message in sent]
        marks = [marker(letter, group_of(letter), "replayed" if body is None else "edited") for letter in found]
        if opened_app.bus().capabilities.publish_atomic:
            await opened_app.publish_many([*sent, *marks])
        else:
            try:
                await opened_app.publish_many(sent)
            except PublishFailed as error:  # what was accepted is not replayed again by the next replay
                if error.accepted:
                    await opened_app.publish_many([marks[n] for n in error.accepted])
                    show.warn(f"{_many(len(error.accepted))} went to the group before that, and are marked")
                raise
            await opened_app.publish_many(marks)


def _many(count: int) -> str:
    return f"{count:,} dead letter{'s' * (count != 1)}"


# -- purge


@app.command
def purge(
    *letters: Annotated[str, Parameter(help="Ids or positions.")],
    group: Group = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    since: Since = None,
    all: Annotated[bool, flag("All of them.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Give dead letters up, those that were replayed too: no list shows them any more, and no replay finds them.

    They are marked, not erased: as long as the bus retains them, `peek` finds them in _dead.GROUP.
    """
    filter = filtered(group, error, fingerprint, since)
    check_chosen(letters, filter, all)
    asyncio.run(_purge(find_source(url), letters, filter, yes, dry_run, json))


async def _purge(source: Source, names: Sequence[str], filter: Filter, yes: bool, dry_run: bool, json: bool) -> None:
    async with opened(source) as opened_app:
        found = await filter.letters(inspectable(opened_app.bus()))
        if names:
            found = list({letter.position: letter for letter in (named(found, name) for name in names)}.values())
        waiting = sum(not letter.mark for letter in found)
        question = f"give up {_many(len(found))}, of which {waiting:,} were never replayed?"
        done = "would purge" if dry_run else "purged" if not found or yes or agreed(question) else "kept"
        if done == "purged":
            with Progress("purged", len(found)) as progress:
                for first in range(0, len(found), BATCH):
                    some = found[first : first + BATCH]
                    await opened_app.publish_many([marker(letter, group_of(letter), "purged") for letter in some])
                    progress(first + len(some), first + len(some))
    if json:
        purged = len(found) if done == "purged" else 0
        show.document({"purged": purged, "dry_run": dry_run, "letters": [summary(letter) for letter in found]})
    else:
        show.say(f"{done} {_many(len(found))}, of which {waiting:,} were never replayed")
