"""Messages that are one thing on the wire and another to handlers: changed on their way in and on their way out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

from msgspec import UNSET
from msgspec.structs import replace

from tidings.channels import drafted
from tidings.kernel.codec import encode
from tidings.kernel.handler import Many, One, Outcome, Outgoing
from tidings.kernel.message import Message
from tidings.kernel.transport import Delivery
from tidings.middleware import Group

R = TypeVar("R", bound="Rewriting")


class Rewriting(ABC):
    """A middleware for any handler, of batches too; an observer as well: ``instrument(app, it)`` puts it around all
    handlers, and around what the app publishes.

    Requests and replies, and whatever else travels at an address of its own, are left as they are on the way out.
    """

    @abstractmethod
    async def incoming(self, message: Message[Any]) -> Message[Any]:
        """A sealed message as the handler shall see it; the same object if there is nothing to change."""

    @abstractmethod
    async def outgoing(self, message: Message[Any]) -> Message[Any]:
        """A sealed message, or a draft whose body is encoded, as it shall travel."""

    def of(self: R, group: Group) -> R:
        """The same, around a handler of this group."""
        return self

    def attach(self, app: Any) -> None:
        """From now on, what the app publishes goes through ``outgoing``."""
        publish, publish_many, publish_in = app.publish, app.publish_many, app.publish_in

        async def rewriting(topic: Any, data: Any = None, /, **meta: Any) -> None:
            await publish(await self.rewritten(drafted(topic, data, meta)))

        async def rewriting_many(messages: Any, /) -> None:
            await publish_many([await self.rewritten(message) for message in messages])

        async def rewriting_in(connection: Any, /, *messages: Message[Any]) -> None:
            await publish_in(connection, *[await self.rewritten(message) for message in messages])

        vars(app).update(publish=rewriting, publish_many=rewriting_many, publish_in=rewriting_in)

    async def rewritten(self, draft: Message[Any]) -> Message[Any]:
        """A draft as it shall travel. Raises ``PayloadRefused``."""
        return draft if draft.address else await self.outgoing(encoded(draft))

    async def _sent(self, outgoing: Outgoing) -> Outgoing:
        return tuple([m if m.address else await self.outgoing(m) for m in outgoing])

    async def _tried(self, outgoing: Outgoing) -> Outcome:
        try:
            return await self._sent(outgoing) if outgoing else outgoing
        except Exception as error:
            return error

    def __call__(self, one: One) -> One:
        async def rewriting(delivery: Delivery) -> Outgoing:
            outgoing = await one(changed(delivery, await self.incoming(delivery.message)))
            return await self._sent(outgoing) if outgoing else outgoing

        return rewriting

    def many(self, many: Many) -> Many:
        """The same around a handler of batches: what cannot be changed fails alone."""

        async def rewriting(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            outcomes: list[Outcome] = [()] * len(deliveries)
            ready: dict[int, Delivery] = {}
            for index, delivery in enumerate(deliveries):
                try:
                    ready[index] = changed(delivery, await self.incoming(delivery.message))
                except Exception as error:
                    outcomes[index] = error
            if ready:
                done = await many(list(ready.values()))
                for index, outcome in zip(ready, done, strict=True):
                    outcomes[index] = outcome if isinstance(outcome, BaseException) else await self._tried(outcome)
            return outcomes

        return rewriting


def changed(delivery: Delivery, message: Message[Any]) -> Delivery:
    """A delivery with another message. What it is settled by, and what a dead letter keeps, is the one that came."""
    return delivery if message is delivery.message else replace(delivery, message=message)


def encoded(draft: Message[Any]) -> Message[Any]:
    """A draft whose payload is a body already. Raises ``PayloadRefused``."""
    if draft.data is UNSET:
        return draft
    body, content_type = encode(draft.data)
    return replace(draft, data=UNSET, body=body, content_type=content_type)


def headed(message: Message[Any], name: str, value: str | None) -> Message[Any]:
    """A message whose header ``name`` is ``value``, or is not there (``None``)."""
    others = tuple(pair for pair in message.headers or () if pair[0] != name)
    return replace(message, headers=(*others, *(((name, value),) if value is not None else ())) or None)
