"""The loop of one subscription: receive → lanes → handlers → settle; leases, deadlines, drain.

``concurrency`` long-lived tasks, at most one of them runnable: it takes a delivery, awaits its handler in line, and
goes on to the next. When the handler suspends, the next task carries on. There is no task, lock, timer or context
manager per message. Rules:

- A slice lasts 1 ms divided by the busy subscriptions of the loop, by the clock; then the loop gets a breath.
- A task whose handler left context variables behind is replaced.
- ``receive`` is never cancelled. What was received is held, and its lease extended, until its settlement is committed.
- ``blocked`` stops the taking of deliveries: while a task breathes, too much is unsettled, or the worker is paused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextvars import copy_context
from typing import Any

from msgspec import Struct

from .clock import Clock
from .errors import BusError, HandlerTimeout
from .handler import Handler
from .outcome import Breaker
from .recovery import recover
from .settling import AGAIN, FLUSH, Policy, Settling
from .transport import ACK, Consumer, Delivery, Release, Settlement

log = logging.getLogger("tidings")

SLICE, SLICE_LEAST = 0.001, 0.0001  # seconds
DRAINED_FAST, DRAINED_SLOW = 0.05, 1.0  # seconds a received batch lasts: the prefetch doubles below, halves above


class Work(Struct, frozen=True, kw_only=True):
    """How a subscription is worked. Seconds."""

    policy: Policy
    concurrency: int = 16
    within: float = 0.0  # a batch may wait so long to fill
    timeout: float = 3600.0
    grace: float = 30.0  # what running handlers get at the end


class Share:
    """The event loop's time, shared by its busy subscriptions."""

    busy = 0


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
        self,
        consumer: Consumer,
        handler: Handler,
        work: Work,
        clock: Clock,
        share: Share,
        breaker: Breaker | None = None,
    ) -> None:
        self.consumer, self.handler, self.work, self.clock, self.share = consumer, handler, work, clock, share
        self.settling = Settling(consumer, work.policy, breaker, clock, self._wake)
        self.lanes, self.stats = self.settling.lanes, self.settling.stats
        self.stopping = asyncio.Event()
        self.slots: set[Slot] = set()
        self.idle: list[asyncio.Future[None]] = []
        self.blocked = self.draining = self.breathing = self.paused = self.receiving = self.waking = False
        self.until = self.received = 0.0
        self.prefetch = self.least = work.concurrency * (handler.limit() if handler.batch else 1)
        self.most = max(1024, 4 * work.concurrency, self.least)
        self.full_batch = False
        self.recovery: asyncio.Task[None] | None = None

    # -- life cycle

    async def run(self) -> None:
        start = asyncio.get_running_loop().create_task
        tasks: set[asyncio.Task[Any]] = {start(self._work()) for _ in range(self.work.concurrency)}
        stop, watch = start(self.stopping.wait()), start(self._watch())
        self.share.busy += 1
        try:
            while not stop.done():
                done, _ = await asyncio.wait({*tasks, stop}, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {stop}:
                    tasks.remove(task)
                    task.result()
                    tasks.add(start(self._work()))
            await self._drain(tasks)
        finally:
            self.share.busy -= 1
            for task in filter(None, (stop, watch, self.recovery, *tasks)):
                task.cancel()

    def stop(self) -> None:
        """Drain, then let ``run`` return."""
        self.stopping.set()

    def pause(self, paused: bool = True) -> None:
        """Start and receive nothing more, until ``pause(False)``."""
        self.paused = paused
        self._wake()

    async def _drain(self, tasks: set[asyncio.Task[Any]]) -> None:
        """What has not started goes back at once, uncounted; what runs may finish within the grace."""
        self.draining = True
        self.consumer.stop()
        if self.recovery is not None:
            self.recovery.cancel()
        self.settling.give_back()
        while self.idle:
            self._rouse()
        await self._flush()
        _, late = await asyncio.wait(tasks, timeout=self.work.grace)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=self.work.grace)
        self.settling.give_back()
        while self.receiving or self.settling.ready or self.settling.committing:
            waits = self.receiving or self.settling.committing
            await (asyncio.sleep(0.001) if waits else self.settling.flush())
            self.settling.give_back()
        if (
            not late or self.handler.cancellable
        ):  # a thread that still runs keeps its lease: never released while running
            await self.consumer.close()

    # -- the loop

    async def _work(self) -> None:
        lanes, one, idle, clock = self.lanes, self.handler.one, self.idle, self.clock.monotonic
        ready, settled, clean, slot = lanes.ready, self.settling.ready, copy_context(), Slot()
        self.slots.add(slot)
        try:
            while not self.draining:
                if not ready or self.blocked:
                    await self._refill()
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
                slot.deliveries = (delivery,)
                slot.since = now
                try:
                    settled.append(Settlement(delivery, ACK, await one(delivery)))  # type: ignore[misc]
                except (Exception, asyncio.CancelledError) as error:
                    if self.settling.failed(delivery, self._cause(slot, error)):
                        lanes.done(delivery)
                else:
                    lanes.done(delivery)
                    if not slot.since:
                        slot.task.uncancel()  # the handler swallowed our deadline
                slot.since = 0.0
                if len(settled) >= FLUSH:
                    await self._flush()
                if copy_context() != clean:
                    break
        finally:
            self._leave(slot)

    def _leave(self, slot: Slot) -> None:
        self.slots.discard(slot)
        self._wake()

    def _cause(self, slot: Slot, error: BaseException) -> BaseException:
        """What an exception means: our deadline, the worker's end (raised again), or the handler's own."""
        if isinstance(error, asyncio.CancelledError):
            if not slot.since:
                slot.task.uncancel()
                return HandlerTimeout(f"a handler of {self.work.policy.group} ran longer than {self.work.timeout:g} s")
            if slot.task.cancelling():
                for delivery in slot.deliveries if self.handler.cancellable else ():
                    self.settling.put(Settlement(delivery, Release()))
                raise error
        return error

    # -- taking and breathing

    def _room(self) -> int:
        breaker = self.settling.breaker
        if breaker is not None and breaker.open:
            return 0 if self.settling.held else 1  # a probe
        return self.prefetch - self.settling.held

    async def _refill(self) -> None:
        if self.settling.ready and not self.settling.committing and not self.breathing:
            await self._flush()
        elif self.blocked or self.receiving or self._room() <= 0:
            self.idle.append(turn := asyncio.get_running_loop().create_future())
            await turn
            self.waking = False
        else:
            await self._receive()

    async def _receive(self) -> None:
        lasted = self.clock.monotonic() - self.received
        if self.full_batch and lasted < DRAINED_FAST:
            self.prefetch = min(self.prefetch * 2, self.most)
        elif lasted > DRAINED_SLOW:
            self.prefetch = max(self.prefetch // 2, self.least)
        room = self._room()
        if room <= 0:
            return
        self.receiving = True
        self.share.busy -= 1
        try:
            batch = await self.consumer.receive(room)
        except BusError as error:
            log.warning("receiving for %s failed, trying again: %s", self.work.policy.group, error)
            await asyncio.sleep(AGAIN)
            return
        finally:
            self.receiving = False
            self.share.busy += 1
        self.full_batch, self.received = len(batch) >= room, self.clock.monotonic()
        self.settling.held += len(batch)
        self.lanes.add(batch)
        if self.settling.tripped:
            self.settling.give_back()
        if self.lanes.suspects and (self.recovery is None or self.recovery.done()):
            recovery = recover(self.consumer, self.settling, self._wake)
            self.recovery = asyncio.get_running_loop().create_task(recovery)

    async def _breathe(self) -> None:
        """Let the loop run others; the other workers of this subscription stay asleep meanwhile."""
        self.breathing = self.blocked = True
        await asyncio.sleep(0)
        self.breathing = False
        self.until = self.clock.monotonic() + max(SLICE / max(self.share.busy, 1), SLICE_LEAST)
        if self.settling.due:
            await self._flush()
        else:
            self._wake()

    async def _flush(self) -> None:
        if not self.settling.committing:
            if self.idle and not self.waking:
                self._rouse()  # another goes on while this one waits for the commit
            await self.settling.flush()
        self._wake()

    def _wake(self) -> None:
        """Something changed that may let a worker go on."""
        self.blocked = self.breathing or self.paused or self.settling.tripped or self.settling.full
        if not self.blocked and self.idle and not self.waking:
            self._rouse()

    def _rouse(self) -> None:
        turn = self.idle.pop()
        if not turn.done():
            self.waking = True
            turn.set_result(None)

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
