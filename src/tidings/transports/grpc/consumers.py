"""A member's side of one subscription: it asks the server's consumer for everything, and holds what it was given."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tidings.kernel.errors import BusError
from tidings.kernel.transport import ACK, Delivery, Event, Failure, Settlement, Subscription
from tidings.transports._live import answers

from .link import Lost
from .wire import delivery, failures, pb, pieces, settled, told

if TYPE_CHECKING:
    from .transport import GRPCTransport


EARLY, BEAT = 7 / 8, 1 / 16  # of a lease: it ends a little earlier here than there; how often that is looked at


class GRPCConsumer:
    """``number`` is the server's consumer on the stream ``epoch``; ``held``: what is in hand, by its number there.

    ``since``: when each was received or extended, on the loop's clock.
    """

    def __init__(self, transport: GRPCTransport, subscription: Subscription) -> None:
        self.transport, self.link, self.subscription = transport, transport.link, subscription
        self.live = subscription.group is None
        self.number, self.epoch, self.lease = 0, 0, math.inf
        self.held: dict[int, Delivery] = {}
        self.since: dict[int, float] = {}
        self.loop = asyncio.get_running_loop()
        self.beat: asyncio.TimerHandle | None = None
        self.stopped = self.closed = False
        self.ready = asyncio.Event()  # subscribed on this stream, or stopped

    async def subscribe(self) -> None:
        """Be a consumer of the server's, on the stream that is there. Raises ``Lost`` when it is no longer."""
        if self.stopped:
            return
        epoch = self.link.epoch
        (answer,) = await self.link.put(epoch, subscribe=told(pb.Subscription, self.subscription))
        if not self.link.has(epoch):
            raise Lost(True)
        self.number, self.epoch, self.lease = answer.subscribed.consumer, epoch, answer.subscribed.lease
        if self.stopped:  # meanwhile
            self.link.tell(epoch, consumer=self.number, close=pb.Nothing())
        self.ready.set()

    def lost(self) -> None:
        """The stream is gone, and with it all that is in hand."""
        if not self.stopped:
            self.ready.clear()
        self._forget()

    def _forget(self) -> None:
        for number in tuple(self.held):
            self._gone(number)

    def _gone(self, number: int) -> None:
        self.since.pop(number, None)
        if lost := self.held.pop(number, None):
            lost.session.alive = False

    def _look(self) -> None:
        """What was not extended for a lease is ours no longer."""
        late = self.loop.time() - EARLY * self.lease
        for number in [number for number, since in self.since.items() if since < late]:
            self._gone(number)
        self.beat = self.loop.call_later(BEAT * self.lease, self._look) if self.held else None

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not self.stopped:
            await self.ready.wait()
            with suppress(Lost):
                if came := [] if self.stopped else await self._receive(limit):
                    return came
                self.ready.clear()  # the server's consumer has ended, and its stream will
                if self.stopped:
                    break
        return ()

    async def _receive(self, limit: int) -> list[Delivery]:
        epoch = self.epoch
        parts = await self.link.put(epoch, consumer=self.number, receive=limit)
        if not self.live and not self.link.has(epoch):  # it was lost just now, and what came with it
            raise Lost(True)
        came = [delivery(each) for part in parts for each in part.deliveries]
        if came and not self.live:
            self.held.update((each.token, each) for each in came)
            self._renewed([each.token for each in came], self.loop.time())
        return came

    def _renewed(self, numbers: Sequence[int], at: float) -> None:
        if self.lease < math.inf:
            self.since.update(dict.fromkeys(numbers, at))
            if self.beat is None:
                self._look()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        if self.live:
            return await answers(self.transport.publish, settlements)
        failed, mine, epoch = list[Failure](), list[int](), self.epoch
        for index, settlement in enumerate(settlements):
            if self._has(settlement.delivery):
                mine.append(index)
            else:
                failed.append(self._fenced(index, settlement.delivery))
        first = 0
        for piece in self._pieces([settlements[index] for index in mine]):
            indices = mine[first : first + len(piece.acknowledged) + len(piece.settlements)]
            first += len(indices)
            failed += await self._settle(epoch, piece, indices, settlements)
        if fenced := sum(failure.kind == "fenced" for failure in failed):
            self.transport.notify(Event("fenced", fenced, self.subscription.group or ""))
        return sorted(failed, key=lambda failure: failure.index)

    def _has(self, delivery: Delivery) -> bool:
        known = self.held.get(delivery.token)
        return known is not None and known.session is delivery.session

    def _fenced(self, index: int, delivery: Delivery) -> Failure:
        delivery.session.alive = False
        return Failure(index, "fenced", BusError("the session was lost"))

    def _pieces(self, settlements: Sequence[Settlement]) -> list[Any]:
        if all(settlement.action is ACK and not settlement.outgoing for settlement in settlements):
            numbers = [settlement.delivery.token for settlement in settlements]
            return [pb.Settle(acknowledged=numbers)] if numbers else []
        return [pb.Settle(settlements=run) for run in pieces(list(map(settled, settlements)), self.transport.room)]

    async def _settle(
        self, epoch: int, piece: Any, indices: list[int], settlements: Sequence[Settlement]
    ) -> list[Failure]:
        """One ask's worth, of what came on that stream; ``indices``: of its settlements among all of them."""
        if piece.ByteSize() > self.transport.room:  # one alone
            return [Failure(indices[0], "rejected", self.transport.too_large())]
        try:
            (answer,) = await self.link.put(epoch, consumer=self.number, settle=piece)
        except Lost:  # settled or not, it is ours no longer
            return [self._fenced(index, settlements[index].delivery) for index in indices]
        failed = [Failure(indices[f.index], f.kind, f.error) for f in failures(answer.failures)]
        ours = {failure.index for failure in failed if failure.kind != "fenced"}
        for failure in failed:
            if failure.kind == "fenced":
                settlements[failure.index].delivery.session.alive = False
        for index in indices:
            if index not in ours and self._has(ended := settlements[index].delivery):
                del self.held[ended.token]
                self.since.pop(ended.token, None)
        return failed

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        numbers = [each.token for each in deliveries if self._has(each)]
        if self.live or not self.held:
            return
        with suppress(Lost):
            asked = self.loop.time()
            (answer,) = await self.link.put(self.epoch, consumer=self.number, extend=pb.Numbers(numbers=numbers))
            self._renewed([number for number in numbers if number in self.held], asked)
            for number in answer.lost:
                self._gone(number)

    async def mark(self, delivery: Delivery) -> bool:
        with suppress(Lost):
            if self._has(delivery):
                (answer,) = await self.link.put(self.epoch, consumer=self.number, mark=delivery.token)
                return bool(answer.yes)
        return False

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            if self.ready.is_set():
                self.link.tell(self.epoch, consumer=self.number, stop=pb.Nothing())
            self.ready.set()

    async def close(self) -> None:
        self.stop()
        if self.closed:
            return
        self.closed = True
        self.transport.consumers.pop(self, None)
        with suppress(Lost, BusError):  # what it holds comes back when its lease ends
            await self.link.put(self.epoch, consumer=self.number, close=pb.Nothing())
        self._forget()
