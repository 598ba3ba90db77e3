"""Request bodies, read within bounds: no more of one than may be, of all together no more than fits, in good time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.requests import Request

from tidings.kernel.errors import TooLarge

from .cloudevents import media_type
from .limits import Limits
from .refusals import Limited, Malformed, TooSlow, UnsupportedMediaType

FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")  # what a client says that was told nothing


class Intake:
    """All bodies that are being read, or used."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.held = limits, 0

    @asynccontextmanager
    async def body(self, request: Request, most: int) -> AsyncIterator[bytes]:
        """A request's body of at most so many bytes; it counts for as long as the context lasts.

        Raises ``TooLarge``, from its declared length where it has one; ``Limited`` when all together are too many;
        ``TooSlow`` when the client pauses for longer than it may; ``Malformed`` when it goes.
        """
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > most):
            raise _too_large(most)
        chunks, size = list[bytes](), 0
        try:
            async for chunk in self._chunks(request):
                size += len(chunk)
                self.held += len(chunk)
                if size > most:
                    raise _too_large(most)
                if self.held > self.limits.intake:
                    raise Limited("too much is being sent at once, by all clients together")
                chunks.append(chunk)
            yield b"".join(chunks) if len(chunks) != 1 else chunks[0]
        finally:
            self.held -= size

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        more = True
        while more:
            try:
                async with asyncio.timeout(self.limits.patience):
                    event = await request.receive()
            except TimeoutError:
                raise TooSlow(
                    f"nothing of the body came for {self.limits.patience:g} s", mend="send it faster"
                ) from None
            if event["type"] == "http.disconnect":
                raise Malformed("the client went before its body had come")
            more = event.get("more_body", False)
            yield event.get("body", b"")


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"the body is more than {most:,} bytes", mend="send less at once, or a reference to it")


def refuse_unreadable(headers: Mapping[str, str]) -> None:
    """Raises ``UnsupportedMediaType`` for a form, or what is compressed: a handler would get what nobody meant."""
    kind, coding = media_type(headers.get("content-type", "")), headers.get("content-encoding", "identity").lower()
    if kind in FORMS:
        mend = "say what it is: curl --json '{…}', or curl -H 'content-type: text/plain' -d …"
        raise UnsupportedMediaType(f"{kind} is for forms", mend=mend)
    if coding != "identity":
        raise UnsupportedMediaType(f"a body in {coding!r} cannot be read here", mend="send it as it is")
