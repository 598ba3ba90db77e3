"""A group's messages in a client's hands: each is settled when the client acknowledges it.

Everything between is the kernel's: order by key, retries, dead letters, leases, giving back when a client goes. The
client is the handler; here is its inbox and what it says of each message.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from msgspec import Struct

from tidings.kernel.bus import Bus
from tidings.kernel.errors import BusError
from tidings.kernel.handler import Handler, Outgoing
from tidings.kernel.message import Message
from tidings.kernel.outcome import Backoff
from tidings.kernel.settling import Policy
from tidings.kernel.transport import Delivery, Subscription
from tidings.kernel.worker import Work, Worker

from .refusals import Limited


class Claimed(Struct, frozen=True):
    """A message in a client's hands. ``number``: what it acknowledges it by; ``attempt``: from 1."""

    number: int
    attempt: int
    message: Message[Any]


class Hands:
    """What all clients together may have in hand: each may cost a task."""

    def __init__(self, left: int) -> None:
        self.left = left

    def change(self, credit: int, to: int) -> int:
        """The new credit of who had ``credit``: what was asked for, or less. Raises ``Limited`` where there is none."""
        if to > credit:
            to = min(to, credit + self.left)
            if to == credit:
                raise Limited("all clients together have as many messages in hand as they may", mend="come back later")
        self.left -= to - credit
        return to


class Claim:
    """One client's share of one group. ``credit``: how many messages it may have unacknowledged; 0: none for now.

    Raises ``Limited``.
    """

    def __init__(self, credit: int, most: int, hands: Hands, counts: Counter[str]) -> None:
        self.most, self.number, self.hands, self.counts = most, 0, hands, counts
        self.credit = hands.change(0, max(0, min(credit, most)))
        self.inbox: deque[Claimed] = deque()
        self.pending: dict[int, asyncio.Future[None]] = {}
        self.arrived = asyncio.Event()
        self.worker: Worker | None = None
        self.task: asyncio.Task[None] | None = None

    async def open(self, bus: Bus, subscription: Subscription, timeout: float, backoff: Backoff) -> None:
        """Join the group. ``timeout``: seconds that the client may have a message in hand before it counts as failed.

        Raises ``Unsupported``, ``BusError``.
        """
        assert subscription.group is not None
        policy = Policy(group=subscription.group, ordered=subscription.ordered, backoff=backoff)
        work = Work(policy=policy, concurrency=max(self.credit, 1), timeout=timeout, grace=0.0)
        self.worker = worker = await bus.subscribe(subscription, Handler(one=self._one), work, None, "")
        worker.pause(not self.credit)
        self.task = asyncio.get_running_loop().create_task(worker.run())
        self.task.add_done_callback(lambda _: self.arrived.set())

    async def _one(self, delivery: Delivery) -> Outgoing:
        self.number += 1
        number, future = self.number, asyncio.get_running_loop().create_future()
        self.pending[number] = future
        self.inbox.append(Claimed(number, delivery.attempt, delivery.message))
        self.arrived.set()
        try:
            await future
        finally:
            del self.pending[number]
        return ()

    async def next(self) -> Sequence[Claimed]:
        """What came, at least one; ``()`` when it has ended. A cancelled call loses nothing. Raises what ended it."""
        while not self.inbox:
            if self.task is None or self.task.done():
                if self.task is not None and not self.task.cancelled() and (error := self.task.exception()):
                    raise error
                return ()
            self.arrived.clear()
            await self.arrived.wait()
        came = [claimed for claimed in self.inbox if claimed.number in self.pending]  # the others came too late
        self.inbox.clear()
        self.counts["delivered"] += len(came)
        return came or await self.next()

    def acknowledge(self, number: int) -> bool:
        """Done with it; False: it is not, or no longer, in this client's hands."""
        return self._told(number, None)

    def fail(self, number: int, error: BaseException) -> bool:
        """It went wrong: ``Reject``, ``Retry``, ``Defer``, ``Skip`` mean what they mean in a handler; others fail."""
        return self._told(number, error)

    def _told(self, number: int, error: BaseException | None) -> bool:
        future = self.pending.get(number)
        if future is None or future.done():
            return False
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
        return True

    def grant(self, credit: int) -> None:
        """From now on so many messages may be unacknowledged."""
        assert self.worker is not None
        wanted = max(0, min(credit, self.most))
        if wanted != self.credit:
            self.credit = self.hands.change(self.credit, wanted)
        if self.credit:
            self.worker.resize(self.credit)
        self.worker.pause(not self.credit)

    async def close(self) -> None:
        """Leave the group: what is unacknowledged goes back at once, uncounted; even if who calls this is cancelled."""
        self.credit, self.most = self.hands.change(self.credit, 0), 0
        if self.worker is not None and self.task is not None:
            self.worker.stop()
            with suppress(BusError):
                await asyncio.shield(self.task)
