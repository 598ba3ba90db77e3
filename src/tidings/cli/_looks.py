"""Looks at a bus: its topics and groups, and who reads what.

How fast messages come and are settled no bus counts: that is derived from two looks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tidings.control import Standing, standing
from tidings.kernel.errors import InvalidOption
from tidings.kernel.message import seconds
from tidings.kernel.topics import GROUP, matches
from tidings.kernel.transport import GroupInfo, Inspectable, TopicInfo, Transport

from ._bus import inspectable

SHORTEST = 0.1  # seconds


class Look(NamedTuple):
    """A bus at one moment (monotonic seconds)."""

    at: float
    topics: Mapping[str, TopicInfo]
    groups: Mapping[str, GroupInfo]
    counted: bool = True  # the bus tells how much was published
    ordered: Mapping[str, Standing] = {}  # what was ordered to groups, as far as the bus remembers


class Rates(NamedTuple):
    """Messages a second of one group; None: the bus cannot tell, or retention dropped some meanwhile."""

    came: float | None
    settled: float | None


async def look(transport: Transport, groups: str) -> Look:
    """The groups whose name is in a pattern, and the topics they read."""
    bus, at = inspectable(transport), time.monotonic()
    found = {group.name: group for group in await bus.groups(groups)}
    read = {">", *(f"{group.pattern.partition('.')[0]}.>" for group in found.values() if group.pattern[:1] == "_")}
    ordered = {
        group: holds
        for app in {group.app for group in found.values()}
        for group, holds in (await standing(transport, app)).items()
    }
    return Look(at, await topics_in(bus, sorted(read)), found, transport.capabilities.peek != "unavailable", ordered)


async def topics_in(bus: Inspectable, patterns: Sequence[str]) -> dict[str, TopicInfo]:
    """The topics in any of some patterns, by name."""
    return {topic.name: topic for pattern in patterns for topic in await bus.topics(pattern)}


def topic_rate(name: str, before: Look, after: Look) -> float | None:
    """Messages a second that came to a topic."""
    old, new = (found.topics[name].messages if name in found.topics else 0 for found in (before, after))
    return (new - old) / (after.at - before.at) if new >= old else None


def group_rates(name: str, before: Look, after: Look) -> Rates:
    """What came to a group, and what it settled: what came less what waits more."""
    old, new = before.groups.get(name), after.groups[name]
    names = before.topics.keys() | after.topics.keys()
    each = [topic_rate(topic, before, after) for topic in names if matches(new.pattern, topic)]
    if old is None or None in each or not after.counted:
        return Rates(None, None)
    came = sum(rate for rate in each if rate is not None)
    return Rates(came, max(0.0, came - (unsettled(new) - unsettled(old)) / (after.at - before.at)))


def reads(group: GroupInfo, topic: str) -> bool:
    """Whether a group receives what goes to a topic."""
    return matches(group.pattern, topic) or topic == GROUP + group.name


def unsettled(group: GroupInfo) -> int:
    """How many messages a group has not settled."""
    return group.lag + group.in_flight + group.parked


def checked_interval(interval: str) -> float:
    """Seconds of ``--interval``, if they can be."""
    length = seconds(interval, "--interval")
    if length < SHORTEST:
        raise InvalidOption(f"--interval cannot be {interval!r}", mend=f"at least {SHORTEST * 1e3:g}ms")
    return length


def shown(rate: float | None) -> str:
    """A rate in a table."""
    if rate is None:
        return ""
    return f"{rate:,.0f}" if rate >= 100 or not rate else f"{rate:.1f}"


def rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 2)
