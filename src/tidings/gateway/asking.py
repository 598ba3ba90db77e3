"""``POST /requests/{service}``: ask a service (EIP: Request-Reply), and wait for what it replies.

One reply is the answer: 200, with its body and content type. A streamed one comes as JSON, a line a reply
(``application/x-ndjson``), or, where ``Accept`` names ``text/event-stream``, as Server-Sent Events. Whoever names one
of the two gets each reply as it comes; others get the first when the second has come, or the end.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import Message as Event
from starlette.types import Receive, Scope, Send

from tidings.kernel.errors import NotOpen, TidingsError
from tidings.kernel.message import Message, seconds
from tidings.transports._wire import data

from .bodies import refuse_unreadable
from .cloudevents import header_value, media_type
from .events import alive, lines, written
from .gateway import Reply
from .refusals import Malformed
from .site import Site, problem
from .streams import Stream, gone
from .tracing import trace_headers

LINES, EVENTS = "application/x-ndjson", "text/event-stream"
USUAL = 30.0  # seconds, where the client says nothing
WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d+)"?\s*(?=$|[,;])', re.IGNORECASE)  # RFC 7240, section 4.3
END: Event = {"type": "http.response.body", "body": b"", "more_body": False}


def routes(site: Site) -> list[BaseRoute]:
    """The route of this module."""
    return [Route("/requests/{service}", Requests(site), methods=["POST"])]


def deadline(query: Mapping[str, str], headers: Mapping[str, str], most: float) -> float:
    """The seconds that ``?timeout=`` or ``Prefer: wait=`` gives. Raises ``Malformed``, ``InvalidOption``."""
    for name in query:
        if name != "timeout":
            raise Malformed(f"there is no option {name!r}", mend="timeout=5s")
    given: str | float | None = query.get("timeout")
    if given is None and (wait := WAIT.search(headers.get("prefer", ""))):
        given = wait[1]
    if given is None:
        return min(USUAL, most)
    found = seconds(float(given) if str(given).isdecimal() else given, "timeout")
    if found > most:
        raise Malformed(
            f"a request may not take {found:g} s", mend=f"at most {most:g} s, or raise the limit `deadline`"
        )
    return found


def wanted(accept: str) -> str:
    """The kind of stream that ``Accept`` names first, or ``""``."""
    kinds = (media_type(kind) for kind in accept.split(","))
    return next((kind for kind in kinds if kind in (LINES, EVENTS)), "")


class Requests:
    """The endpoint. A request that waits is a stream that is open: counted, and ended when its client goes."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        kind = wanted(request.headers.get("accept", ""))
        stream = Stream(self.site, scope, send, alive=alive if kind == EVENTS else None)
        try:
            if await self._answer(request, stream, kind):
                return
            error: TidingsError = NotOpen("this server is stopping", mend="ask again in a moment")  # or the client went
        except TidingsError as found:
            error = found
        if not stream.written:
            await problem(error)(scope, receive, send)
        elif kind == EVENTS:
            await stream.last(written(b"event: error\n" + lines(bytes(problem(error).body)) + b"\n"))
            await stream.last(END)
        # lines end without their end, which every HTTP client notices

    async def _answer(self, request: Request, stream: Stream, kind: str) -> bool:
        """Whether it is answered to the end."""
        site, headers, service, done = self.site, request.headers, request.path_params["service"], False
        who, limits = site.who(request), site.gateway.limits
        timeout = deadline(request.query_params, headers, limits.deadline)
        refuse_unreadable(headers)
        async with site.intake.body(request, limits.body) as body:
            pass
        gateway, content_type = await site.ready(), headers.get("content-type", "")
        asked = gateway.request(who, service, body, content_type, timeout, trace_headers(headers))
        async with stream.opened(), aclosing(asked) as replies:
            leaving = asyncio.create_task(gone(request.receive, stream.end))
            try:
                await _write(replies, stream, kind)
                done = True
            finally:
                leaving.cancel()
        return done


async def _write(replies: AsyncIterator[Reply], stream: Stream, kind: str) -> None:
    came = [reply async for reply in _first(replies, 1 if kind else 2)]
    if not kind and len(came) == 1:
        (reply,) = came
        await stream.write(_start(reply.content_type, (b"content-length", b"%d" % len(reply.body))))
        await stream.write({"type": "http.response.body", "body": reply.body})
        return
    write = _event if kind == EVENTS else _line
    await stream.write(_start(kind or LINES))
    for reply in came:
        await stream.write(written(write(reply)))
    async for reply in replies:
        await stream.write(written(write(reply)))
    await stream.write(END)


async def _first(replies: AsyncIterator[Reply], count: int) -> AsyncIterator[Reply]:
    while count and (reply := await anext(replies, None)) is not None:
        yield reply
        count -= 1


def _start(content_type: str, *headers: tuple[bytes, bytes]) -> Event:
    told = [(b"content-type", header_value(content_type).encode())] if content_type else []
    return {"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"no-store"), *told, *headers]}


def _event(reply: Reply) -> bytes:
    return b"data: %b\n\n" % line(reply)


def _line(reply: Reply) -> bytes:
    return b"%b\n" % line(reply)


def line(reply: Reply) -> bytes:
    """A reply as JSON on one line: text is a string, what is neither is ``{"data_base64": …}``."""
    found: dict[str, Any] = data(Message("", reply.body, content_type=reply.content_type))
    value = found.get("data", found or None)
    if isinstance(value, msgspec.Raw):
        body = bytes(value)
        return msgspec.json.format(body, indent=-1) if b"\n" in body or b"\r" in body else body
    return msgspec.json.encode(value)
