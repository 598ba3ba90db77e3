"""The service ``tidings.v1.Bus``: publish, subscribe, ask; for every language."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

from tidings.gateway.claims import Claim
from tidings.gateway.feeds import Follower
from tidings.gateway.gateway import Gateway, Reply
from tidings.gateway.limits import Limits
from tidings.gateway.refusals import Malformed
from tidings.gateway.rights import Principal
from tidings.kernel.errors import Defer, Reject, RequestError, Retry, Skip, TidingsError, TooLarge
from tidings.kernel.message import JSON, Message, seconds
from tidings.transports.grpc.wire import PIECE, draft, packed, pb, pieces, refused

from .calls import Context, Stream, known

CREDIT, TIMEOUT = 100, 30.0
BUSY, LINGER = 0.005, 0.001  # seconds since the last frame, below which more is on its way; that a frame waits for it


class ClientFailed(Exception):
    """A client said that a message went wrong."""


class BusService:
    """The endpoints. Each knows who asks."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    # -- publishing

    async def publish(self, request: Any, who: Principal, context: Context) -> Any:
        return pb.PublishResponse(ids=await self._publish(request, who))

    async def publish_stream(self, _: Any, who: Principal, stream: Stream) -> None:
        while (request := await stream.read()) is not None:
            try:
                response = pb.PublishResponse(ids=await self._publish(request, who))
            except TidingsError as error:
                response = pb.PublishResponse(error=refused(error))
            await stream.write(response)

    async def _publish(self, request: Any, who: Principal) -> list[str]:
        drafts = [timed(draft(message)) for message in request.messages]
        return [message.id for message in await self.gateway.publish(who, drafts)]

    # -- asking

    async def request(self, request: Any, who: Principal, context: Context) -> Any:
        async for reply in self._replies(request, who, context):
            return pb.RequestResponse(body=reply.body, content_type=reply.content_type)
        raise RequestError(f"{request.service} had no reply", mend="it streams its replies: RequestStream")

    async def request_stream(self, request: Any, who: Principal, stream: Stream) -> None:
        async for reply in self._replies(request, who, stream.context):
            await stream.write(pb.RequestResponse(body=reply.body, content_type=reply.content_type))

    def _replies(self, request: Any, who: Principal, context: Context) -> AsyncIterator[Reply]:
        timeout = request.timeout if request.HasField("timeout") else context.time_remaining() or TIMEOUT
        if len(request.body) > self.gateway.limits.body:
            raise too_large(request.service, request.body, self.gateway.limits)
        content_type = request.content_type if request.HasField("content_type") else JSON
        return self.gateway.request(who, request.service, request.body, content_type, timeout)

    # -- subscribing

    async def subscribe(self, _: Any, who: Principal, stream: Stream) -> None:
        first = await stream.read()
        if first is None:
            return
        if not first.HasField("open"):
            raise Malformed("the first request has no `open`", mend="say what to subscribe to")
        asked = first.open
        if asked.group:
            await self._claimed(who, asked, stream)
        else:
            await self._followed(who, asked, stream)

    async def _followed(self, who: Principal, asked: Any, stream: Stream) -> None:
        if asked.ordered or any(map(asked.HasField, ("start", "credit", "acknowledge"))):
            what = "ordered, start, credit and acknowledge are for a group"
            raise Malformed(what, mend="name a group, or leave them out")
        after = asked.after if asked.HasField("after") else None
        follower = await self.gateway.follow(who, asked.pattern, after)
        reading = asyncio.create_task(ending(stream))
        try:
            await stream.write(pb.SubscribeResponse(opened=pb.Opened(cursor=follower.cursor)))
            await self._follow(follower, stream, reading)
        finally:
            follower.close()
            reading.cancel()

    async def _follow(self, follower: Follower, stream: Stream, reading: asyncio.Task[None]) -> None:
        gap = 0
        while True:
            coming = asyncio.create_task(follower.next())
            try:
                await asyncio.wait({coming, reading}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not coming.done():
                    coming.cancel()  # which loses nothing
            if reading.done():
                return reading.result()
            if not (items := coming.result()):
                return None
            missed, gap = follower.gap - gap, follower.gap
            for piece in pieces([item.as_(received) for item in items], PIECE):
                await stream.write(pb.SubscribeResponse(messages=piece, gap=missed))
                missed = 0

    async def _claimed(self, who: Principal, asked: Any, stream: Stream) -> None:
        if asked.HasField("after"):
            raise Malformed("a group goes on where it was", mend="leave out `after`, or `group`")
        claim = await self.gateway.claim(
            who,
            asked.pattern,
            asked.group,
            credit=asked.credit if asked.HasField("credit") else CREDIT,
            start=finite("start", asked.start) if asked.HasField("start") else None,
            ordered=asked.ordered,
            acknowledge=asked.acknowledge if asked.HasField("acknowledge") else None,
        )
        reading: asyncio.Task[None] | None = None
        try:
            await stream.write(pb.SubscribeResponse(opened=pb.Opened()))
            reading = asyncio.create_task(self._told(claim, stream))
            await hand_out(claim, stream)
        finally:
            if reading is not None:
                reading.cancel()
            await claim.close()

    async def _told(self, claim: Claim, stream: Stream) -> None:
        """What the client says of its messages; its end is the claim's."""
        try:
            while (request := await stream.read()) is not None:
                if request.HasField("open"):
                    raise Malformed("`open` is for the first request", mend="open another stream")
                late = [number for number in request.acknowledged if not claim.acknowledge(number)]
                late += [f.number for f in request.failed if not claim.fail(f.number, failure(f))]
                if request.HasField("credit"):
                    claim.grant(request.credit)
                if late:
                    await stream.write(pb.SubscribeResponse(late=late))
        except Exception as error:
            stream.end(known(error))
        else:
            if claim.worker is not None:
                claim.worker.stop()


async def hand_out(claim: Claim, stream: Stream) -> None:
    """Write what a claim gets, until it ends. While much comes, a little of it waits for the rest: frames cost most."""
    loop, last = asyncio.get_running_loop(), 0.0
    while claimed := await claim.next():
        if loop.time() - last < BUSY:
            await asyncio.sleep(LINGER)
            if claim.inbox:
                claimed = [*claimed, *await claim.next()]
        made = [pb.Received(message=packed(c.message), number=c.number, attempt=c.attempt) for c in claimed]
        for piece in pieces(made, PIECE):
            await stream.write(pb.SubscribeResponse(messages=piece))
        last = loop.time()


async def ending(stream: Stream) -> None:
    """Until the client has no more to say; a follower has nothing to say."""
    if await stream.read() is not None:
        raise Malformed("a live subscription is told nothing", mend="name a group to acknowledge")


def received(item: Any) -> Any:
    """What follows, made once for all who follow."""
    return pb.Received(message=packed(item.message), cursor=item.cursor)


def failure(m: Any) -> BaseException:
    """What a client says of a message, as a handler would have raised it."""
    why = m.why or "the client failed"
    delay = seconds(m.delay, "delay") if m.HasField("delay") else None
    if m.fate == pb.Failed.RETRY:
        return Retry(delay, why)
    if m.fate == pb.Failed.DEFER:
        return Defer(delay or 0.0, why)
    if m.fate == pb.Failed.REJECT:
        return Reject(why)
    if m.fate == pb.Failed.SKIP:
        return Skip(why)
    return ClientFailed(why)


def timed(message: Message[Any]) -> Message[Any]:
    """A draft whose durations are some. Raises ``InvalidOption``."""
    for name in ("delay", "expires"):
        if (value := getattr(message, name)) is not None:
            seconds(value, name)
    return message


def finite(name: str, value: float) -> float:
    if not math.isfinite(value) or not 0 <= value < 1e11:
        raise Malformed(f"{name} cannot be {value}", mend="Unix seconds")
    return value


def too_large(name: str, body: bytes, limits: Limits) -> TooLarge:
    return TooLarge(f"{name!r}: {len(body):,} bytes are more than {limits.body:,}")
