"""Live subscriptions, and answerers."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import structs

from tidings.kernel.errors import BusError
from tidings.kernel.message import Message, new_id
from tidings.kernel.topics import REPLY, REQUEST, token
from tidings.kernel.transport import ACK, Delivery, Event, Failure, Session, Settlement
from tidings.transports._wire import attributes

from .connection import ANSWER, Ear, status
from .frames import Letter, admitted, opened
from .stream import NATIVE_REPLY

if TYPE_CHECKING:
    from .transport import NATSTransport

LIVE_BUFFER, SILENT = 1024, 30.0  # messages; seconds without a heartbeat
LIVE = Session()


class Listener:
    """A live subscription, at most once through a bounded buffer; or an answerer, one of its service's.

    What is stored comes from an ephemeral push consumer, so that what was delayed comes too when it is due: the server
    does not publish that on core NATS. Requests and replies are on core NATS.
    """

    lease = math.inf

    def __init__(self, transport: NATSTransport, pattern: str, queue: str) -> None:
        self.transport, self.pattern, self.queue = transport, pattern, queue
        self.buffer: deque[Delivery] = deque()
        self.future: asyncio.Future[None] | None = None
        self.stopped, self.dropped = False, 0
        self.core = pattern.startswith((REQUEST, REPLY))
        subject = transport.prefix + pattern if self.core else f"_INBOX.{new_id().replace('-', '')}"
        self.ear = Ear(subject, queue, self._hear)
        self.leaving: asyncio.Task[None] | None = None
        self.heard = transport.clock.monotonic()
        self.name = ""  # the server's end

    async def open(self) -> None:
        transport = self.transport
        if self.core:
            await transport.listen(self.ear)
            await transport.client.flush(ANSWER)
            return
        if self.pattern[0] != "_":
            await transport.cover([self.pattern])
        await transport.listen(self.ear)
        await self._push()

    async def _push(self) -> None:
        from nats.js import api

        self.heard = self.transport.clock.monotonic()
        config = api.ConsumerConfig(
            deliver_subject=self.ear.subject,
            deliver_policy=api.DeliverPolicy.NEW,
            ack_policy=api.AckPolicy.NONE,
            filter_subjects=[self.transport.prefix + self.pattern],
            idle_heartbeat=SILENT / 3,
            inactive_threshold=SILENT,
            mem_storage=True,
            num_replicas=1,
        )
        self.name = (await self.transport.ask("add_consumer", self.transport.name, config)).name

    def look(self, now: float) -> None:
        """A cluster may lose its end with one of its nodes."""
        if now - self.heard > SILENT and not self.core and not self.stopped:
            self.heard = now
            self.transport.run(self.check(silent=True))

    async def check(self, silent: bool = False) -> None:
        """A server that was restarted has forgotten its end; one that was not goes on where it was."""
        if not self.core and not self.stopped:
            with contextlib.suppress(BusError):  # the silence goes on, and it is tried again
                ask, about = self.transport.ask, (self.transport.name, self.name)
                if silent:
                    await self._drop()
                if silent or await ask("consumer_info", *about, missing=None) is None:
                    await self._push()

    async def _drop(self) -> None:
        await self.transport.ask("delete_consumer", self.transport.name, self.name, missing=None)

    async def _hear(self, msg: Any) -> None:
        self.heard = self.transport.clock.monotonic()
        if status(msg):
            return
        destination = msg.subject.removeprefix(self.transport.prefix)
        if not admitted(self.pattern, destination):
            return
        now = self.transport.clock.now()
        message, _ = opened(destination, msg.data, msg.headers, new_id(), now)
        if self.core and msg.reply and message.reply_to is None:
            message = structs.replace(message, reply_to=NATIVE_REPLY + token(msg.reply))
        self.put(message)

    def reply(self, msg: Any, asked: str) -> None:
        """From somebody who knows nothing of us."""
        message, _ = opened(self.pattern, msg.data, msg.headers, new_id(), self.transport.clock.now())
        self.put(structs.replace(message, correlation_id=message.correlation_id or asked))

    def put(self, message: Message[Any]) -> None:
        self.buffer.append(Delivery(message, LIVE))
        if len(self.buffer) > LIVE_BUFFER:
            self.buffer.popleft()
            self.dropped += 1
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not self.stopped:
            if self.dropped:
                self.transport.notify(Event("dropped", self.dropped, self.pattern))
                self.dropped = 0
            if self.buffer:
                return [self.buffer.popleft() for _ in range(min(limit, len(self.buffer)))]
            self.future = self.transport.loop.create_future()
            await self.future
        return ()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        if self.leaving is not None:
            await asyncio.wait({self.leaving})
        letters = []
        for index, settlement in enumerate(settlements):
            for message in settlement.outgoing:
                to = message.address or message.topic
                letters.append(
                    Letter(index, message, to, attributes(message), f"{message.id}/pub/{to}", message.deliver_at)
                )
            if self.queue and settlement.action is not ACK:
                letters.append(self._again(index, settlement.delivery.message))
        failed = await self.transport.send(letters) if letters else {}
        return sorted(failed.values(), key=lambda failure: failure.index)

    def _again(self, index: int, message: Message[Any]) -> Letter:
        """A request for another answerer."""
        return Letter(index, message, message.address or message.topic, attributes(message), new_id())

    async def extend(self, deliveries: Sequence[Delivery]) -> None: ...

    async def mark(self, delivery: Delivery) -> bool:
        return not self.stopped

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            if self.future is not None and not self.future.done():
                self.future.set_result(None)
            self.leaving = self.transport.run(self.transport.hush(self.ear))

    async def close(self) -> None:
        self.stop()
        if self.leaving is not None:
            await asyncio.wait({self.leaving})
        self.transport.listeners.pop(self, None)
        if self.name and self.transport.ready.is_set():
            with contextlib.suppress(BusError):
                await self._drop()
        if self.queue:
            left = [self._again(index, delivery.message) for index, delivery in enumerate(self.buffer)]
            self.buffer.clear()
            await self.transport.send(left)
