"""What a subscription is on the embedded bus: a member of a group, or a live copy of the log's head."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import apsw
from msgspec import DecodeError

from tidings.kernel import transport as spi
from tidings.kernel.errors import BusError, TooLarge
from tidings.kernel.topics import DEAD, GROUP
from tidings.kernel.transport import Delivery, Event, Failure
from tidings.store import Unit
from tidings.transports._live import answers
from tidings.transports._waiting import Waiting

from . import translate
from .claims import Outgoing, Taken
from .groups import Group
from .log import END, Interest
from .records import settle

if TYPE_CHECKING:
    from .transport import SQLiteTransport

LIVE_BUFFER = 1024


class GroupConsumer(Waiting):
    """A member of a group."""

    def __init__(self, transport: SQLiteTransport, group: int, subscription: spi.Subscription) -> None:
        super().__init__(transport.matcher, subscription.pattern, f"{GROUP}{subscription.group}")
        self.transport, self.group, self.subscription, self.lease = transport, group, subscription, transport.lease
        self.siblings = transport.consumers.setdefault(group, [])
        self.siblings.append(self)
        self.more = True  # perhaps there is more to claim
        self.extended: Sequence[Delivery] = ()
        self.due: float | None = None
        self.known: Group | None = None  # as it was when last claimed from

    async def receive(self, limit: int) -> Sequence[Delivery]:
        transport = self.transport
        while not self.stopped:
            if not self.more:
                await self.sleep(None if self.due is None else self.due - transport.clock.now())
            self.hot = False
            if self.subscription.ordered and self.siblings[0] is not self:  # one process holds each key once
                await self.sleep()
                continue
            self.more = True  # until an answer says otherwise: what woke us comes only once
            taken = await transport.writer.submit(partial(transport.steps.claim, self.group, limit, self), soft=True)
            self.more, self.due = self._listen() or taken.more, taken.due
            if deliveries := self._deliveries(taken):
                return deliveries
        return ()

    def _listen(self) -> bool:
        """To what the group reads now, which others may have changed, its former names too; whether that is new."""
        group = self.transport.steps.groups.get(self.group)
        if group is None or group is self.known:
            return group is None  # it was changed by what we did ourselves
        self.known = group
        return self.listen(pattern for pattern, _, last in group.patterns if last == END)

    def _deliveries(self, taken: Taken) -> list[Delivery]:
        again = [Delivery(message, h, seq, h.failures, h.crashes, h.suspect) for h, seq, message in taken.takes]
        claim: Any = taken.claim
        fresh = zip(taken.found.messages, taken.found.numbers, strict=True)
        return again + [Delivery(message, claim, seq) for message, seq in fresh]

    async def settle(self, settlements: Sequence[spi.Settlement]) -> Sequence[Failure]:
        transport = self.transport
        outgoing: dict[int, Outgoing | Failure] = {}
        for index, settlement in enumerate(settlements):
            if settlement.outgoing:
                rows = transport.prepare(settlement.outgoing)
                outgoing[index] = Failure(index, "rejected", rows) if isinstance(rows, TooLarge) else rows
        step = partial(transport.steps.settle, settlements, outgoing)
        failures = await transport.writer.submit(
            step, soft=all(s.action is spi.ACK and not s.outgoing for s in settlements)
        )
        return self._told(failures)

    def _told(self, failures: Sequence[Failure]) -> Sequence[Failure]:
        if fenced := sum(failure.kind == "fenced" for failure in failures):
            self.transport.notify(Event("fenced", fenced, self.subscription.group or ""))
        return failures

    async def commit(self, units: Sequence[Unit]) -> Sequence[Failure]:
        return self._told(await settle(self.transport, units))

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        self.extend_at(time.monotonic(), deliveries)

    def extend_at(self, now: float, deliveries: Sequence[Delivery]) -> None:
        """Until their leases have passed, deliveries are known: when their claim is divided, they go with its rest."""
        for delivery in deliveries:
            delivery.session.seen[delivery.token] = now  # type: ignore[attr-defined]
        late = now - 2 * self.lease
        earlier: Any = (d for d in self.extended if d.session.seen.get(d.token, 0.0) > late)  # type: ignore[attr-defined]
        self.extended = list({id(d): d for d in (*earlier, *deliveries)}.values())

    async def mark(self, delivery: Delivery) -> bool:
        step: Any = partial(self.transport.steps.mark, delivery.session, delivery.token)  # type: ignore[arg-type]
        return bool(await self.transport.writer.submit(step))

    async def close(self) -> None:
        self.stop()
        if self.closed:
            return
        self.closed = True
        self.listen(())
        self.extended = ()
        self.siblings.remove(self)
        for sibling in self.siblings:
            sibling.wake()
        step = partial(self.transport.steps.close, self.group, self, not self.siblings)
        if self.transport._writer is not None:
            try:
                await self.transport.writer.submit(step)
            except BusError as error:  # what it holds comes back when this process or its lease ends
                self.transport.notify(Event("lost", 1, str(error)))


class LiveConsumer(Waiting):
    """A live copy: it reads the log from its head, keeps 1,024 messages, and settles nothing."""

    lease = float("inf")

    def __init__(self, transport: SQLiteTransport, pattern: str) -> None:
        super().__init__(transport.matcher, pattern)
        self.transport, self.session, self.buffer = transport, spi.Session(), deque[Delivery]()
        self.interest, self.known = Interest(), 0
        self._refresh()
        self.position = transport.view.seq

    def _refresh(self) -> None:
        view, (pattern,) = self.transport.view, self.patterns
        view.begin(self.transport.clock.now())
        if view.known > self.known:
            self.interest.add(view.matching(pattern, self.known), pattern.startswith(DEAD))
            self.known = view.known

    def wake(self) -> None:
        try:
            if not self.stopped:
                with self.transport.view.con:
                    self._read()
        except (apsw.Error, DecodeError) as error:  # others are to be woken, too
            self.transport.notify(Event("lost", 1, str(translate(error, self.transport.path))))
        super().wake()

    def _read(self) -> None:
        view, dropped, stretches = self.transport.view, 0, 8
        self._refresh()
        while self.position < view.seq and stretches:
            found, self.position = view.scan(self.interest, self.position, LIVE_BUFFER)
            self.buffer.extend(Delivery(message, self.session) for message in found.messages)
            while len(self.buffer) > LIVE_BUFFER:
                self.buffer.popleft()
                dropped += 1
            stretches -= 1
        if self.position < view.seq:
            self.loop.call_soon(self.wake)
        if dropped:
            self.transport.notify(Event("dropped", dropped, self.patterns[0]))

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not self.stopped:
            self.hot = False
            if self.buffer:
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
