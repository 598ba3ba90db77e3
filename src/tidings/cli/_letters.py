"""Dead letters of a bus: what they say, which are meant, and which died of the same."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

from msgspec import Struct

from tidings.kernel.errors import InvalidOption, NotFound, nearest
from tidings.kernel.topics import DEAD, check_topic
from tidings.kernel.transport import Inspectable
from tidings.letters import DeadLetter, fold

from . import show
from ._bus import retained
from ._options import since_time
from .groups import unknown

FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in ([^\n]+)(?:\n\s+(?:\| )?([^\n]+))?')
NOT_THEIRS = re.compile(r"/(site-packages|dist-packages|lib/python3[^/]*|src/tidings)/|^<frozen")


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


def place_of(letter: DeadLetter) -> tuple[str, str]:
    """Where in the user's code it failed: as it is shown, and as it stays the same when lines move."""
    frames = FRAME.findall(letter.message.header("tdgtraceback").rpartition("Traceback (most recent call last)")[2])
    theirs = [frame for frame in frames if not NOT_THEIRS.search(frame[0])]
    if not theirs:
        return "", ""
    path, line, function, source = theirs[-1]
    file = path.rpartition("/")[2]
    return f"{file}:{line}", f"{file}\0{function}\0{source.strip()}"


def fingerprint(letter: DeadLetter) -> str:
    """The same for all that died of the same: group, reason, type of error, and line of the user's code.

    The line's text counts and not its number, nor the error's text, which may name an order.
    """
    said = "\0".join((group_of(letter), letter.reason, letter.error, place_of(letter)[1]))
    return blake2b(said.encode(errors="replace"), digest_size=4).hexdigest()


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
        "fingerprint": fingerprint(letter),
        "died": show.stamp(died_at(letter)),
        "mark": letter.mark,
    }


# -- which are meant


class Filter(Struct, frozen=True, kw_only=True):
    """Which dead letters: all that fit everything that is given."""

    group: str | None = None
    error: str | None = None
    fingerprint: str | None = None
    since: float = -math.inf  # died since then, Unix seconds

    async def letters(self, bus: Inspectable) -> list[DeadLetter]:
        """Those, oldest first. Raises ``NotFound`` for a group, an error or a fingerprint nobody ever heard of."""
        found = fold([stored async for stored in retained(bus, DEAD + (self.group or ">"))])
        if self.group is not None and not found and not await bus.groups(self.group):
            raise await unknown(bus, self.group)
        if self.error is not None:
            found = _only(found, "error", self.error, lambda letter: (letter.error, letter.reason))
        if self.fingerprint is not None:
            found = _only(found, "fingerprint", self.fingerprint, lambda letter: (fingerprint(letter),))
        return [letter for letter in found if died_at(letter) >= self.since]


def filtered(group: str | None, error: str | None, fingerprint: str | None, since: str | None) -> Filter:
    """A filter of what was given on the command line."""
    if group is not None:
        check_topic(group)
    start = -math.inf if since is None else since_time(since)
    return Filter(group=group, error=error, fingerprint=fingerprint, since=start)


def _only(
    letters: Sequence[DeadLetter], what: str, wanted: str, names: Callable[[DeadLetter], tuple[str, ...]]
) -> list[DeadLetter]:
    found = [letter for letter in letters if wanted in names(letter)]
    if letters and not found:
        known = {name for letter in letters for name in names(letter) if name}
        mend = nearest(wanted, known) or f"there is {', '.join(sorted(known)[:8])}"
        raise NotFound(f"no dead letter has {what} {wanted!r}", mend=mend)
    return found


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


def chosen(letters: Sequence[DeadLetter], names: Sequence[str]) -> list[DeadLetter]:
    """Those that were named, once each, or else all; without those that were replayed already."""
    if not names:
        return [letter for letter in letters if not letter.mark]
    found = {letter.position: letter for letter in (named(letters, name) for name in names)}
    for letter in found.values():
        if letter.mark:
            why = "had it failed again, there would be a new dead letter"
            raise NotFound(f"dead letter {letter.position} was replayed already", why=why, mend="`tidings dead ls`")
    return list(found.values())


def check_chosen(names: Sequence[str], filter: Filter, all: bool) -> None:
    """Raises ``InvalidOption`` unless it is said which dead letters are meant: by name, or by a filter."""
    by_filter = all or filter.error is not None or filter.fingerprint is not None or filter.since > -math.inf
    if names and by_filter:
        raise InvalidOption("ids and --all, --error, --fingerprint or --since exclude each other", mend="drop one")
    if not names and not by_filter and filter.group is None:
        mend = "ids or positions, --group, --error TYPE, --fingerprint, --since, or --all"
        raise InvalidOption("which dead letters?", mend=mend)
