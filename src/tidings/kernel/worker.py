"""The loop of one subscription: receive → lanes → handlers → settle; leases, deadlines, drain.

``concurrency`` long-lived tasks, at most one of them runnable: it takes a delivery, awaits its handler in line, and
goes on to the next. When the handler suspends, the next task carries on. There is no task, lock, timer or context
manager per message. One more task receives, another flushes settlements. Rules:

- A slice lasts 1 ms divided by the busy subscriptions of the loop, by the clock; then the loop gets a breath.
- A task whose handler left context variables behind is replaced.
- ``receive`` is never cancelled. What was received is held, and its lease extended, until its settlement is committed.
- ``blocked`` stops the taking of deliveries: while a task breathes, too much is unsettled, the worker is paused, or
  more tasks are there than are wanted now; those leave when their handlers end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from msgspec import Struct

from .clock import Clock
from .errors import BusError, HandlerTimeout
from .handler import Handler
from .outcome import Breaker
from .recovery import recover
from .settling import AGAIN, UNFLUSHED, Policy, Settling, given_back
from .transport import ACK, Consumer, Delivery, Settlement

log = logging.getLogger("tidings")

SLICE, SLICE_LEAST, FLUSH_AFTER = 0.001, 0.0001, 0.002  # seconds
DRAINED_FAST, DRAINED_SLOW = 0.05, 1.0  # seconds a received batch lasts: the prefetch doubles below, halves above


class Work(Struct, frozen=True, kw_only=True):
    """How a subscription is worked. Seconds."""

    policy: Policy
    concurrency: int = 16
    within: float = 0.0  # a batch may wait so long to fill
    timeout: float = 3600.0
    grace: float = 30.0  # what running handlers get at the end


class Slot:
    """One worker task: what it handles, and since when (0: nothing, or told to stop)."""

    __slots__ = ("deliveries", "since", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]
        self.since = 0.0
        self.deliveries: Sequence[Delivery] = ()


class Worker:
    """Works one subscription until ``stop``; ``run`` returns when everything in hand was settled or given back."""

    def __init__(
        self, consumer: Consumer, handler: Handler, work: Work, clock: Clock, busy: set[Any], breaker: Breaker | None
    ) -> None:
        # ``busy``: the loop's busy subscriptions
        self.consumer, self.handler, self.work, self.clock, self.busy = consumer, handler, work, clock, busy
        self.settling = Settling(consumer, work.policy, breaker, clock, self._wake)
        self.lanes, self.stats = self.settling.lanes, self.settling.stats
        self.told, self.wanted = asyncio.Event(), asyncio.Event()
        self.slots, self.idle = set[Slot](), list[asyncio.Future[None]]()
        self.stopping = self.blocked = self.draining = self.breathing = self.waking = self.timing = False
        # when to breathe; so many settled call for a look at what to do with them; so many in hand; paused by whom
        self.until, self.limit, self.prefetch, self.paused = 0.0, 1, 0, set[str]()
        self.resize(work.concurrency)

    # -- life cycle

    async def run(self) -> None:
        start = asyncio.get_running_loop().create_task
        tasks, told, receive = set[asyncio.Task[Any]](), start(self.told.wait()), start(self._receive())
        house = self.settling.flushing(), self._watch(), recover(self.consumer, self.settling)
        others = {receive, *map(start, house)}
        try:
            while not self.stopping:
                tasks |= {start(self._work()) for _ in range(self.concurrency - len(tasks))}
                done, _ = await asyncio.wait({*tasks, *others, told}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                tasks -= done
                if told in done:
                    self.told.clear()
                    told = start(self.told.wait())
            await self._drain({*tasks, receive})
        except BaseException:
            self.consumer.stop()
            with suppress(Exception):  # the first error says more
                await self.consumer.close()
            raise
        finally:
            self.busy.discard(self)
            for task in (told, *others, *tasks):
                task.cancel()

    def stop(self) -> None:
        """Drain, then let ``run`` return."""
        self.stopping = True
        self.told.set()

    def pause(self, paused: bool = True, by: str = "") -> None:
        """Give back what has not started, and receive nothing more, until all who paused it said ``pause(False)``."""
        (self.paused.add if paused else self.paused.discard)(by)
        self.settling.give_back()
        self._wake()

    def resize(self, concurrency: int) -> None:
        """Handle so many at once from now on; what runs is not interrupted."""
        self.concurrency = concurrency
        self.least = concurrency * (self.handler.limit() if self.handler.batch else 1)
        self.most = max(1024, 4 * concurrency, self.least)
        self.prefetch = max(self.prefetch, self.least)
        self.told.set()
        self._wake()

    async def _drain(self, tasks: set[asyncio.Task[Any]]) -> None:
        """What has not started goes back at once, uncounted; what runs may finish within the grace."""
        settling, grace, self.draining = self.settling, self.work.grace, True
        self.consumer.stop()
        settling.give_back()
        self._wake()
        while self.idle:
            self._rouse()
        _, late = await asyncio.wait(tasks, timeout=grace)
        for task in late:
            task.cancel()
        await asyncio.wait(tasks, timeout=grace)
        settling.give_back()
        settling.flushable.set()  # a task that ended in the middle of a large batch has left it to nobody
        deadline = self.clock.monotonic() + max(grace, 1.0)
        while (settling.ready or settling.committing or self.lanes.marking) and self.clock.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if not late or self.handler.cancellable:  # a thread that still runs keeps its lease: never released running
            await self.consumer.close()

    # -- the loop

    async def _work(self) -> None:
        lanes, one, idle, clock = self.lanes, self.handler.one, self.idle, self.clock.monotonic
        ready, settled, clean, slot = lanes.ready, self.settling.ready, copy_context(), Slot()
        self.slots.add(slot)
        try:
            while not self.draining:
                if not ready or self.blocked:
                    if await self._rest():
                        break
                    continue
                now = clock()
                if now > self.until:
                    await self._breathe()
                    continue
                delivery = ready.popleft()
                if idle and not self.waking:
                    self._rouse()  # a successor, should this handler suspend
                risky = delivery.failures or delivery.crashes or delivery.message.expires_at is not None
                if (risky or not delivery.session.alive) and not self.settling.may_start(delivery):
                    lanes.done(delivery)
                    continue
                slot.deliveries, slot.since = (delivery,), now
                try:
                    settled.append(Settlement(delivery, ACK, await one(delivery)))  # type: ignore[misc]
                except (Exception, asyncio.CancelledError) as error:
                    if self.settling.failed(delivery, self._cause(slot, error)):
                        lanes.done(delivery)
                else:
                    if delivery.message.key is not None:
                        lanes.done(delivery)
                    if not slot.since:
                        slot.task.uncancel()  # the handler swallowed our deadline
                slot.since = 0.0
                if len(settled) >= self.limit:
                    self._flush_soon()
                if copy_context() != clean:
                    break
        finally:
            self.slots.discard(slot)
            self._wake()

    def _cause(self, slot: Slot, error: BaseException) -> BaseException:
        """What an exception means: our deadline, the worker's end (raised again), or the handler's own."""
        if not slot.since:  # whatever the handler made of being cancelled
            slot.task.uncancel()
            return HandlerTimeout(f"a handler of {self.work.policy.group} ran longer than {self.work.timeout:g} s")
        if isinstance(error, asyncio.CancelledError) and slot.task.cancelling():
            for delivery in slot.deliveries if self.handler.cancellable else ():
                self.settling.put(given_back(delivery))
            raise error
        return error

    async def _rest(self) -> bool:
        """Nothing to do: what is settled may go, and somebody may come. True: this task is one too many."""
        if self.settling.ready:
            self.settling.flushable.set()
        if self.lanes.suspects:  # one that came up behind a delivery that was lost: nothing is committed for that
            self.settling.suspected.set()
        if len(self.slots) <= self.concurrency:
            if not self.lanes.ready:
                self.busy.discard(self)
            self.wanted.set()
            self.idle.append(turn := asyncio.get_running_loop().create_future())
            await turn
            self.waking = False
        return len(self.slots) > self.concurrency

    async def _breathe(self) -> None:
        """Let the loop run others; the other workers of this subscription stay asleep meanwhile."""
        self.breathing = self.blocked = True
        await asyncio.sleep(0)
        self.breathing = False
        self.until = self.clock.monotonic() + max(SLICE / max(len(self.busy), 1), SLICE_LEAST)
        self._wake()

    def _flush_soon(self) -> None:
        """Rest, and so flush, when as much is settled as may be; else by a timer that all settlements share."""
        if self.settling.full:
            self.blocked = True
        elif not self.timing:
            self.timing = True
            asyncio.get_running_loop().call_later(FLUSH_AFTER, self._flush_due)
            self._wake()

    def _flush_due(self) -> None:
        self.timing, self.limit = False, 1
        self.settling.flushable.set()

    def _wake(self) -> bool:
        """Something changed that may let a worker or the receiver go on; whether deliveries may start."""
        settling, surplus = self.settling, len(self.slots) > self.concurrency
        self.blocked = self.breathing or bool(self.paused) or surplus or settling.full or settling.tripped
        self.limit = UNFLUSHED - len(settling.committing) if self.timing else 1
        self.wanted.set()
        if self.lanes.suspects:
            settling.suspected.set()
        if self.idle and not self.waking and (surplus or not self.blocked):
            self._rouse()
        return not (self.paused or self.draining or settling.tripped)

    def _rouse(self) -> None:
        turn = self.idle.pop()
        if not turn.done():
            self.waking = True
            turn.set_result(None)

    # -- receiving

    def _room(self) -> int:
        """How many may be received now: little by little only while there is nothing else to do."""
        settling, breaker = self.settling, self.settling.breaker
        if self.paused or settling.tripped:
            return 0
        if breaker is not None and breaker.open:
            return 0 if settling.held else 1  # a probe
        room = self.prefetch - settling.held + self.lanes.waiting
        return room if self._hungry() or 2 * room >= self.prefetch else 0

    def _hungry(self) -> bool:
        return not self.lanes.ready

    async def _receive(self) -> None:
        full, received = False, self.clock.monotonic()
        while not self.draining:
            lasted = self.clock.monotonic() - received
            if (room := self._room()) <= 0:
                self.wanted.clear()
                await self.wanted.wait()
                continue
            if full and lasted < DRAINED_FAST:
                self.prefetch = min(self.prefetch * 2, self.most)
            elif lasted > DRAINED_SLOW:
                self.prefetch = max(self.prefetch // 2, self.least)
            try:
                batch = await self.consumer.receive(room)
            except BusError as error:
                log.warning("receiving for %s failed, trying again: %s", self.work.policy.group, error)
                await asyncio.sleep(AGAIN)
                continue
            full, received = len(batch) >= room, self.clock.monotonic()
            self._take(batch)
            if not batch and not self.draining:  # its bus was closed beneath it
                await asyncio.sleep(AGAIN)

    def _take(self, batch: Sequence[Delivery]) -> None:
        self.settling.admit(batch)
        self.busy.add(self)
        probing = (breaker := self.settling.breaker) is not None and breaker.open
        if self.paused or self.draining or self.settling.tripped or (probing and len(batch) > 1):
            self.settling.give_back()
        self._wake()

    async def _watch(self) -> None:
        """Deadlines and leases: one timer per subscription. What ran past its deadline is extended no more."""
        lease, timeout = self.consumer.lease, self.work.timeout
        while True:
            await asyncio.sleep(max(min(lease / 3, timeout / 8, 60.0), 0.001))
            late = self.clock.monotonic() - timeout
            held = [*self.lanes, *(s.delivery for s in (*self.settling.ready, *self.settling.committing))]
            for slot in self.slots:
                if 0.0 < slot.since < late and self.handler.cancellable:
                    slot.since = 0.0
                    slot.task.cancel()
                if slot.since > late:
                    held += slot.deliveries
            if held and lease < float("inf"):
                try:
                    await self.consumer.extend(held)
                except Exception:
                    log.exception("extending the leases of %d deliveries failed", len(held))
