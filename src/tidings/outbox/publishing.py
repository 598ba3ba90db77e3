"""Rows to the app's buses, each key in order, and what became of each.

What a publish that fails means: a message no bus will ever take as it is (``UsageError``: too large, a delay the bus
has not) is set aside, as a dead letter is; any other one stays, and holds back those of its key; when a whole bus
cannot be reached or has no room, all wait. On a bus that may accept a part of what is published at once,
a message is sent only after those before it of its key were accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from tidings.kernel.errors import BusFull, BusUnavailable, NotOpen, PublishFailed, TidingsError, UsageError
from tidings.kernel.message import Message

from .rows import Taken

if TYPE_CHECKING:
    from tidings.app import App

Pair = tuple[int, Message[Any]]
"""A position, and the message there."""


class Done(Struct):
    """What became of rows, by position; ``held``: lanes that wait; ``error``: why, the last one."""

    accepted: list[int] = []
    refused: list[tuple[int, str]] = []
    held: set[str] = set()
    error: TidingsError | None = None
    down: bool = False  # a bus accepts nothing now

    @property
    def count(self) -> int:
        """How many have not to be thought of again."""
        return len(self.accepted) + len(self.refused)

    def failed(self, error: TidingsError, pairs: Sequence[Pair]) -> Sequence[Pair]:
        """These were not published, or not all of them; what is to be tried again, one by one."""
        alone = len(pairs) == 1
        if isinstance(error, PublishFailed) and not alone:
            accepted = set(error.accepted)
            self.accepted += (pairs[index][0] for index in sorted(accepted))
            self.hold(error, [pairs[index] for index in error.unknown])
            return [pair for index, pair in enumerate(pairs) if index not in accepted]
        if isinstance(error, UsageError | BusFull) and not alone:
            return pairs  # one is wrong, or a few have room
        self.down = isinstance(error, BusUnavailable | BusFull | NotOpen)
        if isinstance(error, UsageError) and not self.down:
            self.refused.append((pairs[0][0], str(error)))
        else:
            self.hold(error, pairs)
        return ()

    def hold(self, error: TidingsError, pairs: Iterable[Pair]) -> None:
        """These wait, because of this error."""
        self.error = error
        self.held |= {lane(message) for _, message in pairs}


async def publish(app: App, bus: str, rows: Sequence[Taken]) -> Done:
    """Publish rows, those that name no bus to ``bus``. What fails is in the result."""
    done, by_bus = Done(), dict[str, list[Pair]]()
    for row in rows:
        if row.message is None:
            done.refused.append((row.position, row.why))
            continue
        message = row.message if row.message.bus else replace(row.message, bus=bus)
        by_bus.setdefault(message.bus, []).append((row.position, message))
    for name, pairs in by_bus.items():
        whole = name in app.urls and app.bus(name).capabilities.publish_atomic
        for wave in [pairs] if whole else waves(pairs):
            await _send(app, wave, done)
    return done


async def _send(app: App, pairs: Sequence[Pair], done: Done) -> None:
    """Publish all at once, or else find out one by one which is why not."""
    pairs = [pair for pair in pairs if lane(pair[1]) not in done.held]
    if done.down or not pairs:
        return
    try:
        await app.publish_many(message for _, message in pairs)
    except TidingsError as error:
        again = done.failed(error, pairs)
    else:
        again = ()
        done.accepted += (position for position, _ in pairs)
    for pair in again:
        await _send(app, [pair], done)


def lane(message: Message[Any]) -> str:
    """What keeps its order: the messages of a key, or one alone."""
    return message.id if message.key is None else message.key


def waves(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """The first message of each key, then the second of each, and so on."""
    found, counts = list[list[Pair]](), Counter[str]()
    for pair in pairs:
        rank = counts[lane(pair[1])]
        counts[lane(pair[1])] += 1
        if rank == len(found):
            found.append([])
        found[rank].append(pair)
    return found
