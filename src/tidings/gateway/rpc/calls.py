"""What all calls share: who asks, errors as statuses with details, streams that end when they must."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from tidings.gateway.access import Access
from tidings.gateway.gateway import Gateway
from tidings.gateway.refusals import Forbidden, Limited, Malformed, TooSlow, Unauthenticated
from tidings.gateway.rights import Principal, Rights
from tidings.kernel import errors
from tidings.transports.grpc.wire import AUTHORIZATION, DETAILS, refused

log = logging.getLogger("tidings")

Context = aio.ServicerContext[Any, Any]
Code = grpc.StatusCode

# The first that an error is an instance of: special ones come first.
STATUSES: tuple[tuple[type[errors.TidingsError], grpc.StatusCode], ...] = (
    (Unauthenticated, Code.UNAUTHENTICATED),
    (Forbidden, Code.PERMISSION_DENIED),
    (Malformed, Code.INVALID_ARGUMENT),
    (Limited, Code.RESOURCE_EXHAUSTED),
    (TooSlow, Code.ABORTED),
    (errors.NotFound, Code.NOT_FOUND),
    (errors.NoAnswerer, Code.NOT_FOUND),
    (errors.RequestTimeout, Code.DEADLINE_EXCEEDED),
    (errors.AnswerFailed, Code.UNKNOWN),
    (errors.RequestError, Code.ABORTED),
    (errors.Unsupported, Code.UNIMPLEMENTED),
    (errors.NotOpen, Code.UNAVAILABLE),
    (errors.BusFull, Code.RESOURCE_EXHAUSTED),
    (errors.PublishFailed, Code.ABORTED),
    (errors.BusError, Code.UNAVAILABLE),
    (errors.UsageError, Code.INVALID_ARGUMENT),
)
LONGEST = 1000  # characters of a part of an error: headers have little room

FAILED = errors.BusError("the server failed", why="its log says how", mend="tell its operator")
NOBODY = Principal("nobody", Rights())  # in particular
CHANGED = Unauthenticated("what this client may do was changed", mend="come again")


class Stream:
    """One open stream: written by one at a time, and ended by whoever has a reason."""

    def __init__(self, context: Context, kind: Any, patience: float) -> None:
        self.context, self.kind, self.patience = context, kind, patience
        self.lock = asyncio.Lock()
        self.task = asyncio.current_task()
        self.reason: errors.TidingsError | None = None

    async def read(self) -> Any:
        """What the client sent; None at its end. Raises ``Malformed``."""
        came = await self.context.read()
        return None if came is aio.EOF else parsed(self.kind, came)

    async def write(self, frame: Any) -> None:
        """Raises ``TooSlow`` when the client does not read for as long as it may take."""
        try:
            async with self.lock, asyncio.timeout(self.patience):
                await self.context.write(frame)
        except TimeoutError:
            raise TooSlow(f"nothing was read for {self.patience:g} s") from None
        except aio.InternalError:
            raise asyncio.CancelledError from None  # the client is gone

    def end(self, reason: errors.TidingsError) -> None:
        if self.reason is None and self.task is not None:
            self.reason = reason
            self.task.cancel()


class Calls:
    """A gateway's gRPC side: what it does is wrapped here."""

    def __init__(self, gateway: Gateway, access: Access) -> None:
        self.gateway, self.access = gateway, access
        self.streams: set[Stream] = set()

    def who(self, context: Context) -> Principal:
        """Who calls: by bearer token, or by a certificate that TLS has verified. Raises ``Unauthenticated``.

        grpcio does not tell who is at the other end of a Unix socket: there the file's mode says who may come.
        """
        given = dict(context.invocation_metadata() or ()).get(AUTHORIZATION)
        told = context.auth_context()
        found = [*told.get("x509_common_name", ()), *told.get("x509_subject_alternative_name", ())]
        names = [name.decode(errors="replace") for name in found]
        if given is None:
            return self.access.principal(None, names)
        scheme, _, token = str(given).partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("this is no way to say who you are here")
        return self.access.principal(token.strip(), names)

    def unary(
        self, endpoint: Callable[[Any, Principal, Context], Awaitable[Any]], kind: Any, for_all: bool = False
    ) -> Any:
        """One request of a kind, one response. Nothing is read of who may not come; ``for_all``: everybody may."""

        async def called(_: Any, context: Context) -> Any:
            try:
                who = NOBODY if for_all else self.who(context)
                return await endpoint(await self._request(kind, context), who, context)
            except aio.AbortError:
                raise
            except Exception as error:
                reason = known(error)
            return await abort(context, reason)

        return called

    async def _request(self, kind: Any, context: Context) -> Any:
        patience = self.gateway.limits.patience
        try:
            async with asyncio.timeout(patience):
                came = await context.read()
        except TimeoutError:
            raise TooSlow(f"no request came for {patience:g} s") from None
        if came is aio.EOF:
            raise Malformed("there is no request", mend="a unary call has one")
        return parsed(kind, came)

    def streaming(self, endpoint: Callable[[Any, Principal, Stream], Awaitable[None]], kind: Any) -> Any:
        """One request of a kind, or many, and many responses. It is one of the open streams that a gateway counts."""

        async def called(request: Any, context: Context) -> None:
            stream = Stream(context, kind, self.gateway.limits.patience)
            self.streams.add(stream)
            try:
                reason = await self._streamed(endpoint, request, stream)
                if reason is not None:
                    await abort(context, reason)
            finally:
                self.streams.discard(stream)

        return called

    async def _streamed(self, endpoint: Any, request: Any, stream: Stream) -> errors.TidingsError | None:
        gateway, end = self.gateway, lambda: stream.end(CHANGED)
        gateway.streams += 1
        try:
            if gateway.streams > gateway.limits.connections:
                raise Limited(f"more than {gateway.limits.connections:,} streams are open")
            who = self.access.watched[end] = self.who(stream.context)
            await stream.context.send_initial_metadata(())  # a status must not follow a first write that was cut off
            await endpoint(parsed(stream.kind, request) if type(request) is bytes else request, who, stream)
        except asyncio.CancelledError:
            if stream.reason is None or stream.task is None:
                raise
            stream.task.uncancel()
            return stream.reason
        except Exception as error:
            return known(error)
        finally:
            gateway.streams -= 1
            self.access.watched.pop(end, None)
        return None

    def end(self, reason: errors.TidingsError) -> None:
        """End all streams."""
        for stream in tuple(self.streams):
            stream.end(reason)


def parsed(kind: Any, request: bytes) -> Any:
    """A request of a kind. Raises ``Malformed``."""
    try:
        return kind.FromString(request)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise Malformed(f"these bytes are no {name}", mend="build the client from the published proto") from None


def known(error: Exception) -> errors.TidingsError:
    """What a client may hear of it."""
    if isinstance(error, errors.TidingsError):
        return error
    log.error("a gRPC call failed", exc_info=error)
    return FAILED


async def abort(context: Context, error: errors.TidingsError) -> Any:
    """End a call with an error as its status; all of it is in its trailing metadata."""
    code = next((code for kind, code in STATUSES if isinstance(error, kind)), Code.INTERNAL)
    details = refused(error)
    for name in ("what", "why", "mend"):
        setattr(details, name, getattr(details, name)[:LONGEST])
    for name in ("accepted", "rejected", "unknown"):
        del getattr(details, name)[LONGEST:]
    await context.abort(code, details.what, ((DETAILS, details.SerializeToString()),))
