"""What stands between a worker and its bus's consumer: to the worker a consumer; what it leaves as is it passes on."""

from __future__ import annotations

from collections.abc import Sequence

from .kernel.transport import Consumer, Delivery, Failure, Settlement


class Between:
    """A consumer around ``consumer``, which it is given when that is subscribed (``Handler.between``)."""

    consumer: Consumer
    lease: float

    def put(self, consumer: Consumer) -> Consumer:
        """Stand between this consumer and a worker."""
        self.consumer, self.lease = consumer, consumer.lease
        return self

    async def receive(self, limit: int) -> Sequence[Delivery]:
        return await self.consumer.receive(limit)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        return await self.consumer.settle(settlements)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        await self.consumer.extend(deliveries)

    async def mark(self, delivery: Delivery) -> bool:
        return await self.consumer.mark(delivery)

    def stop(self) -> None:
        self.consumer.stop()

    async def close(self) -> None:
        await self.consumer.close()
