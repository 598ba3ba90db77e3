"""Reading what a bus keeps in memory, in pages, from wherever a reader is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from heapq import merge
from itertools import islice
from operator import attrgetter

from tidings.kernel.topics import matches
from tidings.kernel.transport import Stored

_position = attrgetter("position")


def page(logs: Iterable[Sequence[Stored]], pattern: str, after: int, limit: int | None) -> list[Stored]:
    """The first ``limit`` (None: all) that match beyond a position, of logs that are each in the order of positions."""
    later = merge(*(_beyond(log, after) for log in logs), key=_position)
    return list(islice((stored for stored in later if matches(pattern, stored.message.destination)), limit))


def _beyond(log: Sequence[Stored], position: int) -> Iterable[Stored]:
    """From the nearer end: whoever follows is close to one, and a deque is slow to step through."""
    at = bisect_right(log, position, key=_position)
    if (count := len(log) - at) < at:
        return reversed(list(islice(reversed(log), count)))
    return islice(log, at, None)
