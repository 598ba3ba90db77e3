"""What an aggregator does with a batch of messages, and with a group whose time has come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from tidings.channels import Topic
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import Undecodable
from tidings.kernel.handler import collected
from tidings.kernel.message import Message, derived_id, new_id
from tidings.router import Router
from tidings.state import State, Table
from tidings.timers import due

from ._around import keeping
from ._completion import Completion
from ._grouping import CLOSED, Group, Kept, Open, read
from ._letters import letter
from ._options import checked_key
from ._pattern import describe
from .message_sequence import ID, position

Why = Literal["complete", "timeout", "idle"]
HEADER = "aggregate"
BATCH = 1024  # messages in a transaction


class Aggregation(Struct, frozen=True, kw_only=True):
    """The groups of one aggregator. ``by``: of a payload, None: the sequence. ``until``: of the list or the total."""

    fn: Callable[[Any], Any]
    to: Topic[Any]
    group: str
    rules: Completion
    kept: Kept
    table: Table[bytes]
    by: Callable[[Any], str] | None = None
    until: Callable[[Any], bool] | None = None
    awaited: bool = False  # groups are opened by somebody else: what has none is late

    @property
    def remembers(self) -> bool:
        """Whether groups are known after they were closed."""
        return self.rules.late != "new" and not self.awaited

    async def collect(self, messages: Sequence[Message[Any]], state: State) -> list[Message[Any]]:
        """Put each into its group; what is complete then."""
        now, keep, remembers = current_clock().now(), self.kept, self.remembers
        keyed = [(self._key(message), message) for message in messages]
        records = await state.get_many(self.table, [key for key, _ in keyed])
        groups = {key: found for key, record in records.items() if (found := read(key, record))}
        closed = {key for key, record in records.items() if not record} if remembers else set[str]()
        if self.until is not None:
            await keep.load([*groups.values()], state)
        sent, touched, done = list[Message[Any]](), dict[str, None](), list[Group]()
        for key, message in keyed:
            touched[key] = None  # also where nothing changes: what is read decides, so it must be as it was read
            group = groups.get(key)
            if group is None and (key in closed or self.awaited):
                sent += [letter(message, self.group, "late")] if self.rules.late == "dead" else ()
                continue
            if group is None:
                group = groups[key] = Group(key, Open(new_id(), message.correlation_id or message.id, now))
            if keep.add(group, message, state) and self._complete(group, message):
                done.append(groups.pop(key))
                if remembers:
                    closed.add(key)
        await keep.load(done, state)
        for group in done:
            sent += await self._close(group, "complete", state)
        for key in touched:
            if (group := groups.get(key)) is not None:
                state.put(self.table, key, keep.write(group), due=self.rules.due(group.open.since, now))
            elif key in closed:
                state.put(self.table, key, CLOSED, due=now + self.rules.remember)
            else:
                state.delete(self.table, key)
        return sent

    async def fired(self, key: str, record: bytes, state: State) -> list[Message[Any]]:
        """A group whose time has come; or a closed one that is forgotten."""
        group, now = read(key, record), current_clock().now()
        if group is None:
            return []
        if self.remembers:
            state.put(self.table, key, CLOSED, due=now + self.rules.remember)
        await self.kept.load([group], state)
        over = self.rules.timeout and group.open.since + self.rules.timeout <= now
        return await self._close(group, "timeout" if over else "idle", state)

    def _key(self, message: Message[Any]) -> str:
        if self.by is None:
            place = position(message)
            if place is None:
                what, mend = f"message {message.id} is part of no sequence", "by=, or let a splitter send it"
                raise Undecodable(what, why=f"it has no header {ID!r}", mend=mend)
            return place.id
        return checked_key(self.by(message.data))

    def _complete(self, group: Group, message: Message[Any]) -> bool:
        size = self.rules.size
        if not size and self.by is None and (place := position(message)):
            size = place.size
        if size and group.open.count >= size:
            return True
        return self.until is not None and self.until(group.value)

    async def _close(self, group: Group, why: Why, state: State) -> list[Message[Any]]:
        policy = "publish" if why == "complete" else self.rules.partial
        sent: list[Message[Any]] = []
        if policy == "publish":
            sent = await self.become(group, why)
        elif policy == "dead":
            sent = [letter(item.message, self.group, why) for item in group.items]
        self.kept.clear(group, state)
        return sent

    async def become(self, group: Group, why: Why) -> list[Message[Any]]:
        """The id follows from the group's messages, so it is the same when this runs again."""
        result = await collected(self.fn(group.value))
        if result is None:
            return []
        id = derived_id(group.open.ids.hex(), self.group, group.key, 0)
        said = ((HEADER, why),)
        return [
            replace(
                self.to(result), key=group.open.key or group.key, headers=said, id=id, correlation_id=group.open.root
            )
        ]


def install(app: Router, source: Topic[Any], found: Aggregation, passed: dict[str, Any]) -> None:
    """Register what collects, and what looks for groups whose time has come."""

    @wraps(found.fn)
    async def fired(key: str, record: bytes, state: State) -> list[Message[Any]]:
        return await found.fired(key, record, state)

    collect = keeping(found.fn, found.collect, list[Message[source.type]])  # type: ignore[name-defined]
    describe(collect, "aggregator", publishes=(found.to,))
    app.on(source, batch=BATCH, concurrency=1, group=found.group, **passed)(collect)
    if found.rules.timeout or found.rules.idle or found.remembers:
        look = describe(fired, "aggregator", publishes=(found.to,))
        due(app, found.table, every=found.rules.every, bus=source.bus, group=f"{found.group}-due")(look)
