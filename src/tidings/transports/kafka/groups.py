"""What a bus knows beside its messages: groups and ticks, in one compacted topic, ``_tidings.state``; and what can be
done with groups.

An entry is replaced by compare-and-set: its records are numbered, each by one more than what its writer knew, and the
first of a number is the entry; what comes later with the same or a lower one is void. So of several writers exactly one
wins, and each finds out by reading its own record back. Compaction keeps the last record of a key, void or not: whoever
wrote a void one, or finds one when it opens, therefore writes the entry once more behind it, with its own number.
Everybody reads the whole topic and goes on reading it: a change is known to all within milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from msgspec import Raw, Struct

from tidings.kernel.errors import BusError, BusUnavailable, NotFound, nearest
from tidings.kernel.message import new_id
from tidings.kernel.topics import DEAD, GROUP, matches
from tidings.kernel.transport import GroupInfo, Subscription
from tidings.transports._offsets import count_settled, read

from .clients import Poller
from .counts import Counts
from .records import MOVER, Place, Record

if TYPE_CHECKING:
    from .transport import KafkaTransport


class Registration(Struct, omit_defaults=True):
    """A group. ``start``: where it begins to read, by topic and partition; ``until``: where it ends to read what its
    pattern no longer matches. What is in neither is read from its beginning. ``names``: those it had before.
    """

    app: str
    pattern: str
    ordered: bool = False
    names: list[str] = []
    start: dict[str, dict[int, int]] = {}
    until: dict[str, dict[int, int]] = {}


class Tick(Struct):
    due: float


class Line(Struct):
    """A record's value."""

    number: int
    data: Raw


NONE = Raw(b"null")


class Entry(Struct, frozen=True):
    number: int = 0
    data: Raw = NONE
    offset: int = -1


NOTHING = Entry()


class StateLog:
    """The topic, folded. ``changed`` is called after each change."""

    def __init__(self, topic: str, store: Callable[[Record], Awaitable[int]], changed: Callable[[], None]) -> None:
        self.topic, self.store, self.changed = topic, store, changed
        self.entries: dict[str, Entry] = {}
        self.groups: dict[str, Registration] = {}
        self.hidden: set[str] = set()  # keys whose last record is void
        self.position = 0
        self.moved = asyncio.Event()
        self.poller: Poller | None = None

    def follow(self, consumer: Any) -> None:
        """Read on, in the poller's thread. What was read and not folded yet comes again, which does no harm."""
        consumer.assign([TopicPartition(self.topic, 0, self.position)])

    def fold(self) -> None:
        """Take in what the poller has read."""
        assert self.poller is not None
        self.poller.taken()
        arrived = self.poller.arrived
        while arrived:
            raw: Any = arrived.popleft()
            if raw.error() is None:
                self.position = raw.offset() + 1
                with suppress(AttributeError, TypeError, UnicodeDecodeError, msgspec.MsgspecError):  # a stranger's
                    self._take(raw.key().decode(), raw.offset(), raw.value())
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()

    def _take(self, key: str, offset: int, value: bytes) -> None:
        line = msgspec.json.decode(value, type=Line)
        kind, _, name = key.partition("/")
        gone = kind != "group" or bytes(line.data) == b"null"
        group = None if gone else msgspec.json.decode(line.data, type=Registration)
        entry = self.entries.get(key, NOTHING)
        if line.number <= entry.number:
            same = line.number == entry.number and bytes(line.data) == bytes(entry.data)
            (self.hidden.discard if same else self.hidden.add)(key)
            return
        self.entries[key] = Entry(line.number, line.data, offset)
        self.hidden.discard(key)
        if kind == "group":
            if group is None:
                self.groups.pop(name, None)
            else:
                self.groups[name] = group
            self.changed()

    def read(self, key: str, kind: Any) -> Any:
        entry = self.entries.get(key, NOTHING)
        return None if bytes(entry.data) == b"null" else msgspec.json.decode(entry.data, type=kind)

    async def reach(self, position: int, within: float = 30.0) -> None:
        """Wait until everything below an offset is folded."""
        try:
            async with asyncio.timeout(within):
                while self.position < position:
                    await self.moved.wait()
        except TimeoutError:
            raise BusUnavailable(f"{self.topic} could not be read within {within:g} s") from None

    def number(self, key: str) -> int:
        """Which record its entry is."""
        return self.entries.get(key, NOTHING).number

    async def replace(self, key: str, data: Any, known: int) -> bool:
        """Write an entry in place of the one of that number; False: somebody else did, and theirs is folded now."""
        offset = await self._write(key, known + 1, Raw(msgspec.json.encode(data)))
        won = self.entries[key].offset == offset
        if not won:
            await self.uncover(key)
        return won

    async def uncover(self, *keys: str) -> None:
        """Write the entries of these keys once more, where a void record lies upon them."""
        for key in keys or sorted(self.hidden):
            while key in self.hidden:
                entry = self.entries[key]
                await self._write(key, entry.number, entry.data)

    async def _write(self, key: str, number: int, data: Raw) -> int:
        """Store a record and read it back; its offset."""
        offset = await self.store(Record(self.topic, msgspec.json.encode(Line(number, data)), key, []))
        await self.reach(offset + 1)
        return offset


class Groups:
    """The groups of a bus: registered, looked at, mended."""

    def __init__(self, transport: KafkaTransport, log: StateLog) -> None:
        self.transport, self.log, self.names = transport, log, transport.names
        self.counts = Counts(transport.group_config(f"{MOVER}.{new_id()}"))

    def known(self, name: str) -> Registration:
        found = self.log.groups.get(name)
        if found is None:
            raise NotFound(f"no group {name!r}", mend=nearest(name, self.log.groups))
        return found

    def topics_of(self, name: str) -> list[str]:
        """Kafka's names of all that a group reads now."""
        group, t = self.log.groups.get(name), self.transport
        if group is None:
            return []
        own = {self.names.topic(GROUP + each) for each in (name, *group.names)}
        return [
            topic
            for topic, destination in t.destinations.items()
            if topic in own or topic in group.until or matches(group.pattern, destination)
        ]

    def start(self, name: str, topic: str, partition: int) -> int:
        group = self.log.groups.get(name)
        return group.start.get(topic, {}).get(partition, -1) if group else -1

    def until(self, name: str, topic: str, partition: int) -> int | None:
        group = self.log.groups.get(name)
        return group.until.get(topic, {}).get(partition, 0) if group and topic in group.until else None

    # -- registering

    async def register(self, subscription: Subscription, name: str) -> None:
        """Create a group or change it: the last registration wins, from now on; what waits is drained."""
        while True:
            before, known = self.log.groups.get(name), self.log.number(f"group/{name}")
            same = ("app", "pattern", "ordered")
            if before and all(getattr(before, field) == getattr(subscription, field) for field in same):
                return
            if before and before.ordered != subscription.ordered and await self.members(name):
                raise BusError(f"members of group {name!r} do not agree on ordered=", mend="stop them first")
            after = Registration(subscription.app, subscription.pattern, subscription.ordered)
            if before:
                await self._change(before, after)
            else:
                await self._begin(after, subscription.start, GROUP + name)
            if await self.log.replace(f"group/{name}", after, known):
                return

    async def _begin(self, after: Registration, start: float | None, private: str) -> None:
        t = self.transport
        after.start = _nested(await t.ends(t.places_of(private)))
        places = t.places_of(after.pattern)
        if start != 0.0:
            after.start |= _nested(await (t.ends(places) if start is None else t.offsets_at(places, start)))

    async def _change(self, before: Registration, after: Registration) -> None:
        """Topics that are new count from now; those that are left are read up to here."""
        t = self.transport
        after.names, after.start, after.until = before.names, before.start, before.until
        if before.pattern == after.pattern:
            return
        old, new = t.places_of(before.pattern), t.places_of(after.pattern)
        added = [place for place in new if place not in set(old) and place[0] not in before.until]
        left = [place for place in old if place not in set(new)]
        after.start = before.start | _nested(await t.ends(added))
        until = before.until | _nested(await t.ends(left))
        after.until = {topic: ends for topic, ends in until.items() if topic not in {place[0] for place in new}}

    # -- looking

    async def members(self, name: str) -> int:
        """How many consumers are in a group, of all processes."""
        id = self.names.group(name)
        found = await self._asked(self.transport.admin.describe_consumer_groups, id, f"{name!r} cannot be looked at")
        return len(found.members) if found else 0

    async def committed(self, name: str) -> dict[Place, tuple[int, str]]:
        """The offsets of a group, and the texts beside them."""
        group, admin = ConsumerGroupTopicPartitions(self.names.group(name)), self.transport.admin
        found = await self._asked(admin.list_consumer_group_offsets, group, f"the offsets of {name!r} cannot be read")
        places = (found.topic_partitions if found else None) or ()
        return {(place.topic, place.partition): (place.offset, place.metadata or "") for place in places}

    async def _asked(self, ask: Callable[[list[Any]], Any], about: Any, what: str) -> Any:
        """What the broker says; None if it knows no such group. Raises ``BusError``, which says ``what`` failed."""
        try:
            nobody = KafkaError.GROUP_ID_NOT_FOUND
            return await self.transport.insist(lambda: asyncio.wrap_future(*ask([about]).values()), what, nobody)
        except KafkaException:
            return None

    async def infos(self, pattern: str) -> list[GroupInfo]:
        groups = {name: group for name, group in sorted(self.log.groups.items()) if matches(pattern, name)}
        members = await asyncio.gather(*map(self.members, groups))
        return [await self._info(*group, there) for group, there in zip(groups.items(), members, strict=True)]

    async def _info(self, name: str, group: Registration, members: int) -> GroupInfo:
        t = self.transport
        places = [place for topic in self.topics_of(name) for place in t.places(topic)]
        letters = [place for each in (name, *group.names) for place in t.places_of(DEAD + each)]
        ends, firsts = await t.ends([*places, *letters]), await t.firsts([*places, *letters])
        committed, windows = await self.committed(name), t.windows_of(name)
        left = 0
        for place in places:
            offset, text = committed.get(place, (-1, ""))
            at = max(offset, group.start.get(place[0], {}).get(place[1], 0), firsts[place])
            end = min(ends[place], group.until.get(place[0], {}).get(place[1], ends[place]))
            if place in windows:
                left += windows[place].left(end)
            else:
                left += max(0, end - at - (count_settled(read(text)) if at == offset else 0))
        held, parked = (sum(getattr(w, what)() for w in windows.values()) for what in ("hands", "parked"))
        bounds = {place: (firsts[place], ends[place]) for place in letters}
        dead = sum((await t.loop.run_in_executor(t.pool, self.counts.look, bounds)).values())
        return GroupInfo(name, group.app, group.pattern, left - held - parked, held, parked, dead, None, members)

    # -- mending

    async def at_rest(self, name: str) -> Registration:
        """A group without members. One that has just left may still be known to the broker for a moment."""
        group = self.known(name)
        for _ in range(5):
            if not await self.members(name):
                return group
            if self.transport.windows_of(name):
                break
            await asyncio.sleep(0.1)
        raise BusError(f"group {name!r} has members at work", mend="stop the app that consumes it")

    async def alter(self, name: str, offsets: Mapping[Place, tuple[int, str]]) -> None:
        places = [TopicPartition(*place, offset, text) for place, (offset, text) in offsets.items()]
        if places:
            group, admin = ConsumerGroupTopicPartitions(self.names.group(name), places), self.transport.admin
            await self._asked(admin.alter_consumer_group_offsets, group, f"the offsets of {name!r} cannot be set")

    async def rename(self, name: str, to: str) -> None:
        """The new name is taken first: nobody else's offsets are touched."""
        known, taken = self.log.number(f"group/{name}"), self.log.number(f"group/{to}")
        exists = BusError(f"group {to!r} exists", mend=f"drop it first, or drop {name!r}")
        if to in self.log.groups:
            raise exists
        group = await self.at_rest(name)
        committed = await self.committed(name)
        after = msgspec.structs.replace(group, names=[*group.names, name])
        if not await self.log.replace(f"group/{to}", after, taken):
            raise exists
        try:
            await self.alter(to, committed)
        except BusError:
            await self._write(to, None, taken + 1)
            raise
        await self._forget(name, known)

    async def drop(self, name: str) -> None:
        known = self.log.number(f"group/{name}")
        await self.at_rest(name)
        await self._forget(name, known)

    async def _forget(self, name: str, known: int) -> None:
        await self._write(name, None, known)
        id, admin = self.names.group(name), self.transport.admin
        await self._asked(admin.delete_consumer_groups, id, f"group {name!r} cannot be deleted")

    async def seek(self, name: str, start: float) -> None:
        """All that is retained since then once more; what is still to be drained stays to be drained."""
        known = self.log.number(f"group/{name}")
        group, t = await self.at_rest(name), self.transport
        places = t.places_of(group.pattern)
        offsets = await (t.offsets_at(places, start) if start else t.firsts(places))
        kept = {topic: starts for topic, starts in group.start.items() if (topic, 0) not in offsets}
        await self._write(name, msgspec.structs.replace(group, start=kept), known)
        await self.alter(name, {place: (offset, "") for place, offset in offsets.items()})

    async def _write(self, name: str, group: Registration | None, known: int) -> None:
        if not await self.log.replace(f"group/{name}", group, known):
            raise BusError(f"group {name!r} was changed by somebody else meanwhile", mend="look at it, and try again")

    async def tick(self, name: str, due: float) -> bool:
        while True:
            won: Tick | None = self.log.read(f"tick/{name}", Tick)
            known = self.log.number(f"tick/{name}")
            if won is not None and due <= won.due:
                return False
            if await self.log.replace(f"tick/{name}", Tick(due), known):
                return True


def _nested(offsets: Mapping[Place, int]) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {}
    for (topic, partition), offset in offsets.items():
        found.setdefault(topic, {})[partition] = offset
    return found
