"""``tidings trace``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any

from cyclopts import Parameter

from tidings.kernel.topics import GROUP

from . import show
from ._bus import Source, find_source, inspectable, opened
from ._letters import detail_of, died_at, summary
from ._options import Json, Url
from ._path import Fate, Found, Hop, follow, tree

EXCERPT = 60  # characters of a body


def trace(
    id: Annotated[str, Parameter(help="The id of any message of the path, or the beginning of it.")],
    /,
    *,
    url: Url = None,
    json: Json = False,
) -> None:
    """Show the path of a message through handlers and topics: what led to it, what came of it, what died.

    A tree of messages and of the groups that received them, with times. It knows what handlers returned; what they
    published by themselves carries no cause. With --json: a list, each message with its parent.
    """
    found = asyncio.run(_follow(find_source(url), id))
    root = tree(found)
    hops = [node for _, node in _walk(root) if isinstance(node, Hop)]
    removed = sum(hop.gone for hop in hops)
    if json:
        parents = {child.id: hop.id for hop in hops for child in _below(hop) if child is not root}
        path = [_document(hop, parents.get(hop.id)) for hop in hops]
        show.document({"asked": found.asked, "root": root.id, "removed": removed, "path": path})
    else:
        began = min((hop.message.time for hop in hops if hop.message is not None), default=0.0)
        for guide, node in _walk(root):
            label = _hop(node, began, found) if isinstance(node, Hop) else _fate(node, began, found)
            show.say(show.styled(guide, show.DIM) + label)
    show.note(found.scanned)
    if removed:
        some = f"{removed} messages of this path are" if removed > 1 else "a message of this path is"
        show.note(f"{some} not retained any more, and what else came of such ones may be missing")


async def _follow(source: Source, id: str) -> Found:
    async with opened(source) as app:
        return await follow(inspectable(app.bus()), id)


def _walk(root: Hop) -> Iterator[tuple[str, Hop | Fate]]:
    """Everything from top to bottom, with the guides of the tree. A path may be longer than Python's stack."""
    seen, stack = set[str](), list[tuple[str, str, Hop | Fate]]([("", "", root)])
    while stack:
        head, tail, node = stack.pop()
        if isinstance(node, Hop):
            if node.id in seen:  # who gives ids may have them run in a circle
                continue
            seen.add(node.id)
        yield head, node
        below: list[Hop | Fate] = [*node.fates, *node.others] if isinstance(node, Hop) else [*node.sent]
        for number, child in reversed(list(enumerate(below, 1))):
            here, further = ("└── ", "    ") if number == len(below) else ("├── ", "│   ")
            stack.append((tail + here, tail + further, child))


def _below(hop: Hop) -> list[Hop]:
    """What a message led to."""
    return [*(child for fate in hop.fates for child in fate.sent), *hop.others]


def _hop(hop: Hop, began: float, found: Found) -> str:
    asked = "  ←" if hop.id == found.asked else ""
    id = show.styled(show.clean(hop.id), show.DIM)
    message = hop.message
    if message is None:
        return f"{show.styled('not retained any more', show.YELLOW)}  {id}{asked}"
    topic = message.topic if (message.address or "").startswith(GROUP) or hop.copy_only else message.destination
    parts = [
        show.styled(show.clean(topic), show.CYAN),
        show.styled(show.clean(message.key), show.YELLOW) if message.key is not None else "",
        show.clock(message.time) if message.time == began else _later(message.time - began),
        _short(show.body_line(message)),
        _unknown(hop),
        show.styled("only a copy is retained", show.YELLOW) if hop.copy_only else "",
        id,
    ]
    return "  ".join(part for part in parts if part) + show.styled(asked, show.BOLD)


def _unknown(hop: Hop) -> str:
    """What a handler sent whose group has another name now, or none."""
    message = hop.message
    if message is None or not message.causation_id or hop.sender:
        return ""
    return show.styled(f"by a handler of {show.clean(message.source)}", show.DIM)


def _fate(fate: Fate, began: float, found: Found) -> str:
    return f"{show.styled(show.clean(fate.group), show.BOLD)}  {_told(fate, began, found)}"


def _told(fate: Fate, began: float, found: Found) -> str:
    said = [f"sent {len(fate.sent)}"] if fate.sent else []
    if fate.letter is not None:
        said.insert(0, _died(fate, began))
    if fate.outcome == "waiting":
        (group,) = (group for group in found.groups if group.name == fate.group)
        oldest = f", the oldest for {show.ago(group.oldest)}" if group.oldest is not None else ""
        said.append(f"perhaps not done yet: {group.lag + group.in_flight + group.parked:,} wait there{oldest}")
    return "; ".join(said) or show.styled("sent nothing", show.DIM)


def _died(fate: Fate, began: float) -> str:
    letter = fate.letter
    assert letter is not None
    error = _short(detail_of(letter)) if letter.error else ""
    what = f"dead letter: {letter.error or letter.reason}{': ' if error else ''}{error}"
    at = _later(died_at(letter) - began)
    replayed = f"; replayed {_later(fate.replayed - began)}" if fate.replayed is not None else ""
    return f"{show.styled(show.clean(what), show.RED)}  {at}{replayed}"


def _short(text: str) -> str:
    return text if len(text) <= EXCERPT else f"{text[: EXCERPT - 1]}…"


def _later(seconds: float) -> str:
    sign, length = ("-", -seconds) if seconds < 0 else ("+", seconds)
    if length < 60:
        return f"{sign}{length * 1e3:.0f} ms" if length < 1 else f"{sign}{length:.2f} s"
    return f"{sign}{show.span(length)}"


def _document(hop: Hop, parent: str | None) -> dict[str, Any]:
    groups = [
        {
            "group": fate.group,
            "outcome": fate.outcome,
            "sent": [child.id for child in fate.sent],
            "letter": summary(fate.letter) if fate.letter is not None else None,
            "replayed": show.stamp(fate.replayed),
        }
        for fate in hop.fates
    ]
    message = show.event(hop.message) if hop.message is not None else None
    known = {"id": hop.id, "parent": parent, "by": hop.sender or None, "retained": not hop.gone}
    return {**known, "message": message, "groups": groups}
