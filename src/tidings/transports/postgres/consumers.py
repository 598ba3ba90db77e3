"""What a subscription is on PostgreSQL: a member of a group, or a live copy of the log's head."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tidings.kernel import transport as spi
from tidings.kernel.errors import TidingsError
from tidings.kernel.topics import GROUP
from tidings.kernel.transport import Delivery, Event, Failure
from tidings.store import Unit
from tidings.transports._live import answers
from tidings.transports._matcher import expression
from tidings.transports._points import passed
from tidings.transports._records import messages
from tidings.transports._waiting import Waiting

from .connections import Unanswered
from .hands import Held
from .keeping import prepared, settle

if TYPE_CHECKING:
    from .transport import PostgresTransport

LIVE_BUFFER = 1024


class Lane:
    """The claims of one group in this process: one at a time; ``doubt``: an answer was lost, so hands may be wrong."""

    def __init__(self) -> None:
        self.consumers: list[GroupConsumer] = []
        self.lock = asyncio.Lock()
        self.doubt = False


class GroupConsumer(Waiting):
    """A member of a group."""

    def __init__(self, transport: PostgresTransport, group: int, subscription: spi.Subscription) -> None:
        super().__init__(transport.matcher, subscription.pattern, f"{GROUP}{subscription.group}")
        self.transport, self.group, self.subscription, self.lease = transport, group, subscription, transport.lease
        self.lane = transport.lanes.setdefault(group, Lane())
        self.lane.consumers.append(self)
        self.more = True  # perhaps there is more to claim
        self.due: float | None = None
        self.generation = 0
        self.extended: Sequence[Delivery] = ()

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not self.stopped:
            if not self.more:
                await self.sleep(self.due)
            self.hot = False
            if self.stopped:
                break
            if self.subscription.ordered:
                if self.lane.consumers[0] is not self:  # one process holds each key once
                    await self.sleep()
                    continue
                deliveries = await self.transport.writer.turn(lambda: self._claim(limit))
            else:
                async with self.lane.lock:
                    deliveries = await self._claim(limit)
            if deliveries:
                return deliveries
        return ()

    async def _claim(self, limit: int) -> list[Delivery]:
        """Parked ones that are due, then fresh ones. What the answer would have said is not lost with it."""
        transport, hands = self.transport, self.transport.hands
        if self.stopped:
            return []
        self.more = True  # until an answer says otherwise: what woke us comes only once
        if self.lane.doubt:
            await transport.call("resync", hands.member, self.group, *hands.of(self.group), repeat=True)
            self.lane.doubt = False
        member, id, solo = hands.member, secrets.randbits(62), transport.suspects
        transport.suspects += 1
        if solo:
            transport.denied.add(self)  # a suspect, which the other may not find
        args: list[Any] = [
            self.group,
            member,
            id,
            limit,
            0 if solo or any(h.suspect for h in hands.takes.values()) else 1,
        ]
        passed("claim")
        try:
            if self.subscription.ordered:
                row = await transport.call("claim_ordered", *args, *hands.busy(self.group))
            else:
                row = await transport.call("claim", *args)
        except Unanswered:
            self.lane.doubt = True
            return []
        finally:
            transport.suspects -= 1
            if not transport.suspects:
                while transport.denied:
                    transport.denied.pop().wake()
        passed("claim.taken")
        self.more, self.due = row["more"], row["wait"]
        if row["generation"] != self.generation:
            self.generation = row["generation"]
            self.more |= self.listen(await transport.value("patterns", self.group, repeat=True) or ())
        if member != hands.member:  # lost meanwhile: what was claimed goes back with the rest
            self.more = True
            return []
        return self._take(id, row)

    def _take(self, id: int, row: Any) -> list[Delivery]:
        hands, now, came = self.transport.hands, time.monotonic(), list[Delivery]()
        if again := row["again"]:
            columns = zip(
                messages(row["parked_records"], len(again)),
                *(row[name] for name in ("again", "takes", "failures", "crashes", "suspects")),
                strict=True,
            )
            for message, seq, take, failures, crashes, suspect in columns:
                held = hands.takes[self.group, seq] = Held(self.group, {seq}, now, self)
                held.take, held.failures, held.crashes, held.suspect = take, failures, crashes, suspect
                came.append(Delivery(message, held, seq, failures, crashes, suspect))
        if seqs := row["seqs"]:
            fresh = zip(messages(row["records"], len(seqs)), seqs, strict=True)
            claim = Held(self.group, set(seqs), now, self, id)
            if self.subscription.ordered:
                claim.todo.difference_update(row["behind"])
                claim.hashes = {seq: hash for seq, hash in zip(seqs, row["hashes"], strict=True) if seq in claim.todo}
                fresh = (entry for entry in fresh if entry[1] in claim.todo)  # type: ignore[assignment]
            if claim.todo:
                hands.claims[id] = claim
            came += [Delivery(message, claim, seq) for message, seq in fresh]
        return came

    async def settle(self, settlements: Sequence[spi.Settlement]) -> Sequence[Failure]:
        outgoing = {index: settlement.outgoing for index, settlement in enumerate(settlements) if settlement.outgoing}
        rows = await prepared(self.transport, [*outgoing.values()])
        return self._told(await self.transport.writer.settle(settlements, dict(zip(outgoing, rows, strict=True))))

    async def commit(self, units: Sequence[Unit]) -> Sequence[Failure]:
        return self._told(await settle(self.transport, units))

    def _told(self, failures: Sequence[Failure]) -> Sequence[Failure]:
        if fenced := sum(failure.kind == "fenced" for failure in failures):
            self.transport.notify(Event("fenced", fenced, self.subscription.group or ""))
        return failures

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """In memory: the heartbeat tells the database, and ``transport.py`` gives back what is not extended."""
        now = time.monotonic()
        for delivery in deliveries:
            delivery.session.seen[delivery.token] = now  # type: ignore[attr-defined]
        late = now - 2 * self.lease
        earlier: Any = (d for d in self.extended if d.session.seen.get(d.token, 0.0) > late)  # type: ignore[attr-defined]
        self.extended = list({id(d): d for d in (*earlier, *deliveries)}.values())

    async def mark(self, delivery: Delivery) -> bool:
        held: Any = delivery.session
        if not self.transport.hands.mine(held, delivery.token):
            return False
        if not held.take:
            return True
        args = self.transport.hands.member, held.group, delivery.token, held.take
        return bool(await self.transport.value("mark", *args, repeat=True))

    async def close(self) -> None:
        self.stop()
        if self.closed:
            return
        self.closed, self.extended = True, ()
        self.listen(())
        async with self.lane.lock:
            self.lane.consumers.remove(self)
        for sibling in self.lane.consumers:
            sibling.wake()
        with suppress(TidingsError):  # what it holds comes back when this process or its lease ends
            await self.transport.writer.turn(self._leave)

    async def _leave(self) -> None:
        transport = self.transport
        mine = {held: set(held.todo) for held in transport.hands.all() if held.owner is self}
        await transport.keeper.give_back(mine, suspect=False)
        if self.lane.doubt:
            await transport.call(
                "resync", transport.hands.member, self.group, *transport.hands.of(self.group), repeat=True
            )
            self.lane.doubt = False
        passed("close.given")
        if not self.lane.consumers:
            await transport.call("quit", transport.hands.member, self.group, repeat=True)
            transport.signal({self.group})


class LiveConsumer(Waiting):
    """A live copy: it reads the log from its head, keeps 1,024 messages, and settles nothing."""

    lease = float("inf")

    def __init__(self, transport: PostgresTransport, pattern: str, position: int) -> None:
        super().__init__(transport.matcher, pattern)
        self.transport, self.position = transport, position
        self.session, self.buffer = spi.Session(), deque[Delivery]()
        self.fits, self.channels, self.known = expression(pattern).fullmatch, list[int](), 0
        self.news, self.woken, self.read = asyncio.Event(), 0, 0  # how often, and what was read since
        self.task = self.loop.create_task(self._read())

    def wake(self) -> None:
        self.woken += 1
        self.news.set()

    def stop(self) -> None:
        self.stopped = True
        self.news.set()
        super().wake()

    async def _read(self) -> None:
        more = False
        while not self.stopped:
            if not more:
                super().wake()
                await self.news.wait()
            self.news.clear()
            woken = self.woken
            names = self.transport.names
            if names and max(names) > self.known:
                self.known = max(names)
                self.channels = [id for id, topic in names.items() if self.fits(topic)]
            if not self.channels or self.stopped:
                more, self.read = False, woken
                continue
            try:
                row = await self.transport.call("live", self.channels, self.position, LIVE_BUFFER, repeat=True)
                if row["newest"] > self.known:  # perhaps one of ours: read again when its name is known
                    await self.transport.tail_once()
                    more = True
                    continue
            except TidingsError as error:
                self.transport.notify(Event("lost", 1, str(error)))
                await asyncio.sleep(1)
                more = True
                continue
            self.position, more = row["looked"], row["more"]
            self._keep(messages(row["records"], len(row["seqs"])) if row["seqs"] else [])
            if not more:
                self.read = woken

    def _keep(self, found: Sequence[Any]) -> None:
        self.buffer.extend(Delivery(message, self.session) for message in found)
        if dropped := max(0, len(self.buffer) - LIVE_BUFFER):
            for _ in range(dropped):
                self.buffer.popleft()
            self.transport.notify(Event("dropped", dropped, self.patterns[0] if self.patterns else ""))

    async def receive(self, limit: int) -> Sequence[Delivery]:
        newest, head = self.woken, self.transport.head
        while not self.stopped:
            self.hot = False
            if self.buffer and (self.read >= newest or self.position >= head):  # who is slow gets the newest
                return [self.buffer.popleft() for _ in range(min(limit, len(self.buffer)))]
            await self.sleep()
        return ()

    async def settle(self, settlements: Sequence[spi.Settlement]) -> Sequence[Failure]:
        return await answers(self.transport.publish, settlements)

    async def extend(self, deliveries: Sequence[Delivery]) -> None: ...

    async def mark(self, delivery: Delivery) -> bool:
        return not self.stopped

    async def close(self) -> None:
        self.stop()
        if not self.closed:
            self.closed = True
            self.listen(())
            await asyncio.gather(self.task, return_exceptions=True)
