"""EIP: Channel Adapter, for HTTP: what a URL has is a message whenever it has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from hashlib import blake2b
from http.client import HTTPException
from typing import Any, TypeVar, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from msgspec import Struct
from msgspec.structs import replace

from tidings.app import App
from tidings.channels import Topic
from tidings.kernel.codec import decoder
from tidings.kernel.errors import DeliveryError, Duration, InvalidOption
from tidings.kernel.message import BINARY, Message, derived_id, seconds
from tidings.router import Router
from tidings.state import State, Table

from ._patience import Patience
from ._pattern import describe

T = TypeVar("T")


class Seen(Struct, frozen=True):
    """What a URL had when it was last published: the server's marks, a digest of the body, and the message's id."""

    etag: str = ""
    modified: str = ""
    digest: str = ""
    id: str = ""


class Answer(Struct, frozen=True):
    """What a URL has now."""

    seen: Seen
    body: bytes
    content_type: str


SEEN = Table("tidings.poll_http", Seen)


def poll_http(
    app: Router,
    to: Topic[T],
    url: str,
    /,
    *,
    headers: Mapping[str, str] | None = None,
    made: Callable[[T], Message[T]] | None = None,
    every: Duration = "1m",
    timeout: Duration = "30s",
    group: str = "",
) -> None:
    """Publish what a URL has, whenever it has changed. EIP: Channel Adapter.

    The payload is the body as the topic's type: ``bytes``, ``str``, or read from JSON. ``made``: its message, for a
    key or a bound topic. ``headers``: of the request. The server is asked with ``If-None-Match`` and
    ``If-Modified-Since``; one that ignores them is found out by a digest of the body.

    ``every``: one replica asks. What was seen is a record of the app's store, written with the message: each change is
    published exactly once where the bus is the store, at least once and with the same id elsewhere. While the server
    fails it is asked less often, up to once a minute or as ``Retry-After`` says. A body that does not fit the type is
    told in the log. ``timeout``: of a request. ``group``: default ``"<app>.poll-<topic>"``.

    Raises ``InvalidOption``; a bus without a store is refused at start-up.
    """
    if not url.startswith(("http://", "https://")):
        raise InvalidOption(f"{url!r} is no URL to poll", mend="http:// or https://")
    if made is None and not to.publishable:
        raise InvalidOption(f"{url} cannot be published to {to!r}", mend="made=lambda data: topic.bind(...)(data)")
    name, limit = group or f"poll-{to.name}", seconds(timeout, "timeout")
    decode, message, patience = decoder(to.type, lax=to.lax), made or to, Patience(name)

    async def poll(state: State, app: App) -> Message[T] | None:
        place = group or f"{app.name}.{name}"  # apps share a store
        if patience.waits:
            return None
        seen = await state.get(SEEN, place) or Seen()
        try:
            answer = await asyncio.to_thread(_ask, Request(url, headers={**(headers or {}), **_marks(seen)}), limit)
            data: T | None = None if answer is None else decode(answer.body, answer.content_type)
        except (OSError, HTTPException, DeliveryError) as error:
            patience.failed(error, _retry_after(error))
            return None
        patience.answered()
        if answer is None:
            return None
        changed = answer.seen.digest != seen.digest
        id = derived_id(seen.id, place, f"{url}\0{answer.seen.digest}", 0) if changed else seen.id
        state.put(SEEN, place, replace(answer.seen, id=id))
        return replace(message(cast(T, data)), id=id) if changed else None

    poll.__name__ = name
    app.every(every, group=group)(describe(poll, "channel adapter", publishes=(to,)))


def _marks(seen: Seen) -> dict[str, str]:
    return {n: mark for n, mark in (("If-None-Match", seen.etag), ("If-Modified-Since", seen.modified)) if mark}


def _ask(request: Request, timeout: float) -> Answer | None:
    """None: what it had. Raises ``OSError`` or ``HTTPException`` for a server that fails."""
    try:
        with urlopen(request, timeout=timeout) as response:
            body, told = response.read(), response.headers
    except HTTPError as error:
        if error.code == 304:
            return None
        raise
    digest = blake2b(body, digest_size=16).hexdigest()
    seen = Seen(told.get("ETag", ""), told.get("Last-Modified", ""), digest)
    return Answer(seen, body, told.get("Content-Type", BINARY))


def _retry_after(error: Any) -> float:
    """What a server that fails asks for, in seconds."""
    text = error.headers.get("Retry-After", "") if isinstance(error, HTTPError) else ""
    return float(text) if text.isdigit() else 0.0
