"""The worker's loop for handlers of the shape ``Many``: batches, and chunks for threads and processes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import copy_context

from .handler import Outcome
from .settling import FLUSH
from .transport import ACK, Delivery, Release, Settlement
from .worker import Slot, Worker


class ChunkWorker(Worker):
    """Takes several deliveries at once. If a call fails as a whole, each runs alone, in place.

    A batch may take a key's whole waiting run, in order, holding its lane; what follows a failure of its key waits.
    """

    filling: asyncio.Task[None] | None = None

    async def _work(self) -> None:
        lanes, clean, slot = self.lanes, copy_context(), Slot()
        self.slots.add(slot)
        try:
            while not self.draining:
                if not lanes.ready or self.blocked:
                    await self._refill()
                    continue
                if self.clock.monotonic() > self.until:
                    await self._breathe()
                if self.work.within:
                    await self._fill()
                if self.blocked or self.draining:
                    continue
                chunk = lanes.take(self.handler.limit(), runs=self.handler.batch)
                if self.idle and not self.waking:
                    self._rouse()
                await self._chunk(slot, chunk)
                if len(self.settling.ready) >= FLUSH:
                    await self._flush()
                if copy_context() != clean:
                    break
        finally:
            self._leave(slot)

    async def _receive(self) -> None:
        """Receiving is never cancelled: it has a task of its own, which a batch that stops waiting leaves to others."""
        await self._received(None)

    async def _received(self, timeout: float | None) -> None:
        if self.filling is None:
            self.filling = asyncio.get_running_loop().create_task(super()._receive())
            self.filling.add_done_callback(lambda _: self._wake())
        filling = self.filling
        await asyncio.wait({filling}, timeout=timeout)
        if filling.done():
            self.filling = None if self.filling is filling else self.filling
            filling.result()

    async def _fill(self) -> None:
        """Let a batch wait for more, up to ``within``."""
        deadline = self.clock.monotonic() + self.work.within
        while self.lanes.fresh < self.handler.limit() and not self.draining and not self.blocked and self._room() > 0:
            left = deadline - self.clock.monotonic()
            if left <= 0:
                return
            await self._received(left)

    async def _chunk(self, slot: Slot, chunk: Sequence[Delivery]) -> None:
        settling = self.settling
        runs = [delivery for delivery in chunk if settling.may_start(delivery)]
        outcomes = await self._try(slot, runs)
        if outcomes is None:
            outcomes = await self._singly(slot, runs)
        held: set[str | None] = set()
        again = list(runs[len(outcomes) :])
        for delivery, outcome in zip(runs, outcomes, strict=False):
            if outcome is None:
                again.append(delivery)
            elif not isinstance(outcome, BaseException):
                settling.ready.append(Settlement(delivery, ACK, outcome))
            elif not settling.failed(delivery, outcome):
                held.add(delivery.message.key)
        for refused in self.lanes.requeue(again):
            settling.put(Settlement(refused, Release()))
        for delivery in {delivery.message.key: delivery for delivery in chunk}.values():
            if delivery.message.key not in held:
                self.lanes.done(delivery)

    async def _singly(self, slot: Slot, runs: Sequence[Delivery]) -> list[Outcome | None]:
        outcomes: list[Outcome | None] = []
        failed: set[str] = set()
        for delivery in runs:
            key = delivery.message.key
            outcome = None if key in failed else (await self._try(slot, (delivery,)) or [None])[0]
            outcomes.append(outcome)
            if key is not None and isinstance(outcome, BaseException):
                failed.add(key)
        return outcomes

    async def _try(self, slot: Slot, runs: Sequence[Delivery]) -> list[Outcome | None] | None:
        """The outcomes of one call; ``None`` if several failed as a whole."""
        if not runs:
            return []
        slot.deliveries, slot.since = runs, self.clock.monotonic()
        try:
            outcomes: list[Outcome | None] = list(await self.handler.many(runs))  # type: ignore[misc]
        except (Exception, asyncio.CancelledError) as error:
            cause = self._cause(slot, error)
            slot.since = 0.0
            return [cause] if len(runs) == 1 else None
        if not slot.since and self.handler.cancellable:
            slot.task.uncancel()
        slot.since = 0.0
        return outcomes
