"""One open bus: asked only for what it can do, and the subscriptions that live on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .chunks import ChunkWorker
from .clock import Clock, current_clock
from .codec import refuse_large
from .errors import NotOpen, PublishFailed, TidingsError, Unsupported
from .handler import Handler
from .message import Message
from .outcome import Breaker
from .topics import is_pattern
from .transport import Event, Failure, Options, Subscription, Transport
from .worker import Work, Worker

MARGIN = 16 * 1024  # bytes kept free of every body, for a dead letter's context


class Bus:
    """A transport, open or not yet, and what the kernel adds: refusals with reasons, and workers."""

    clock: Clock
    limit: int  # bytes of a body

    def __init__(self, name: str, options: Options, tell: Callable[[Event], None], busy: set[Any]) -> None:
        self.name, self.options, self.tell, self.busy = name, options, tell, busy
        self.transport: Transport = options.transport()
        self.opened = False

    async def open(self) -> None:
        self.clock = current_clock()
        await self.transport.open(self.tell)
        self.opened = True
        self.limit = self.transport.capabilities.max_payload - MARGIN

    async def close(self) -> None:
        if self.opened:
            self.opened = False
            await self.transport.close()

    async def publish(self, messages: Sequence[Message[Any]]) -> None:
        """Publish sealed messages; returns when the bus has accepted them all.

        Raises ``TooLarge``, ``Unsupported`` or ``NotOpen`` before anything is sent; a single refused message's own
        error, or ``PublishFailed``; ``BusError`` when the bus cannot.
        """
        if not self.opened:
            raise NotOpen("the bus is not open", mend="use `async with app:` or `async with app.connect():`")
        for message in messages:
            if len(message.body) > self.limit:
                refuse_large(message, self.limit)
            if message.priority or message.deliver_at or message.expires_at:
                self.require("priority", wanted=message.priority)
                self.require("delay", wanted=message.deliver_at)
                self.require("expiry", wanted=message.expires_at)
        if failures := await self.transport.publish(messages):
            self._raise(messages, failures)

    def _raise(self, messages: Sequence[Message[Any]], failures: Sequence[Failure]) -> NoReturn:
        if len(messages) == 1 and isinstance(failures[0].error, TidingsError):
            raise failures[0].error
        what, why = f"{len(failures)} of {len(messages)} messages were not accepted", str(failures[0].error)
        error = PublishFailed(what, why=why, mend="publish the unknown ones again with the same id")
        error.rejected = [f.index for f in failures if f.kind == "rejected"]
        error.unknown = [f.index for f in failures if f.kind != "rejected"]
        error.accepted = sorted(set(range(len(messages))).difference(error.rejected, error.unknown))
        raise error

    def require(self, feature: str, *, wanted: Any = True, where: str = "") -> None:
        """Refuse what this transport cannot do; raises ``Unsupported``."""
        if wanted and getattr(self.transport.capabilities, feature) == "unavailable":
            mend = "leave it out, or use a bus that can: see the table in docs/transports.md"
            what = f"{type(self.options).__name__} has no {feature}"
            raise Unsupported(what, why="nothing is silently degraded", mend=mend, where=where)

    async def subscribe(
        self, subscription: Subscription, handler: Handler, work: Work, breaker: Breaker | None, where: str
    ) -> Worker:
        """A worker for a subscription, not yet running. Raises ``Unsupported`` naming the line of the handler."""
        self.require("ordered", wanted=subscription.ordered, where=where)
        self.require("start", wanted=subscription.start is not None, where=where)
        self.require("wildcards", wanted=is_pattern(subscription.pattern), where=where)
        consumer = handler.between(await self.transport.subscribe(subscription))
        return (Worker if handler.one else ChunkWorker)(consumer, handler, work, self.clock, self.busy, breaker)
