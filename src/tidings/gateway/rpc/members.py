"""The service ``tidings.v1.Transport``: apps of ours as members of the served bus.

Each member has the bus opened once for itself, as if it ran here: its leases, fences, counts and events are the bus's
own. Of a member that is lost the bus is closed, and its consumers are not: what they hold keeps its lease, as that of a
process that died, so that a message that kills its member is known for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from tidings.gateway.gateway import Gateway, audit
from tidings.gateway.refusals import Limited, Malformed
from tidings.gateway.rights import Principal
from tidings.kernel.errors import BusError, TidingsError, Unsupported
from tidings.kernel.transport import (
    Consumer,
    Delivery,
    Event,
    Failure,
    Release,
    Settlement,
    Subscription,
)
from tidings.transports.grpc.wire import (
    PIECE,
    VERSION,
    failed,
    framed,
    heard,
    packed,
    pb,
    pieces,
    refused,
    settlement,
    some,
    told,
    unpacked,
)
from tidings.transports.memory import Memory

from .calls import Stream

log = logging.getLogger("tidings")

MANY = 1000  # asks of one member at work
AT_ONCE, IN_HAND = 10_000, 20_000  # deliveries that one ask brings; of one consumer
UNTOLD = 10_000  # frames that wait to be written; beyond, events are not told
OFFERS = ("topics", "groups", "peek", "position", "rename", "drop", "seek", "tick")

Answered = Sequence[Any]  # answers to one ask, without their number


class Held:
    """A consumer in a member's hands."""

    def __init__(self, consumer: Consumer, live: bool) -> None:
        self.consumer, self.live = consumer, live
        self.number = 0
        self.deliveries: dict[int, Delivery] = {}
        self.receiving: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing receives from it."""
        return self.receiving is None or self.receiving.done()

    def hand(self, came: Sequence[Delivery]) -> list[Any]:
        """Give them numbers: as they travel."""
        made = []
        for d in came:
            self.number += 1
            if not self.live:
                self.deliveries[self.number] = d
            told = {"failures": d.failures, "crashes": d.crashes, "suspect": d.suspect}
            made.append(pb.Delivery(message=packed(d.message), number=self.number, **told))
        return made

    def lost(self) -> list[int]:
        """Those that have become somebody else's; they are forgotten."""
        found = [number for number, each in self.deliveries.items() if not each.session.alive]
        for number in found:
            del self.deliveries[number]
        return found


class Member:
    """One member: its end of the bus, its consumers, and what is to be written to it."""

    def __init__(self, gateway: Gateway, who: Principal, stream: Stream) -> None:
        self.gateway, self.who, self.stream = gateway, who, stream
        options = gateway.bus.options
        self.shared = isinstance(options, Memory) and not options.name  # nobody else can open it
        self.bus: Any = gateway.bus.transport if self.shared else options.transport()
        self.consumers: dict[int, Held] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.receiving: set[asyncio.Task[None]] = set()  # one a consumer, for as long as nothing comes
        self.opening: asyncio.Task[None] | None = None
        self.writing: asyncio.Task[None] | None = None
        self.frames: deque[tuple[int, bytes]] = deque()
        self.more, self.number = asyncio.Event(), 0
        self.welcomed = False
        self.leaves = self.gone = False  # it said goodbye; it is gone without
        self.does: dict[str, Callable[[Any], Awaitable[Answered]]] = {
            "publish": self._publish,
            "subscribe": self._subscribe,
            "receive": self._receive,
            "settle": self._settle,
            "extend": self._extend,
            "mark": self._mark,
            "close": self._close,
            "topics": self._topics,
            "groups": self._groups,
            "peek": self._peek,
            "rename": self._rename,
            "drop": self._drop,
            "seek": self._seek,
            "tick": self._tick,
            "position": self._position,
        }

    # -- life cycle

    async def open(self, frame: int) -> None:
        """Open the bus, and say what it is."""
        if not self.shared:
            await self.bus.open(self._event)
        has = told(pb.Capabilities, self.bus.capabilities)
        offers = [name for name in OFFERS if hasattr(self.bus, name)]
        told_of = {"offers": offers, "frame": frame, "version": VERSION}
        self.frames.appendleft((1, pb.Answer(welcome=pb.Welcome(capabilities=has, **told_of)).SerializeToString()))
        self.more.set()
        self.welcomed = True
        self.writing = asyncio.create_task(self.write())

    async def leave(self, clean: bool, wait: Callable[[float], Awaitable[None]]) -> None:
        """Close all. What a member that is lost has in hand is left to its lease: not given back, but a dead one's.

        A part that fails is told to the log, and the rest is closed.
        """
        self.gone = not clean
        if self.opening is not None:
            await asyncio.wait({self.opening})
            if self.opening.exception() is not None:
                return
        if self.writing is not None:
            self.writing.cancel()
        for held in self.consumers.values():
            held.consumer.stop()
        if working := self.tasks | self.receiving:
            await asyncio.wait(working)
        if self.gone and self.shared:
            await wait(2 * max((h.consumer.lease for h in self.consumers.values() if h.deliveries), default=0.0))
        for number in tuple(self.consumers) if clean or self.shared else ():
            await parted(self._closed(number))
        self.gateway.streams -= len(self.consumers)
        self.consumers.clear()
        if not self.shared:
            await parted(self.bus.close())

    # -- what is written

    def _event(self, event: Event) -> None:
        if (self.welcomed or event.kind != "connected") and len(self.frames) < UNTOLD:
            self._put(2, told(pb.Event, event))

    def _put(self, field: int, message: Any) -> None:
        self.frames.append((field, message.SerializeToString()))
        self.more.set()

    def _answer(self, number: int, answers: Answered) -> None:
        for index, answer in enumerate(answers):
            answer.number, answer.more = number, index < len(answers) - 1
            self._put(1, answer)

    async def write(self) -> None:
        """Write whatever waits, as much as fits in a frame at once; for ever."""
        try:
            while True:
                await self.more.wait()
                self.more.clear()
                while self.frames:
                    await self.stream.write(framed(some(self.frames)))
        except TidingsError as error:
            self.stream.end(error)

    # -- what is asked

    async def take(self, ask: Any) -> None:
        """Begin to do it; waits while much is being done. A consumer that waits for messages does nothing."""
        what = ask.WhichOneof("what")
        if what == "stop":
            if held := self.consumers.get(ask.consumer):
                held.consumer.stop()
            return
        if what == "leave":
            self.leaves = True
            return
        if what not in self.does:
            raise Malformed("an ask asks for nothing that is known here", mend="use the same version on both sides")
        task = asyncio.create_task(self._do(ask, self.does[what]))
        working = self.tasks
        if what == "receive" and (held := self.consumers.get(ask.consumer)) and held.idle:
            held.receiving, working = task, self.receiving
        working.add(task)
        task.add_done_callback(working.discard)
        if len(self.tasks) >= MANY:
            await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)

    async def _do(self, ask: Any, do: Callable[[Any], Awaitable[Answered]]) -> None:
        try:
            answers = await do(ask)
        except Exception as error:
            if not isinstance(error, TidingsError):
                log.exception("a member's ask failed")
            answers = [pb.Answer(error=refused(error))]
        self._answer(ask.number, answers)

    def _held(self, ask: Any) -> Held:
        held = self.consumers.get(ask.consumer)
        if held is None:
            raise Malformed(f"there is no consumer {ask.consumer}")
        return held

    async def _publish(self, ask: Any) -> Answered:
        messages = list(map(unpacked, ask.publish.messages))
        self.gateway.pace.take(self.who.name, len(messages))
        return [pb.Answer(failures=failed(await self.bus.publish(messages)))]

    async def _subscribe(self, ask: Any) -> Answered:
        if self.gateway.streams >= self.gateway.limits.connections:
            raise Limited(f"more than {self.gateway.limits.connections:,} streams are open")
        subscription = heard(Subscription, ask.subscribe)
        consumer = await self.bus.subscribe(subscription)
        self.number += 1
        self.consumers[self.number] = Held(consumer, subscription.group is None)
        self.gateway.streams += 1
        return [pb.Answer(subscribed=pb.Subscribed(consumer=self.number, lease=consumer.lease))]

    async def _receive(self, ask: Any) -> Answered:
        held = self._held(ask)
        held.lost()
        room = min(ask.receive, AT_ONCE, IN_HAND - len(held.deliveries))
        if held.receiving is not asyncio.current_task() or room <= 0:
            raise Malformed("a consumer is asked once at a time, and for some", mend="settle what is in hand first")
        came = await held.consumer.receive(room)
        if self.gone and came and not held.live:  # nobody has seen them
            await held.consumer.settle([Settlement(each, Release()) for each in came])
            return ()
        return [pb.Answer(deliveries=run) for run in pieces(held.hand(came), PIECE)] or [pb.Answer()]

    async def _settle(self, ask: Any) -> Answered:
        held, asked = self._held(ask), ask.settle
        made = asked.settlements or [pb.Settlement(number=number) for number in asked.acknowledged]
        failures, mine, settlements = list[Failure](), list[int](), list[Settlement]()
        for index, each in enumerate(made):
            if known := held.deliveries.get(each.number):
                mine.append(index)
                settlements.append(settlement(each, known))
            else:
                failures.append(Failure(index, "fenced", BusError("it is no longer in this member's hands")))
        if settlements:
            failures += [Failure(mine[f.index], f.kind, f.error) for f in await held.consumer.settle(settlements)]
        kept = {failure.index for failure in failures if failure.kind != "fenced"}
        for index in mine:
            if index not in kept:
                held.deliveries.pop(made[index].number, None)
        return [pb.Answer(failures=failed(failures))]

    async def _extend(self, ask: Any) -> Answered:
        held = self._held(ask)
        known = [each for number in ask.extend.numbers if (each := held.deliveries.get(number))]
        if known:
            await held.consumer.extend(known)
        return [pb.Answer(lost=held.lost())]

    async def _mark(self, ask: Any) -> Answered:
        held = self._held(ask)
        known = held.deliveries.get(ask.mark)
        return [pb.Answer(yes=known is not None and await held.consumer.mark(known))]

    async def _close(self, ask: Any) -> Answered:
        await self._closed(ask.consumer)
        return [pb.Answer()]

    async def _closed(self, number: int) -> None:
        if held := self.consumers.pop(number, None):
            self.gateway.streams -= 1
            await held.consumer.close()

    # -- what only some buses can

    def _can(self, name: str) -> Any:
        if name not in OFFERS or not hasattr(self.bus, name):
            raise Unsupported(f"the bus behind has no {name}", mend="its page in docs/transports says what it can")
        return getattr(self.bus, name)

    async def _topics(self, ask: Any) -> Answered:
        return [pb.Answer(topics=[told(pb.TopicInfo, each) for each in await self._can("topics")(ask.topics)])]

    async def _groups(self, ask: Any) -> Answered:
        return [pb.Answer(groups=[told(pb.GroupInfo, each) for each in await self._can("groups")(ask.groups)])]

    async def _peek(self, ask: Any) -> Answered:
        found = await self._can("peek")(ask.peek.pattern, ask.peek.after, min(ask.peek.limit, AT_ONCE))
        made = [pb.Stored(position=each.position, message=packed(each.message)) for each in found]
        return [pb.Answer(stored=run) for run in pieces(made, PIECE)] or [pb.Answer()]

    async def _rename(self, ask: Any) -> Answered:
        await self._can("rename")(ask.rename.group, ask.rename.to)
        audit.info("%s renamed the group %s: %s", self.who.name, ask.rename.group, ask.rename.to)
        return [pb.Answer()]

    async def _drop(self, ask: Any) -> Answered:
        await self._can("drop")(ask.drop)
        audit.info("%s dropped the group %s", self.who.name, ask.drop)
        return [pb.Answer()]

    async def _seek(self, ask: Any) -> Answered:
        await self._can("seek")(ask.seek.group, ask.seek.start)
        audit.info("%s let the group %s read again since %f", self.who.name, ask.seek.group, ask.seek.start)
        return [pb.Answer()]

    async def _tick(self, ask: Any) -> Answered:
        return [pb.Answer(yes=await self._can("tick")(ask.tick.name, ask.tick.due))]

    async def _position(self, ask: Any) -> Answered:
        return [pb.Answer(position=await self._can("position")())]


async def parted(part: Awaitable[None]) -> None:
    """Part of a member's leaving; it ends, whatever happens."""
    try:
        await part
    except BusError as error:
        log.info("a member left, and a part of it was not closed: %s", error)
    except Exception:
        log.exception("a member left, and a part of it was not closed")


class TransportService:
    """The endpoint, and those who are leaving."""

    def __init__(self, gateway: Gateway, frame: int) -> None:
        self.gateway, self.frame = gateway, frame
        self.leaving: set[asyncio.Task[None]] = set()
        self.stopping = asyncio.Event()

    async def join(self, _: Any, who: Principal, stream: Stream) -> None:
        who.need_all_of("member")
        member = Member(self.gateway, who, stream)
        member.opening = asyncio.create_task(member.open(self.frame))
        try:
            await asyncio.shield(member.opening)  # whoever leaves meanwhile leaves no open bus behind
            while not member.leaves and (frame := await stream.read()) is not None:  # or it is gone without a word
                for ask in frame.asks:
                    await member.take(ask)
        finally:
            leaving = asyncio.create_task(member.leave(member.leaves or self.stopping.is_set(), self._wait))
            self.leaving.add(leaving)
            leaving.add_done_callback(self.leaving.discard)
        await asyncio.shield(leaving)

    async def _wait(self, time: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(time):
                await self.stopping.wait()

    async def close(self) -> None:
        """Give back what members still have in hand."""
        self.stopping.set()
        if self.leaving:
            await asyncio.wait(self.leaving)
