"""``memory://``: the whole semantics in one process, in plain data structures. The reference implementation.

Theory of operation. A ``Store`` is a log: a message is stored once, and a reference to it stands in the queue of every
group whose pattern matches; so backlog, start, a new topic and a changed pattern are all one thing: what was appended
to the queue. What leaves a queue is in a ``Claim`` (one per ``receive``; it is the deliveries' session) until it is
settled, or parked with a due time. A claim that is not extended for a lease is lost: what it holds is parked as
suspect, and settling it finds nothing, which is all a fence needs. In an ordered group each key has a ``Lane``.

Nothing runs by itself: each waiting or holding consumer keeps one timer, for the next moment that changes something.
There is no lock: all transports of a shared bus live in one thread.
"""

from __future__ import annotations

import asyncio
import math
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from itertools import islice, takewhile
from typing import Any
from urllib.parse import parse_qsl

from msgspec import Struct, field

from tidings.kernel import errors
from tidings.kernel import transport as spi
from tidings.kernel.clock import SYSTEM, current_clock
from tidings.kernel.message import Message, seconds
from tidings.kernel.topics import DEAD, GROUP, REPLY, matches
from tidings.kernel.transport import Delivery, Event, Failure, Stored, Subscription
from tidings.transports._matcher import Matcher
from tidings.transports._retained import page
from tidings.transports._tables import Committing, Keeping, Tables

Notify = Callable[[Event], None]

MAX_PAYLOAD, LIVE_BUFFER = 16 * 1024 * 1024, 1024  # bytes, messages
LOOK_AGAIN = 5.0  # seconds; delays follow the wall clock, which may step while a timer sleeps

NATIVE = ("ordered", "delay", "crash_count", "start", "replay", "priority", "expiry", "wildcards", "peek", "provision")
CAPABILITIES = spi.Capabilities(
    durable="none",
    ordering="total",
    lease="timer",
    fence="native",
    atomic_settle=True,
    publish_atomic=True,
    stable_id=True,
    max_payload=MAX_PAYLOAD,
    request="native",
    **dict.fromkeys(NATIVE, "native"),  # type: ignore[arg-type]
)


class Memory(Struct, frozen=True):
    """Options of ``memory://``. Without ``name`` the bus belongs to one transport, with it to the process.

    ``messages`` and ``size`` (bytes of bodies) bound what is retained; what a group has not settled is never dropped:
    beyond the limit ``publish`` is refused with ``BusFull``. The first to open a shared bus sets them.
    """

    name: str = ""
    lease: errors.Duration = 30.0
    messages: int = 100_000
    size: int = 64 * 1024 * 1024

    @classmethod
    def from_url(cls, url: str) -> Memory:
        """``memory://[name][?lease=30s&messages=100000&size=64MiB]``; raises ``InvalidURL``."""
        path, _, query = url.partition("://")[2].partition("?")
        options: dict[str, Any] = {"name": path.strip("/")}
        known: dict[str, Callable[[str, str], float]] = {"lease": seconds, "messages": _number, "size": _number}
        for option, value in parse_qsl(query, keep_blank_values=True):
            if option not in known:
                raise errors.InvalidURL(f"memory:// has no option {option!r}", mend=errors.nearest(option, known))
            try:
                options[option] = known[option](value, option)
            except errors.InvalidOption as error:
                raise errors.InvalidURL(f"{url!r}: {error.what}", mend=error.mend) from None
        return cls(**options)

    def transport(self) -> MemoryTransport:
        return MemoryTransport(self)


def _number(text: str, option: str) -> int:
    found = re.fullmatch(r"(\d+)(KiB|MiB|GiB)?", text)
    if not found or not int(found[1]):
        raise errors.InvalidOption(f"{option} cannot be {text!r}", mend="a number above 0, such as 1000 or 64MiB")
    return int(found[1]) << {None: 0, "KiB": 10, "MiB": 20, "GiB": 30}[found[2]]


class Parked(Struct):
    """A message that was in a group's hands and is not settled."""

    due: float  # Unix seconds
    position: int
    message: Message[Any]
    failures: int
    crashes: int
    suspect: bool


class Claim(spi.Session):
    """What one ``receive`` handed out and is not yet settled, by position. ``marked``: suspects that have started."""

    __slots__ = ("consumer", "deadline", "failures", "marked", "renewed", "todo")

    def __init__(self, consumer: GroupConsumer, deadline: float) -> None:
        super().__init__()
        self.consumer, self.deadline = consumer, deadline  # no delivery's lease ends before ``deadline``
        self.todo: dict[int, Delivery] = {}
        self.renewed: dict[int, float] = {}
        self.failures: dict[int, int] = {}  # as stored; the kernel adds those in place to its delivery
        self.marked: set[int] = set()

    def late(self, at: float) -> list[int]:
        """Those whose lease has ended; also moves the deadline on."""
        ends = {position: self.renewed.get(position, self.deadline) for position in self.todo}
        self.deadline = min((end for end in ends.values() if end > at), default=math.inf)
        return [position for position, end in ends.items() if end <= at]


LOST = spi.Session()
LOST.alive = False


class Group:
    """A durable subscription whose members compete: ``fresh`` and ``parked`` wait, ``claims`` are in hand."""

    ordered = False
    most: int | None = None  # only a live one is bounded, and drops
    dropped = 0

    def __init__(self, name: str, subscription: Subscription) -> None:
        self.names = [name]  # its own, and those it had before it was renamed
        self.app, self.pattern = subscription.app, subscription.pattern
        self.fresh: list[deque[Stored]] = [
            deque(maxlen=self.most) for _ in range(1 if self.ordered else 10)
        ]  # highest priority first
        self.parked: list[tuple[float, int, Any]] = []  # a heap by due time
        self.claims: set[Claim] = set()
        self.members: dict[GroupConsumer, None] = {}  # the one that took last is last

    def push(self, stored: Stored) -> None:
        self.fresh[-1 if self.ordered else 9 - stored.message.priority].append(stored)

    def wake(self) -> None:
        for member in self.members:
            member.wake()

    def waiting(self) -> list[Parked]:
        return [entry for _, _, entry in self.parked]

    def backlog(self) -> list[Stored]:
        return [stored for queue in self.fresh for stored in queue]

    def restore(self, fresh: Iterable[Stored], parked: Iterable[Parked]) -> None:
        """Have these waiting, and nothing else; for a group at rest."""
        for queue in self.fresh:
            queue.clear()
        self.parked.clear()
        for stored in sorted(fresh, key=lambda stored: stored.position):
            self.push(stored)
        for entry in parked:
            self.park(entry)

    def park(self, entry: Parked) -> None:
        heappush(self.parked, (entry.due, entry.position, entry))

    def settled(self, delivery: Delivery) -> None:
        """A delivery left the hands of its holder (after ``park``, if it comes back)."""

    def take(self, claim: Claim, limit: int, now: float) -> list[Delivery]:
        """Up to ``limit`` deliveries: parked ones that are due, then fresh ones, highest priority first."""
        taken: list[Delivery] = []
        while self.parked and len(taken) < limit and self.parked[0][0] <= now:
            taken.append(_redelivery(heappop(self.parked)[2], claim))
        for queue in self.fresh:
            if queue and (count := min(limit - len(taken), len(queue))):
                pop = queue.popleft
                taken += [Delivery((s := pop()).message, claim, s.position) for _ in range(count)]
        return taken

    def end(self, claim: Claim, positions: Iterable[int], now: float, lost: bool) -> None:
        """What a holder had in hand comes back: uncounted, or as suspect, and what it had marked crashed once more."""
        for position in positions:
            held = claim.todo.pop(position)
            held.session = LOST
            crashes = held.crashes + (lost and position in claim.marked)
            self.park(Parked(now, position, held.message, claim.failures.get(position, 0), crashes, lost))
            self.settled(held)
        if not claim.todo:
            claim.alive = False
            self.claims.discard(claim)

    def floor(self) -> float:
        """The lowest position that retention must keep; what is parked keeps its message itself."""
        queued = [queue[0].position for queue in self.fresh if queue]
        return min([*queued, *(min(claim.todo) for claim in self.claims if claim.todo)], default=math.inf)

    def info(self, dead: int) -> spi.GroupInfo:
        held = [delivery.message.time for claim in self.claims for delivery in claim.todo.values()]
        parked = [entry.message.time for entry in self.waiting()]
        backlog = [stored.message.time for stored in self.backlog()]
        oldest, members = min([*held, *parked, *backlog], default=None), len(self.members)
        counts = len(backlog), len(held), len(parked), dead
        return spi.GroupInfo(self.names[-1], self.app, self.pattern, *counts, oldest, members)


class Lane(Struct):
    """One key of an ordered group. In hand of one consumer at a time; ``hold``: alone, because it failed before."""

    waiting: deque[Parked] = field(default_factory=deque)  # by position
    in_hand: int = 0
    hold: bool = False
    owner: GroupConsumer | None = None


class OrderedGroup(Group):
    """Same key, same order, one consumer, also through failures.

    ``parked`` is a heap of lanes: those with something waiting and nothing in hand, by when their lowest is due.
    """

    ordered = True

    def __init__(self, name: str, subscription: Subscription) -> None:
        super().__init__(name, subscription)
        self.lanes: dict[str | int, Lane] = {}  # a message without a key is a lane of its own

    def waiting(self) -> list[Parked]:
        return [entry for lane in self.lanes.values() for entry in lane.waiting]

    def restore(self, fresh: Iterable[Stored], parked: Iterable[Parked]) -> None:
        self.lanes.clear()
        super().restore(fresh, parked)
        for lane in self.lanes.values():
            heappush(self.parked, (lane.waiting[0].due, lane.waiting[0].position, lane))

    def _lane(self, message: Message[Any], position: int) -> Lane:
        return self.lanes.setdefault(position if message.key is None else message.key, Lane())

    def park(self, entry: Parked) -> None:
        """Back to its place: before every higher position of its key."""
        lane = self._lane(entry.message, entry.position)
        index = next((i for i, other in enumerate(lane.waiting) if other.position > entry.position), len(lane.waiting))
        lane.waiting.insert(index, entry)

    def settled(self, delivery: Delivery) -> None:
        key = delivery.token if delivery.message.key is None else delivery.message.key
        lane = self.lanes[key]
        lane.in_hand -= 1
        if not lane.in_hand:
            lane.owner, lane.hold = None, False
            if lane.waiting:
                heappush(self.parked, (lane.waiting[0].due, lane.waiting[0].position, lane))
            else:
                del self.lanes[key]

    def take(self, claim: Claim, limit: int, now: float) -> list[Delivery]:
        taken: list[Delivery] = []
        while self.parked and len(taken) < limit and self.parked[0][0] <= now:
            lane = heappop(self.parked)[2]
            lane.hold, lane.owner = _failing(lane.waiting[0]), claim.consumer  # what failed before goes alone
            others = islice(lane.waiting, 1, 1 if lane.hold else limit - len(taken))
            count = 1 + sum(1 for _ in takewhile(lambda other: other.due <= now and not _failing(other), others))
            lane.in_hand = count
            taken += [_redelivery(lane.waiting.popleft(), claim) for _ in range(count)]
        fresh = self.fresh[0]
        while fresh and len(taken) < limit:
            stored = fresh.popleft()
            lane = self._lane(stored.message, stored.position)
            if lane.waiting or lane.hold or lane.owner not in (None, claim.consumer):
                lane.waiting.append(Parked(0.0, stored.position, stored.message, 0, 0, False))
            else:
                lane.owner = claim.consumer
                lane.in_hand += 1
                taken.append(Delivery(stored.message, claim, stored.position))
        return taken


class LiveGroup(Group):
    """A live subscription, a group of one: at most once, through a bounded buffer; nothing ever comes back."""

    most = LIVE_BUFFER

    def push(self, stored: Stored) -> None:
        self.dropped += len(self.fresh[0]) == LIVE_BUFFER
        self.fresh[0].append(stored)

    def park(self, entry: Parked) -> None:
        """Lost."""


def _failing(entry: Parked) -> bool:
    return bool(entry.failures or entry.crashes or entry.suspect)


def _redelivery(entry: Parked, claim: Claim) -> Delivery:
    claim.failures[entry.position] = entry.failures
    return Delivery(entry.message, claim, entry.position, entry.failures, entry.crashes, entry.suspect)


class Store:
    """The log, its groups, and who listens."""

    def __init__(self, options: Memory) -> None:
        self.options, self.users, self.thread = options, 0, threading.get_ident()
        self.log: deque[Stored] = deque()
        self.position = self.size = 0
        self.floor = -1.0  # no group needs less, as of when it was computed; -1 once one may
        self.dead: dict[str, list[Stored]] = {}  # by topic; outside retention
        self.delayed: list[tuple[float, int, Message[Any]]] = []  # a heap by due time; no one's until due
        self.groups: dict[str, Group] = {}
        self.listeners: Matcher[Group] = Matcher()
        self.ticks: dict[str, float] = {}
        self.tables = Tables()

    def refuse(self, messages: Sequence[Message[Any]]) -> errors.TidingsError | None:
        """Why these messages cannot be stored, all or none. Makes room for them; dead letters always find room."""
        for message in messages:
            if len(message.body) > MAX_PAYLOAD:
                return errors.TooLarge(f"{message.topic!r}: {len(message.body)} bytes; memory:// takes {MAX_PAYLOAD}")
            if message.reply_to and not any(group.members for group in self.listeners.match(message.destination)):
                return errors.NoAnswerer(f"nobody answers {message.topic!r}", mend="start the app that answers it")
        adding = [len(m.body) for m in messages if not m.destination.startswith(DEAD)]
        room, size = self.options.messages - len(adding) - len(self.delayed), self.options.size - sum(adding)
        while adding and self.log and (len(self.log) > room or self.size > size):
            if self.log[0].position >= self.floor:
                self.floor = min([self.position + 1.0, *(group.floor() for group in self.groups.values())])
                if self.log[0].position >= self.floor:
                    break
            self.size -= len(self.log.popleft().message.body)
        if not adding or (len(self.log) <= room and self.size <= size) or not (self.log or self.groups):
            return None
        mend = "let consumers catch up, drop abandoned groups, or raise messages= and size="
        return errors.BusFull("the memory bus is full of messages that groups have not settled", mend=mend)

    def append(self, messages: Iterable[Message[Any]], now: float, notify: Notify) -> None:
        """Store what was not refused, and wake who listens."""
        wake, unrouted = dict[Group, None](), list[str]()
        for message in messages:
            destination = message.address or message.topic
            groups = self.listeners.match(destination)
            self.position += 1
            if message.deliver_at is not None and message.deliver_at > now:
                heappush(self.delayed, (message.deliver_at, self.position, message))
            else:
                stored = Stored(self.position, message)
                if destination.startswith(DEAD):
                    self.dead.setdefault(destination, []).append(stored)
                elif not destination.startswith(REPLY):  # a reply is for a waiting requester or nobody
                    self.log.append(stored)
                    self.size += len(message.body)
                for group in groups:
                    group.push(stored)
                if not groups and not destination.startswith(DEAD):
                    unrouted.append(destination)
            wake.update(dict.fromkeys(groups))
        for group in wake:
            group.wake()
        if unrouted:
            notify(Event("unrouted", len(unrouted), unrouted[0]))

    def turn(self, now: float, notify: Notify) -> None:
        """Append what was delayed and is due."""
        while self.delayed and self.delayed[0][0] <= now:
            self.append([heappop(self.delayed)[2]], now, notify)

    def retained(self, pattern: str, after: int = 0, limit: int | None = None) -> list[Stored]:
        """What matches beyond a position, dead letters included, by position: the first ``limit`` of it."""
        return page((self.log, *self.dead.values()), pattern, after, limit)

    def join(self, subscription: Subscription, name: str | None) -> Group:
        """The group, created or changed: the last registration wins, from now on; what waits is drained."""
        if name is None:
            self.listeners.add(subscription.pattern, live := LiveGroup("", subscription))
            return live
        group = self.groups.get(name)
        if group is None:
            group = self._create(subscription, name)
            if subscription.start is not None:
                self.rewind(group, subscription.start)
        elif group.ordered != subscription.ordered:
            if group.members:
                raise errors.BusError(f"members of group {name!r} do not agree on ordered=", mend="stop them first")
            self.forget(group)
            old, group = group, self._create(subscription, name)
            group.restore(old.backlog(), old.waiting())
        if group.pattern != subscription.pattern:
            self.listeners.remove(group.pattern, group)
            self.listeners.add(subscription.pattern, group)
        group.app, group.pattern = subscription.app, subscription.pattern
        return group

    def _create(self, subscription: Subscription, name: str) -> Group:
        group = self.groups[name] = (OrderedGroup if subscription.ordered else Group)(name, subscription)
        self.listeners.add(subscription.pattern, group)
        self.listeners.add(GROUP + name, group)
        return group

    def forget(self, group: Group) -> None:
        self.listeners.remove(group.pattern, group)
        for name in group.names:
            self.listeners.remove(GROUP + name, group)
        del self.groups[group.names[-1]]

    def rewind(self, group: Group, start: float) -> None:
        """The group gets again all that is retained since ``start``; what still waits is not repeated."""
        again = [stored for stored in self.retained(group.pattern) if stored.message.time >= start]
        known = {stored.position for stored in again}
        fresh = again + [stored for stored in group.backlog() if stored.position not in known]
        group.restore(fresh, [entry for entry in group.waiting() if entry.position not in known])
        self.floor = -1.0


class MemoryTransport(Keeping):
    """One end of a store: what a process is to a bus of several processes."""

    capabilities = CAPABILITIES

    def __init__(self, options: Memory) -> None:
        self.options, self.lease = options, seconds(options.lease, "lease")
        self.consumers: dict[GroupConsumer, None] = {}
        self.clock = SYSTEM
        self.notify: Notify = lambda event: None
        self.client: Store | None = None

    @property
    def store(self) -> Store:
        """The store, with what was delayed and is due in it."""
        if self.client is None:
            raise errors.BusUnavailable("this memory bus is not open")
        if self.client.delayed:
            self.client.turn(self.clock.now(), self.notify)
        return self.client

    async def open(self, notify: Notify) -> None:
        name, new = self.options.name, Store(self.options)
        store = _shared.setdefault(name, new) if name else new
        if store.thread != new.thread:
            raise errors.BusUnavailable(f"memory://{name} belongs to another thread", mend="use sqlite://")
        store.users += 1
        self.clock, self.notify, self.client = current_clock(), notify, store
        notify(Event("connected"))

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        if error := self.store.refuse(messages):
            return [Failure(index, "rejected", error) for index in range(len(messages))]
        self.store.append(messages, self.clock.now(), self.notify)
        return ()

    async def subscribe(self, subscription: Subscription) -> GroupConsumer:
        return GroupConsumer(self, self.store.join(subscription, subscription.group))

    async def close(self) -> None:
        self._leave(lost=None)  # what was not closed with its consumer keeps its lease: it may run

    def abandon(self) -> None:
        """Die as a killed process does: nothing is settled any more, and what was in hand comes back as suspect."""
        self._leave(lost=True)

    def _leave(self, lost: bool | None) -> None:
        for consumer in tuple(self.consumers):
            consumer.end(lost)
        store, self.client = self.client, None
        if store is not None:
            store.users -= 1
            if not store.users:
                _shared.pop(self.options.name, None)

    async def topics(self, pattern: str = ">") -> Sequence[spi.TopicInfo]:
        times: dict[str, list[float]] = {}
        for stored in self.store.retained(pattern):
            times.setdefault(stored.message.destination, []).append(stored.message.time)
        return [spi.TopicInfo(topic, len(found), max(found)) for topic, found in sorted(times.items())]

    async def groups(self, pattern: str = ">") -> Sequence[spi.GroupInfo]:
        known = [group for name, group in sorted(self.store.groups.items()) if matches(pattern, name)]
        return [g.info(sum(len(self.store.dead.get(DEAD + name, ())) for name in g.names)) for g in known]

    async def peek(self, pattern: str, after: int = 0, limit: int = 100) -> Sequence[Stored]:
        return self.store.retained(pattern, after, limit)

    async def position(self) -> int:
        return self.store.position

    async def rename(self, group: str, to: str) -> None:
        found, store = self._at_rest(group), self.store
        if to in store.groups:
            raise errors.BusError(f"group {to!r} exists", mend=f"drop it first, or drop {group!r}")
        found.names.append(to)  # it still answers to the old one: dead letters of before are replayed there
        store.groups[to] = store.groups.pop(group)
        store.listeners.add(GROUP + to, found)

    async def drop(self, group: str) -> None:
        self.store.forget(self._at_rest(group))

    async def seek(self, group: str, start: float) -> None:
        self.store.rewind(self._at_rest(group), start)

    def _at_rest(self, name: str) -> Group:
        group = self.store.groups.get(name)
        if group is None:
            raise errors.NotFound(f"no group {name!r}", mend=errors.nearest(name, self.store.groups))
        if group.members:
            raise errors.BusError(f"group {name!r} has members at work", mend="stop the app that consumes it")
        return group

    async def tick(self, name: str, due: float) -> bool:
        before = self.store.ticks.get(name, -math.inf)
        self.store.ticks[name] = max(due, before)
        return due > before


_shared: dict[str, Store] = {}


class GroupConsumer(Committing):
    """A member of a group."""

    def __init__(self, transport: MemoryTransport, group: Group) -> None:
        self.transport, self.store, self.group = transport, transport.store, group
        self.clock, self.lease = transport.clock, math.inf if isinstance(group, LiveGroup) else transport.lease
        self.loop, self.stopped = asyncio.get_running_loop(), False
        self.future: asyncio.Future[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        group.members[self] = transport.consumers[self] = None

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not self.stopped:
            if taken := self._take(limit):
                return taken
            self.future = self.loop.create_future()
            self._arm()
            await self.future
        return ()

    def wake(self) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def stop(self) -> None:
        self.stopped = True
        self.wake()

    def _take(self, limit: int) -> list[Delivery]:
        if self.group.dropped:
            self.transport.notify(Event("dropped", self.group.dropped, self.group.pattern))
            self.group.dropped = 0
        self.store.turn(now := self.clock.now(), self.transport.notify)
        claim = Claim(self, self.clock.monotonic() + self.lease)
        taken = self.group.take(claim, limit, now)
        if taken:
            claim.todo = {delivery.token: delivery for delivery in taken}
            self.group.members[self] = self.group.members.pop(self)
            if self.lease < math.inf:  # what is live needs no settling, so nobody keeps it
                self.group.claims.add(claim)
                self.timer = self.timer or self.loop.call_later(self.lease, self._turn)
        return taken

    def _arm(self) -> None:
        """Be called back at the next moment that changes something of this group by itself."""
        waits = [claim.deadline - self.clock.monotonic() for claim in self.group.claims]
        if self.future is not None and not self.future.done():
            due = [heap[0][0] - self.clock.now() for heap in (self.group.parked, self.store.delayed) if heap]
            waits += [min(wait, LOOK_AGAIN) for wait in due]
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_later(max(0.0, min(waits)), self._turn) if waits else None

    def _turn(self) -> None:
        self.timer = None
        for claim in tuple(self.group.claims):
            if late := claim.late(self.clock.monotonic()):
                self.group.end(claim, late, self.clock.now(), lost=True)
                self.transport.notify(Event("recovered", len(late), self.group.names[-1]))
        self.group.wake()
        self._arm()

    async def settle(self, settlements: Sequence[spi.Settlement]) -> Sequence[Failure]:
        failures, claims, plain = list[Failure](), self.group.claims, not self.group.ordered
        for index, settlement in enumerate(settlements):
            delivery = settlement.delivery
            if plain and type(settlement.action) is spi.Ack and not settlement.outgoing:
                claim: Any = delivery.session
                if claim is LOST or claim.todo.pop(delivery.token, None) is None:
                    failures.append(_fenced(index, delivery))
                elif not claim.todo:
                    claims.discard(claim)
            else:
                failures += self._settle(index, settlement)
        if fenced := sum(failure.kind == "fenced" for failure in failures):
            self.transport.notify(Event("fenced", fenced, self.group.names[-1]))
        return failures

    def _unfit(self, index: int, settlement: spi.Settlement) -> Failure | None:
        """Why it cannot be done."""
        if _holder(settlement.delivery) is None:
            return _fenced(index, settlement.delivery)
        error = self.store.refuse(settlement.outgoing) if settlement.outgoing else None
        return Failure(index, "rejected", error) if error else None

    def _settle(self, index: int, settlement: spi.Settlement) -> list[Failure]:
        """One settlement, whole or not at all."""
        if failure := self._unfit(index, settlement):
            return [failure]
        delivery, action, now = settlement.delivery, settlement.action, self.clock.now()
        claim: Any = delivery.session
        position = delivery.token
        if settlement.outgoing:
            self.store.append(settlement.outgoing, now, self.transport.notify)
        held = claim.todo.pop(position)
        if not claim.todo:
            self.group.claims.discard(claim)
        if not isinstance(action, spi.Ack):
            failures = action.failures if isinstance(action, spi.Retry) else claim.failures.get(position, 0)
            self.group.park(Parked(now + action.delay, position, held.message, failures, held.crashes, False))
        self.group.settled(held)
        self.group.wake()
        return []

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        end = self.clock.monotonic() + self.lease
        for delivery in deliveries:
            if claim := _holder(delivery):
                claim.renewed[delivery.token] = end

    async def mark(self, delivery: Delivery) -> bool:
        if claim := _holder(delivery):
            claim.marked.add(delivery.token)
        return claim is not None

    async def close(self) -> None:
        self.end(lost=False)

    def end(self, lost: bool | None) -> None:
        self.stop()
        for claim in [claim for claim in self.group.claims if claim.consumer is self and lost is not None]:
            self.group.end(claim, tuple(claim.todo), self.clock.now(), bool(lost))
        if self.timer is not None:
            self.timer.cancel()
        self.group.members.pop(self, None)
        self.group.wake()
        if self in self.transport.consumers:
            del self.transport.consumers[self]
            if isinstance(self.group, LiveGroup):
                self.store.listeners.remove(self.group.pattern, self.group)


def _holder(delivery: Delivery) -> Claim | None:
    claim = delivery.session
    return claim if isinstance(claim, Claim) and delivery.token in claim.todo else None


def _fenced(index: int, delivery: Delivery) -> Failure:
    error = errors.BusError(f"{delivery.message.topic!r}: not held any more", why="its lease ended, or it was settled")
    return Failure(index, "fenced", error)
