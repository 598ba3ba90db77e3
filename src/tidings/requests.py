"""Request-reply (EIP): requests travel on ``_request.<service>``, replies to one live address per process.

A reply carries the request's id as correlation id, and ``tdgreply``: ``value``, ``error``, or for streams ``item`` and
``end`` with ``tdgrun`` (which run of the answerer) and ``tdgindex``. The deadline is the request's expiry.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

from msgspec.structs import replace

from .inject import Plan, Values, provide
from .kernel.bus import Bus
from .kernel.codec import Decode, seal
from .kernel.errors import AnswerFailed, ReplyRestarted, RequestError, RequestTimeout
from .kernel.handler import Emit, Many, One, Origin, Outcome, Outgoing, Yielded, gathered
from .kernel.message import Message, new_id
from .kernel.topics import REPLY, REQUEST
from .kernel.transport import Consumer, Delivery, Subscription

Replies = asyncio.Queue[Message[Any]]


class Requester:
    """One bus's side of asking: opened at the first request, closed with the app."""

    def __init__(self, bus: Bus, app: str) -> None:
        self.bus, self.app = bus, app
        self.address = REPLY + new_id()
        self.pending: dict[str, Replies] = {}
        self.opening = asyncio.Lock()
        self.consumer: Consumer | None = None
        self.task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        async with self.opening:
            if self.consumer is None:
                subscription = Subscription(app=self.app, pattern=self.address)
                self.consumer = await self.bus.transport.subscribe(subscription)
                self.task = asyncio.get_running_loop().create_task(self._listen(self.consumer))

    async def close(self) -> None:
        if self.consumer is not None and self.task is not None:
            self.consumer.stop()
            await self.task
            await self.consumer.close()

    async def _listen(self, consumer: Consumer) -> None:
        while batch := await consumer.receive(256):
            for delivery in batch:
                if replies := self.pending.get(delivery.message.correlation_id or ""):
                    if replies.full():
                        replies.get_nowait()  # who reads too slowly is told so by the gap
                    replies.put_nowait(delivery.message)

    async def replies(self, draft: Message[Any], decode: Decode, timeout: float) -> AsyncIterator[Any]:
        """The replies to one request (its topic is the service), decoded, as they come; ends after a single ``value``.

        Raises ``NoAnswerer``, ``RequestTimeout`` (from the request to the last reply), ``AnswerFailed``,
        ``ReplyRestarted``, ``RequestError`` when a streamed reply was lost.
        """
        self.bus.require("request")
        await self.open()
        name, stream = draft.topic, _Order(draft.topic)
        asked = replace(draft, address=REQUEST + name, reply_to=self.address, expires=timeout, type=name)
        request = seal(asked, now=self.bus.clock.now(), source=self.app)
        queue = self.pending[request.id] = Replies(10_000)
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            async with asyncio.timeout_at(deadline):
                await self.bus.publish((request,))
            while True:
                async with asyncio.timeout_at(deadline):  # never around a yield: it would cancel the caller
                    reply = await queue.get()
                kind = reply.header("tdgreply")
                if kind == "error":
                    raise AnswerFailed(f"{name} answered with an error: {reply.body.decode(errors='replace')}")
                if kind != "value" and stream.refuses(reply):
                    continue
                if kind == "end":
                    return
                yield decode(reply.body, reply.content_type)
                if kind != "item":
                    return
        except TimeoutError:
            raise RequestTimeout(f"no reply from {name} within {timeout:g} s") from None
        finally:
            del self.pending[request.id]


class _Order:
    """Checks that streamed replies come from one run, without a gap; repeated ones are skipped."""

    def __init__(self, name: str) -> None:
        self.name, self.run, self.next = name, "", 0

    def refuses(self, reply: Message[Any]) -> bool:
        run, index = reply.header("tdgrun"), int(reply.header("tdgindex", "0"))
        if self.run and run != self.run:
            raise ReplyRestarted(f"{self.name} began its streamed reply anew", mend="ask again")
        if index > self.next:
            lost = f"{index - self.next} streamed replies of {self.name} were lost"
            raise RequestError(lost, mend="read faster, or ask again")
        self.run = run
        if index < self.next:
            return True
        self.next += 1
        return False


class Replier(Protocol):
    """Makes sealed replies: (request, data, kind, run, index) → outgoing; nothing when nobody waits for a reply."""

    def __call__(self, request: Message[Any], data: Any, kind: str, run: str = ..., index: int = ...) -> Outgoing: ...


def replier(source: str, now: Callable[[], float]) -> Replier:
    """Replies from this app."""

    def reply(request: Message[Any], data: Any, kind: str, run: str = "", index: int = 0) -> Outgoing:
        if request.reply_to is None:
            return ()
        headers = (("tdgreply", kind), *((("tdgrun", run), ("tdgindex", str(index))) if run else ()))
        to, id = request.reply_to, request.id
        draft: Message[Any] = Message(request.topic, data=data, headers=headers, address=to, correlation_id=id)
        return (seal(draft, now=now(), source=source),)

    return reply


def error_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def reply_emitter(origin: Origin, now: Callable[[], float]) -> Emit:
    """What an answerer returned, as its replies."""
    reply = replier(origin.source, now)

    def emit(result: Any, request: Message[Any] | None) -> Outgoing:
        assert request is not None
        if not isinstance(result, Yielded):
            return reply(request, result, "value")
        run = new_id()
        items = [reply(request, item, "item", run, index) for index, item in enumerate(result)]
        return sum([*items, reply(request, "", "end", run, len(result))], ())

    return emit


def answer(fn: Callable[..., Any], plan: Plan, decode: Decode, app_values: Values, bus: Bus, origin: Origin) -> One:
    """An answerer on the loop: what it yields is sent at once; an exception is an error reply."""
    reply, emit = replier(origin.source, bus.clock.now), reply_emitter(origin, bus.clock.now)

    async def one(delivery: Delivery) -> Outgoing:
        request = delivery.message
        try:
            data, values = decode(request.body, request.content_type), dict(app_values)
            async with AsyncExitStack() as stack:
                await provide(plan.dependencies, delivery, data, values, stack)
                result = plan.call(fn, delivery, data, values)
                if isinstance(result, Iterator):
                    return emit(gathered(result), request)
                if not isinstance(result, AsyncIterator):
                    result = await result if isinstance(result, Awaitable) else result
                    return reply(request, result, "value")
                run, index = new_id(), 0
                async for item in result:
                    if not delivery.session.alive:
                        return ()
                    await bus.publish(reply(request, item, "item", run, index))
                    index += 1
                return reply(request, "", "end", run, index)
        except Exception as error:
            return reply(request, error_text(error), "error")

    return one


def in_time(one: One, timeout: float, bus: Bus, source: str) -> One:
    """An answerer whose deadline becomes an error reply."""
    reply = replier(source, bus.clock.now)

    async def timed(delivery: Delivery) -> Outgoing:
        try:
            async with asyncio.timeout(timeout):
                return await one(delivery)
        except TimeoutError:
            return reply(delivery.message, f"HandlerTimeout: it ran longer than {timeout:g} s", "error")

    return timed


def answering(many: Many, bus: Bus, source: str) -> Many:
    """An answerer in a thread or process: its exceptions become error replies."""
    reply = replier(source, bus.clock.now)

    async def answered(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        try:
            outcomes = await many(deliveries)
        except Exception as error:
            if len(deliveries) > 1:
                raise  # each will be tried alone
            outcomes = [error]
        return [
            reply(delivery.message, error_text(outcome), "error") if isinstance(outcome, BaseException) else outcome
            for delivery, outcome in zip(deliveries, outcomes, strict=False)
        ]

    return answered
