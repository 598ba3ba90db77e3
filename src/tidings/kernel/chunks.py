"""The worker's loop for handlers of the shape ``Many``: batches, and chunks for threads and processes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from contextvars import copy_context
from itertools import zip_longest
from typing import Any

from .handler import Outcome
from .transport import ACK, Delivery, Release, Settlement
from .worker import Slot, Worker


class ChunkWorker(Worker):
    """Takes several deliveries at once. If a call fails as a whole, each runs alone, in place.

    A batch may take a key's whole waiting run, in order, holding its lane; what follows a failure of its key waits.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arrived, self.clean = asyncio.Event(), copy_context()
        super().__init__(*arguments)

    async def _work(self) -> None:
        lanes, slot = self.lanes, Slot()
        self.slots.add(slot)
        try:
            while not self.draining:
                if not lanes.ready or self.blocked:
                    if await self._rest():
                        break
                elif self.clock.monotonic() > self.until:
                    await self._breathe()
                elif not self.work.within or await self._filled():
                    chunk = lanes.take(self.handler.limit(), runs=self.handler.batch)
                    if self.idle and not self.waking:
                        self._rouse()
                    await self._chunk(slot, chunk)
                    if len(self.settling.ready) >= self.limit:
                        self._flush_soon()
        finally:
            self.slots.discard(slot)
            self._wake()

    def _wake(self) -> bool:
        self.arrived.set()
        return super()._wake()

    def _hungry(self) -> bool:
        return len(self.lanes.runs()) < self.handler.limit()

    async def _filled(self) -> bool:
        """Let a batch wait for more, up to ``within``; whether there is one to take then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.work.within):
                while self._hungry() and not self.blocked and not self.draining and self.settling.suspect is None:
                    self.wanted.set()
                    self.arrived.clear()
                    await self.arrived.wait()
        return bool(self.lanes.ready) and not self.blocked and not self.draining

    async def _chunk(self, slot: Slot, chunk: Sequence[Delivery]) -> None:
        runs = [delivery for delivery in chunk if self.settling.may_start(delivery)]
        held, again = set[str](), list[Delivery]()  # keys whose lane must wait; what must run once more
        outcomes = await self._try(slot, runs, runs)
        if outcomes is not None:
            for delivery, outcome in zip_longest(runs, outcomes):
                self._ended(delivery, outcome, held, again)
        else:
            for index, delivery in enumerate(runs):
                if (key := delivery.message.key) not in held:
                    left = [d for d in runs[index:] if d.message.key not in held]
                    outcomes = await self._try(slot, (delivery,), left)
                    self._ended(delivery, outcomes[0] if outcomes else None, held, again)
                    if key in held:  # at once: another may try it again, and take its lane, while this chunk runs
                        self._put_back([d for d in left[1:] if d.message.key == key])
        self._put_back(again)
        for delivery in {delivery.message.key: delivery for delivery in chunk}.values():
            if delivery.message.key not in held:
                self.lanes.done(delivery)

    def _put_back(self, deliveries: Sequence[Delivery]) -> None:
        for refused in self.lanes.requeue(deliveries):
            self.settling.put(Settlement(refused, Release()))

    def _ended(self, delivery: Delivery, outcome: Outcome | None, held: set[str], again: list[Delivery]) -> None:
        key = delivery.message.key
        if outcome is None or (isinstance(outcome, BaseException) and key in held):
            again.append(delivery)  # it has not run; or it waits behind a failure of its key
        elif not isinstance(outcome, BaseException):
            self.settling.ready.append(Settlement(delivery, ACK, outcome))
        elif not self.settling.failed(delivery, outcome) and key is not None:
            held.add(key)

    async def _try(
        self, slot: Slot, runs: Sequence[Delivery], hand: Sequence[Delivery]
    ) -> Sequence[Outcome | None] | None:
        """The outcomes of one call; ``None`` if several failed as a whole. ``hand``: what is held meanwhile."""
        if not runs:
            return ()
        slot.deliveries, slot.since = hand, self.clock.monotonic()
        try:  # in a context of its own
            call = asyncio.get_running_loop().create_task(self._call(runs), context=self.clean.copy())
            outcomes: Sequence[Outcome | None] = await call
        except (Exception, asyncio.CancelledError) as error:
            outcomes, slot.since = (self._cause(slot, error),), 0.0
            return outcomes if len(runs) == 1 else None
        if not slot.since:
            slot.task.uncancel()  # the handler swallowed our deadline
        slot.since = 0.0
        return outcomes

    async def _call(self, runs: Sequence[Delivery]) -> Sequence[Outcome]:
        return await self.handler.many(runs)  # type: ignore[misc]
