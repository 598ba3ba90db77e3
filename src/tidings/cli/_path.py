"""The path of one message: what led to it, what it led to, and what became of each of them, as a tree.

What a handler returns carries the id of its message (causation) and of the message that began it all (correlation),
and an id derived from message, group and topic: so it can be told which group sent it. What a handler publishes
itself, and what handlers of batches return, carries nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from msgspec import Struct, field

from tidings import Message
from tidings.kernel.errors import NotFound
from tidings.kernel.message import derived_id
from tidings.kernel.topics import DEAD, GROUP, INTERNAL
from tidings.kernel.transport import GroupInfo, Inspectable, Stored
from tidings.letters import DeadLetter, fold

from ._looks import reads, unsettled
from ._scan import RESERVED, Scan

EVERYWHERE = (">", *(pattern for pattern in RESERVED if not pattern.startswith(INTERNAL)))
CLOCKS = 1.0  # seconds that two clocks may differ
SHORTEST = 4  # characters of the beginning of an id that will do
MARGIN = 16  # outputs of a run that may be missing among those that are retained


class Fate(Struct):
    """What is known of a message in one group."""

    group: str
    outcome: str  # sent, dead, replayed, waiting, quiet
    letter: DeadLetter | None = None
    replayed: float | None = None  # when
    sent: list[Hop] = field(default_factory=list)


class Hop(Struct):
    """A message of the path. ``message`` is None, or ``copy_only`` (of a dead letter): retention has removed it."""

    id: str
    message: Message[Any] | None = None
    copy_only: bool = False
    sender: str = ""  # the group that sent it, where that is known
    fates: list[Fate] = field(default_factory=list)
    others: list[Hop] = field(default_factory=list)  # sent by nobody knows which group

    @property
    def gone(self) -> bool:
        return self.message is None or self.copy_only


class Found(Struct):
    """Everything of one path, not yet in order. ``began``: the id of the message that began it."""

    asked: str
    began: str
    messages: list[Stored]
    groups: Sequence[GroupInfo]
    scanned: str


# -- finding


async def follow(bus: Inspectable, name: str) -> Found:
    """All that belongs to the path of the message whose id is ``name``, or begins so. Raises ``NotFound``."""
    asked, began = await _named(bus, name)
    ids, sought = {asked, began}, set[str]()
    belongs = partial(_belongs, ids, began)
    while ids - sought:  # a cause that was not looked for yet: as a rule retention has removed it
        scan = Scan(bus, *EVERYWHERE)
        found = [stored async for stored in scan.matching(belongs)]
        sought = set(ids)
        ids |= {cause for stored in found if (cause := stored.message.causation_id)}
    return Found(asked, began, found, await bus.groups(), str(scan))


def _belongs(ids: set[str], began: str, message: Message[Any]) -> bool:
    """Whether a message is of the path; from now on, those that it caused are as well."""
    if message.id in ids or message.header("tdgmark"):
        return True
    if message.causation_id in ids or message.correlation_id == began:
        ids.add(message.id)
        return True
    return False


async def _named(bus: Inspectable, name: str) -> tuple[str, str]:
    """The id that is meant, and the id of the message that began its path."""
    kin, begun, long = None, dict[str, str](), len(name) >= SHORTEST

    def like(message: Message[Any]) -> bool:
        return (long and message.id.startswith(name)) or name in (
            message.id,
            message.causation_id,
            message.correlation_id,
        )

    async with aclosing(Scan(bus, *EVERYWHERE).matching(like)) as matching:
        async for stored in matching:
            message = stored.message
            if message.id == name:
                return name, message.correlation_id or name
            if name in (message.causation_id, message.correlation_id):
                kin = kin or message
            elif not message.header("tdgmark"):
                begun.setdefault(message.id, message.correlation_id or message.id)
    if kin is not None:
        return name, kin.correlation_id or name
    if len(begun) == 1:
        return begun.popitem()
    if begun:
        listed = ", ".join(list(begun)[:5])
        raise NotFound(f"{len(begun):,} ids begin with {name!r}", mend=f"give more of it: {listed}")
    why = "nobody published it here, it is not due yet, or retention has removed it and all that came of it"
    raise NotFound(f"no retained message has the id {name!r}", why=why, mend="`tidings find TEXT` finds ids")


# -- putting in order


def tree(found: Found) -> Hop:
    """The first message of the path, with all others below it."""
    hops = _hops(found)
    parents = _parents(hops, found.began)
    children = defaultdict[str, list[Hop]](list)
    for id, parent in parents.items():
        children[parent].append(hops[id])
    letters = _letters(found)
    for hop in hops.values():
        _place(hop, children[hop.id], letters[hop.id], found.groups)
    root, seen = found.asked, set[str]()
    while root in parents and root not in seen:
        seen.add(root)
        root = parents[root]
    return hops[root]


def _hops(found: Found) -> dict[str, Hop]:
    """Each message once: as it was published, or else as a dead letter or a copy for one group has it."""
    hops, copies = dict[str, Hop](), list[Message[Any]]()
    for message in (stored.message for stored in found.messages if not stored.message.header("tdgmark")):
        if message.destination.startswith((DEAD, GROUP)):
            copies.append(message)
        else:
            hops.setdefault(message.id, Hop(message.id, message))
    for copy in copies:
        hops.setdefault(copy.id, Hop(copy.id, copy, copy_only=True))
    hops.setdefault(found.asked, Hop(found.asked))
    return hops


def _parents(hops: dict[str, Hop], began: str) -> dict[str, str]:
    """By id, the id of what caused it; causes that are gone become hops of their own."""
    parents = dict[str, str]()
    for hop in list(hops.values()):
        message = hop.message
        cause = message.causation_id if message is not None else None
        if cause and cause not in hops:
            hops[cause] = Hop(cause)
        if message is not None and not cause and message.correlation_id in hops:
            cause = message.correlation_id  # published with nothing else
        if cause and cause != hop.id:
            parents[hop.id] = cause
    for hop in [hop for hop in hops.values() if hop.message is None and hop.id != began]:
        hops.setdefault(began, Hop(began))
        parents[hop.id] = began
    return parents


def _letters(found: Found) -> dict[str, list[Fate]]:
    """Dead letters as fates, by message id; of several in one group the last."""
    by_topic, marked = defaultdict[str, list[Stored]](list), dict[tuple[str, str], float]()
    for stored in found.messages:
        if (topic := stored.message.destination).startswith(DEAD):
            by_topic[topic].append(stored)
            marked[topic, stored.message.header("tdgmarks")] = stored.message.time
    fates = defaultdict[str, dict[str, Fate]](dict)
    for topic, letters in by_topic.items():
        for letter in fold(letters):
            group = letter.message.header("tdggroup") or topic.removeprefix(DEAD)
            replayed = marked[topic, str(letter.position)] if letter.mark else None
            outcome = "replayed" if letter.mark else "dead"
            fates[letter.message.id][group] = Fate(group, outcome, letter, replayed)
    return defaultdict(list, {id: list(by_group.values()) for id, by_group in fates.items()})


def _place(hop: Hop, children: list[Hop], letters: list[Fate], groups: Sequence[GroupInfo]) -> None:
    """Put what a message led to below the groups that sent it, and say what is known of the others."""
    fates = {fate.group: fate for fate in letters}
    senders = _senders(hop.id, children, groups)
    for child in sorted(children, key=_time):
        child.sender = senders.get(child.id, "")
        if child.sender:
            fates.setdefault(child.sender, Fate(child.sender, "sent")).sent.append(child)
        else:
            hop.others.append(child)
    message = hop.message
    if message is not None and not hop.copy_only:
        for reader in groups:
            if reads(reader, message.destination):
                fates.setdefault(reader.name, Fate(reader.name, "waiting" if _waits(reader, message) else "quiet"))
    hop.fates = sorted(fates.values(), key=lambda fate: (fate.outcome == "quiet", fate.group))


def _time(hop: Hop) -> float:
    return hop.message.time if hop.message is not None else 0.0


def _senders(parent: str, children: Sequence[Hop], groups: Sequence[GroupInfo]) -> dict[str, str]:
    """By id, the group whose handler sent it: its id is derived from the group's name."""
    messages = [child.message for child in children if child.message is not None and child.message.causation_id]
    apps, topics = ({getattr(message, name) for message in messages} for name in ("source", "topic"))
    return {
        derived_id(parent, group.name, topic, ordinal): group.name
        for group in groups
        if group.app in apps
        for topic in topics
        for ordinal in range(len(messages) + MARGIN)
    }


def _waits(group: GroupInfo, message: Message[Any]) -> bool:
    """Whether the group may not have settled a message yet. A publisher's clock is not the bus's."""
    return unsettled(group) > 0 and (group.oldest is None or message.time >= group.oldest - CLOCKS)
