"""WebSocket (RFC 6455), both ways: ``/ws``, subprotocol ``tidings.v1`` (``frames.py``).

A frame that means nothing is answered by an ``error``, and the connection goes on. It is closed with 1007 for what is
no JSON, 1003 for bytes, 1009 for more than a message may have, 1012 when the server stops, 1008 when a token was
revoked, 1011 for a failure of ours, and 1013 for a client that does not read. What a group's member has not
acknowledged when it goes, in whatever way, goes back to the group.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

from msgspec import Struct
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import Receive, Scope, Send

from tidings.kernel.errors import Reject, Retry, TidingsError
from tidings.kernel.message import Message
from tidings.transports._wire import data

from .claims import Claim
from .feeds import Follower
from .frames import (
    PROTOCOL,
    Ack,
    Credit,
    Fail,
    NotJSON,
    Publish,
    Request,
    Said,
    Subscribe,
    Unsubscribe,
    beginning,
    copy,
    named,
    read,
    refused,
    said,
    share,
)
from .limits import Limits
from .refusals import Limited, Malformed
from .rights import Principal
from .site import Site, problem
from .streams import Stream

log = logging.getLogger("tidings.gateway")

FRAMING = 64 * 1024  # bytes of a frame beside its data


class Failed(Exception):
    """A client could not handle a message."""


class Close(Struct, frozen=True):
    """Why a connection is closed: a code (RFC 6455, section 7.4; IANA's registry) and a few words."""

    code: int
    reason: str


GOING = Close(1012, "the server stops: come again")
REVOKED = Close(1008, "who you are, or what you may do, is no longer so")
FAILED = Close(1011, "something went wrong here: come again")
BYTES = Close(1003, "frames are text")
LARGE = Close(1009, "larger than a message may be")


class WebSockets:
    """The endpoint."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = Stream(self.site, scope, send)
        close: Close | None = REVOKED
        try:
            who = self.site.who(HTTPConnection(scope))
            await self.site.ready()
            client = Client(self.site, who, stream)
            async with stream.opened():
                await receive()  # "websocket.connect"
                chosen = PROTOCOL if PROTOCOL in scope.get("subprotocols", ()) else None
                await stream.write({"type": "websocket.accept", "subprotocol": chosen, "headers": []})
                close = await client.run(receive)
        except TidingsError as error:
            await self._refuse(error, scope, receive, send)
            return
        if close is REVOKED and self.site.stopping.is_set():
            close = GOING
        elif close is REVOKED and client.failed:
            close = FAILED
        if close is not None and not stream.slow:
            await stream.last({"type": "websocket.close", "code": close.code, "reason": close.reason})

    async def _refuse(self, error: TidingsError, scope: Scope, receive: Receive, send: Send) -> None:
        if "websocket.http.response" in scope.get("extensions", {}):
            await problem(error)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": error.what[:100]})


class Client:
    """One connection. ``tasks``: its subscriptions and requests, by id."""

    def __init__(self, site: Site, who: Principal, stream: Stream) -> None:
        self.gateway, self.limits, self.who, self.stream = site.gateway, site.gateway.limits, who, stream
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.claims: dict[str, Claim] = {}
        self.failed = False

    async def run(self, receive: Receive) -> Close | None:
        """Until the client goes, or has to; None: it went."""
        most = largest(self.limits)
        try:
            while (event := await receive())["type"] == "websocket.receive":
                text = event.get("text")
                if text is None:
                    return BYTES
                if len(text) > most:
                    return LARGE
                if close := await self._hear(text):
                    return close
        finally:
            await self._leave()
        return None

    async def _leave(self) -> None:
        tasks = tuple(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def say(self, text: str) -> None:
        await self.stream.write({"type": "websocket.send", "text": text})

    async def _hear(self, text: str) -> Close | None:
        id = ""
        try:
            heard = read(text)
            id = heard.id
            await self._do(heard)
        except NotJSON as error:
            await self.say(refused(error))
            return Close(1007, "a frame was no JSON")
        except TidingsError as error:
            await self.say(refused(error, id or named(text)))
        except Exception:
            log.exception("a frame of a WebSocket could not be dealt with")
            return FAILED
        return None

    async def _do(self, heard: Said) -> None:
        match heard:
            case Subscribe():
                await self._subscribe(heard)
            case Unsubscribe():
                await self._unsubscribe(heard.id)
            case Ack():
                self._acknowledge(heard)
            case Fail():
                self._fail(heard)
            case Credit():
                self._claim(heard.id).grant(heard.credit)
            case Publish():
                (sealed,) = await self.gateway.publish(self.who, [heard.draft()])
                await self.say(said("published", id=heard.id, message_id=sealed.id))
            case Request():
                self._refuse_more(heard.id)
                await self._start(heard.id, self._replies(heard))

    # -- subscriptions

    async def _subscribe(self, asked: Subscribe) -> None:
        self._refuse_more(asked.id)
        if asked.group is None:
            follower = await self.gateway.follow(self.who, asked.pattern, asked.after)
            await self._start(asked.id, self._copies(asked.id, follower))
            return
        if asked.after is not None:
            raise Malformed("a group knows itself where it is", mend="leave out `after`")
        claim = self.claims[asked.id] = await self.gateway.claim(
            self.who,
            asked.pattern,
            asked.group,
            credit=asked.credit,
            start=asked.start,
            ordered=asked.ordered,
            acknowledge=asked.acknowledge,
        )
        await self._start(asked.id, self._shares(asked.id, claim))

    async def _unsubscribe(self, id: str) -> None:
        task = self.tasks.get(id)
        if task is None:
            raise Malformed(f"nothing is subscribed to as {id!r}")
        task.cancel()
        await asyncio.wait({task})
        await self.say(said("ended", id=id))

    def _refuse_more(self, id: str) -> None:
        if id in self.tasks:
            raise Malformed(f"{id!r} is in use", mend="take another id, or unsubscribe it first")
        if len(self.tasks) >= self.limits.subscriptions:
            what = f"{self.limits.subscriptions:,} subscriptions and requests at once are all there may be"
            raise Limited(what, mend="unsubscribe some, or open another connection")

    async def _start(self, id: str, flow: Coroutine[Any, Any, None]) -> None:
        task = self.tasks[id] = asyncio.create_task(self._flow(id, flow))
        task.add_done_callback(lambda _: self.tasks.pop(id))
        await asyncio.sleep(0)  # it has begun, so whatever cancels it runs its ``finally``

    async def _flow(self, id: str, flow: Coroutine[Any, Any, None]) -> None:
        try:
            await flow
            await self.say(said("ended", id=id))
        except TidingsError as error:
            await self.say(refused(error, id))
            await self.say(said("ended", id=id))
        except Exception:
            log.exception("a subscription or request of a WebSocket failed")
            self.failed = True
            self.stream.end()

    async def _copies(self, id: str, follower: Follower) -> None:
        missed, begin = 0, beginning(id)
        try:
            await self.say(said("subscribed", id=id, cursor=follower.cursor or None))
            if follower.gap:
                missed = follower.gap
                await self.say(said("gap", id=id))
            while items := await follower.next():
                if follower.gap != missed:
                    missed = follower.gap
                    await self.say(said("gap", id=id))
                for item in items:
                    rest = item.as_(copy)
                    await self.say(begin + rest if rest else said("gap", id=id))
        finally:
            follower.close()

    async def _shares(self, id: str, claim: Claim) -> None:
        begin = beginning(id)
        try:
            await self.say(said("subscribed", id=id))
            while came := await claim.next():
                for claimed in came:
                    try:
                        rest = share(claimed.message, claimed.number, claimed.attempt)
                    except Exception as error:  # this one cannot be written out: the others can
                        claim.fail(claimed.number, error)
                        continue
                    await self.say(begin + rest)
        finally:
            del self.claims[id]
            await claim.close()

    def _claim(self, id: str) -> Claim:
        claim = self.claims.get(id)
        if claim is None:
            raise Malformed(f"no group is subscribed to as {id!r}")
        return claim

    def _acknowledge(self, heard: Ack) -> None:
        claim = self._claim(heard.id)
        if late := [number for number in heard.numbers if not claim.acknowledge(number)]:
            raise _late(late)

    def _fail(self, heard: Fail) -> None:
        claim, text = self._claim(heard.id), heard.error or "a client said so"
        error: Exception = Failed(text)
        if heard.reject:
            error = Reject(text)
        elif heard.retry is not None:
            error = Retry(heard.retry, text)
        if not claim.fail(heard.number, error):
            raise _late([heard.number])

    # -- requests

    async def _replies(self, asked: Request) -> None:
        body, kind = asked.body()
        async with aclosing(self.gateway.request(self.who, asked.service, body, kind, asked.timeout)) as replies:
            async for reply in replies:
                told = data(Message[Any](asked.service, reply.body, content_type=reply.content_type))
                await self.say(said("reply", id=asked.id, content_type=reply.content_type, **told))


def largest(limits: Limits) -> int:
    """Bytes of a frame: a message's body in base64, and what is around it."""
    return limits.body * 4 // 3 + FRAMING


def _late(numbers: list[int]) -> Malformed:
    what = f"not in your hands: {', '.join(map(str, numbers[:10]))}{', …' if len(numbers) > 10 else ''}"
    return Malformed(what, why="settled before, or its time was over and it goes to another")


def routes(site: Site) -> list[BaseRoute]:
    return [WebSocketRoute("/ws", WebSockets(site), name="websocket")]
