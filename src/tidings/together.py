"""Outputs of a batch belong to all of it: on a bus that cannot settle and publish as one, they go out first.

Such a bus settles message by message, and what a batch sends hangs on the last of its messages. So that one goes first,
and only when it is settled do the others follow; else all of them come again, and with them what they send.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from .between import Between
from .kernel.errors import BusError
from .kernel.handler import Handler, Many, Outcome
from .kernel.transport import ACK, Delivery, Failure, Settlement

Batch = list[Delivery]


class Together(Between):
    """Between a batch handler's worker and its bus's consumer."""

    def __init__(self) -> None:
        self.batches: dict[int, Batch] = {}  # by the identity of a delivery that is handled and not yet settled

    def around(self, handler: Handler) -> Handler:
        """The batch handler, watched."""
        assert handler.many is not None
        return replace(handler, many=self._many(handler.many), between=self.put)

    def _many(self, many: Many) -> Many:
        async def watched(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            outcomes = await many(deliveries)
            done = [(d, o) for d, o in zip(deliveries, outcomes, strict=True) if not isinstance(o, BaseException)]
            if len(done) > 1 and any(outgoing for _, outgoing in done):
                batch = [delivery for delivery, _ in done]
                self.batches.update((id(delivery), batch) for delivery in batch)
            return outcomes

        return watched

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        """What carries a batch's outputs, then the rest of those batches of which that could be settled."""
        batches = {id(s.delivery): self.batches[id(s.delivery)] for s in settlements if id(s.delivery) in self.batches}
        if not batches:
            return await super().settle(settlements)
        here = {id(settlement.delivery) for settlement in settlements if settlement.action is ACK}
        each = {id(batch): batch for batch in batches.values()}
        lost = {number for number, batch in each.items() if any(id(delivery) not in here for delivery in batch)}
        whole = each.keys() - lost
        first = [i for i, s in enumerate(settlements) if s.outgoing and self._of(s, batches) in whole]
        failures = await self._settle(settlements, first) if first else []
        lost |= {self._of(settlements[failure.index], batches) for failure in failures}
        sent = set(first)
        rest = [i for i, s in enumerate(settlements) if i not in sent and self._of(s, batches) not in lost]
        failures += await self._settle(settlements, rest) if rest else []
        why, known = BusError("the outputs of its batch could not be sent, or one of it was lost"), sent.union(rest)
        failures += [Failure(i, "unknown", why) for i in range(len(settlements)) if i not in known]
        gone = [d for number in lost & each.keys() for d in each[number] if not d.session.alive]  # never settled
        for identity in {*batches, *map(id, gone)}:  # not before: a bus that is away is asked again
            self.batches.pop(identity, None)
        return failures

    @staticmethod
    def _of(settlement: Settlement, batches: dict[int, Batch]) -> int:
        """The identity of the batch that a settlement is of; 0: of none, or given back."""
        batch = batches.get(id(settlement.delivery))
        return 0 if batch is None or settlement.action is not ACK else id(batch)

    async def _settle(self, settlements: Sequence[Settlement], indices: Sequence[int]) -> list[Failure]:
        failed = await self.consumer.settle([settlements[index] for index in indices])
        return [Failure(indices[failure.index], failure.kind, failure.error) for failure in failed]
