"""Server-Sent Events (WHATWG HTML, section 9.2): ``GET /topics/{pattern}``, for browsers, ``curl -N``, and everyone.

``data`` is a structured CloudEvent, ``id`` the cursor to resume after. Messages have no ``event`` field: a browser
gives named events only to those who listen for that very name, and the CloudEvent has type and topic. ``gap`` says
that something before it is missing, ``error`` why the stream ends.

With ``?group=`` the messages are the group's, each to one of its members. Events cannot be acknowledged: a message is
settled when the connection still lives, and takes more, a moment after it was written (``SETTLE``). What a client
loses after that it does not get again; WebSocket and gRPC acknowledge exactly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import Message as Event
from starlette.types import Receive, Scope, Send

from tidings.kernel.errors import TidingsError
from tidings.kernel.topics import check_topic, refuse_reserved

from .claims import Claim, Claimed
from .cloudevents import structured
from .feeds import Follower, Item
from .refusals import Forbidden, Malformed
from .rights import Principal
from .site import Site, problem
from .streams import Stream, gone

log = logging.getLogger("tidings.gateway")

SETTLE = 0.1  # seconds
PIECE = 64 * 1024  # bytes of events written at once, or one event
RETRY = 2000  # milliseconds after which a client comes again
GAP = b'event: gap\ndata: {"why":"what came before is no longer to be had"}\n\n'
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect them
]


class Ask(Struct, frozen=True, forbid_unknown_fields=True):
    """The query. ``after``: a cursor. With ``group``: ``credit``, ``start`` (Unix seconds), ``ordered``."""

    after: str | None = None
    group: str | None = None
    credit: Annotated[int, Meta(ge=1)] = 100
    start: Annotated[float, Meta(ge=0)] | None = None
    ordered: bool = False


class Events:
    """The endpoint. It writes to the server itself: a streaming response would add to the cost of each message."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = Stream(self.site, scope, send, alive=alive)
        try:
            await self._answer(Request(scope), stream, receive)
        except TidingsError as error:
            if not stream.written:
                await problem(error)(scope, receive, send)
                return
            await stream.last(written(b"event: error\n" + lines(bytes(problem(error).body)) + b"\n"))
        if stream.slow:
            await stream.left(receive)
        else:
            await stream.last({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answer(self, request: Request, stream: Stream, receive: Receive) -> None:
        who, pattern, ask = self.site.who(request), request.path_params["pattern"], asked(request)
        await self.site.ready()
        async with stream.opened():
            if request.method == "HEAD":
                self._may(who, pattern, ask.group)
                await stream.write(started())
                return
            leaving = asyncio.create_task(gone(receive, stream.end))
            try:
                if ask.group is None:
                    await self._copies(who, pattern, ask.after, stream)
                else:
                    await self._shares(who, pattern, ask.group, ask, stream)
            finally:
                leaving.cancel()

    def _may(self, who: Principal, pattern: str, group: str | None) -> None:
        """Raises what ``follow`` or ``claim`` would."""
        who.need("subscribe", self.site.gateway._readable(pattern))
        if group is not None:
            who.need("group", refuse_reserved(check_topic(group)))

    async def _copies(self, who: Principal, pattern: str, after: str | None, stream: Stream) -> None:
        follower = await self.site.gateway.follow(who, pattern, after)
        try:
            await stream.write(started())
            await stream.write(written(b"retry: %d\n%s\n" % (RETRY, identified(follower.cursor))))
            await copies(follower, stream)
        finally:
            follower.close()

    async def _shares(self, who: Principal, pattern: str, group: str, ask: Ask, stream: Stream) -> None:
        claim = await self.site.gateway.claim(
            who, pattern, group, credit=ask.credit, start=ask.start, ordered=ask.ordered
        )
        try:
            await stream.write(started())
            await stream.write(written(b"retry: %d\n\n" % RETRY))
            await shares(claim, stream)
        finally:
            await claim.close()


async def copies(follower: Follower, stream: Stream) -> None:
    """Write what follows, until there is nothing more to come."""
    missed = 0
    if follower.gap:
        missed = follower.gap
        await stream.write(written(GAP))
    while items := await follower.next():
        if follower.gap != missed:
            missed = follower.gap
            await stream.write(written(GAP))
        if len(items) == 1:
            await stream.write(written(items[0].as_(one)))
        else:
            for piece in pieces([item.as_(one) for item in items]):
                await stream.write(written(piece))


async def shares(claim: Claim, stream: Stream) -> None:
    """Write a group's messages, and settle those that seem to have arrived."""
    later = asyncio.get_running_loop().call_later

    def settle(numbers: Sequence[int]) -> None:
        if stream.ended:
            return  # what is not settled goes back to the group
        if stream.began:
            later(SETTLE, settle, numbers)
            return
        for number in numbers:
            claim.acknowledge(number)

    while came := await claim.next():
        ready = dict(writable(claim, came))
        if ready:
            for piece in pieces([*ready.values()]):
                await stream.write(written(piece))
            later(SETTLE, settle, [*ready])


def writable(claim: Claim, came: Sequence[Claimed]) -> Iterator[tuple[int, bytes]]:
    """Numbers and events. A message that cannot be written out has failed; the others can."""
    for claimed in came:
        try:
            event = lines(structured(claimed.message)) + b"\n"
        except Exception as error:
            claim.fail(claimed.number, error)
        else:
            yield claimed.number, event


def asked(request: Request) -> Ask:
    """What the query and ``Last-Event-ID`` ask for; that header wins, as a browser's new attempt has the old query.

    Raises ``Malformed``, and ``Forbidden`` for an image, or the like, of another site's page: it would take messages.
    """
    try:
        ask = msgspec.convert(dict(request.query_params), Ask, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(Ask.__struct_fields__)
        raise Malformed(f"the query cannot be read: {error}", mend=f"it may have {known}") from None
    if ask.group is not None:
        if ask.after is not None:
            raise Malformed("a group knows itself where it is", mend="leave out `after`")
        ours = request.headers.get("sec-fetch-site", "none") in ("same-origin", "none")
        if not ours and "origin" not in request.headers:  # an origin that may not come did not come this far
            raise Forbidden("a page of another site may not take a group's messages")
        return ask
    if last := request.headers.get("last-event-id"):
        try:
            return Ask(after=last.encode("latin-1").decode())  # a browser sends UTF-8
        except UnicodeDecodeError:
            raise Malformed("Last-Event-ID is no UTF-8") from None
    return ask


def one(item: Item) -> bytes:
    """A message as an event: the same for all who follow. One that cannot be written out is a gap, and logged once."""
    try:
        return identified(item.cursor) + lines(structured(item.message)) + b"\n"
    except Exception:
        log.exception("a message of %s cannot be written out", item.message.topic)
        return GAP


def identified(cursor: str) -> bytes:
    """The line with the id. A stranger's that would be more than one line is none."""
    return b"id: %s\n" % cursor.encode() if cursor and cursor.isprintable() else b""


def lines(data: bytes) -> bytes:
    """Data, whatever lines it has: publishers may send JSON that is set in lines."""
    return b"".join(b"data: %s\n" % line for line in data.splitlines())


def pieces(events: Sequence[bytes]) -> Iterator[bytes]:
    """Joined, so that few writes do, and no piece is large."""
    held, size = list[bytes](), 0
    for event in events:
        if held and size + len(event) > PIECE:
            yield b"".join(held)
            held, size = [], 0
        held.append(event)
        size += len(event)
    yield b"".join(held)


def started() -> Event:
    """The beginning of an answer: a new one for each, as middleware may change it."""
    return {"type": "http.response.start", "status": 200, "headers": [*HEADERS]}


def alive() -> Event:
    """A sign of life: a comment."""
    return written(b":\n\n")


def written(body: bytes) -> Event:
    return {"type": "http.response.body", "body": body, "more_body": True}


def routes(site: Site) -> list[BaseRoute]:
    return [Route("/topics/{pattern}", Events(site), methods=["GET"], name="events")]
