"""Bodies that are too large for a bus are checked in, and the message carries the claim (EIP: Claim Check).

    claims = ClaimCheck(FolderBlobs("/srv/shop/blobs"), above="64KiB")
    instrument(app, claims)

From then on handlers see bodies and the bus sees claims: what handlers return and what the app publishes is checked in
where it is larger, and what comes is redeemed. A blob is there, whole, before its claim is published, so a claim never
points to nothing; what was never published leaves a blob that ``collect`` removes.

A claim is a message like any other: the header ``claim-check`` has the blob's name, the body says its size and content
type, and the content type is ``application/vnd.tidings.claim-check``, which no typed handler takes for a payload.
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tidings.kernel.clock import current_clock
from tidings.kernel.errors import BusError, Duration, InvalidOption, Undecodable
from tidings.kernel.message import Message, seconds

from ._blobs import Blobs, FolderBlobs, FsspecBlobs, SharedBlobs
from ._rewriting import Rewriting, headed

__all__ = ["Blobs", "ClaimCheck", "FolderBlobs", "FsspecBlobs", "SharedBlobs"]

T = TypeVar("T")

HEADER, CLAIM = "claim-check", "application/vnd.tidings.claim-check"
NAME = re.compile(r"\d{4}-\d\d-\d\d/[0-9a-f]{64}")
SIZE = re.compile(r"(\d+)(KiB|MiB)?")


class Claim(Struct, frozen=True):
    """What a claim's body says of what was checked in: its blob, its size in bytes, its content type."""

    blob: str
    size: int
    content_type: str


class ClaimCheck(Rewriting):
    """A middleware that redeems claims, and checks in what handlers return; ``instrument`` adds what is published.

    ``above``: bodies of more bytes are checked in (``"64KiB"``, or a number). ``keep``: how long blobs are kept at
    least, by the day; longer than a message can wait, in delays, in retries and among the dead letters. Raises
    ``InvalidOption``.
    """

    def __init__(self, blobs: Blobs, *, above: str | int = "64KiB", keep: Duration = "30d") -> None:
        found = SIZE.fullmatch(str(above))
        if found is None:
            raise InvalidOption(f"above cannot be {above!r}", mend='"64KiB", "1MiB" or a number of bytes')
        self.blobs, self.keep = blobs, seconds(keep, "keep")
        self.above = int(found[1]) << {None: 0, "KiB": 10, "MiB": 20}[found[2]]

    async def check(self, draft: Message[T]) -> Message[T]:
        """A draft whose body, if it is larger than ``above``, is checked in.

        For what ``instrument`` does not reach: what a handler returns that is larger than the bus takes at all, or goes
        to another bus of its app; and apps that are not instrumented.

        Raises ``PayloadRefused``; ``InvalidOption`` for a delay past ``keep``; what the store raises.
        """
        return await self.rewritten(draft)

    async def outgoing(self, message: Message[Any]) -> Message[Any]:
        if len(message.body) <= self.above or message.header(HEADER):
            return message
        now = current_clock().now()
        delay = message.delay if message.deliver_at is None else message.deliver_at - now
        if (delay or 0) > self.keep:
            raise InvalidOption("a message would be delivered when its blob may be gone", mend="a longer keep=")
        name = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d}/{sha256(message.body).hexdigest()}"
        await asyncio.to_thread(self.blobs.put, name, message.body)
        claim = Claim(name, len(message.body), message.content_type)
        return headed(replace(message, body=msgspec.json.encode(claim), content_type=CLAIM), HEADER, name)

    async def incoming(self, message: Message[Any]) -> Message[Any]:
        name = message.header(HEADER)
        if not name:
            return message
        claim = _read(message)
        if claim.blob != name or not NAME.fullmatch(name):
            raise Undecodable(f"{name!r:.100} is no claim", why="its header and its body name no blob", mend=MEND)
        try:
            body = await asyncio.to_thread(self.blobs.get, name)
        except FileNotFoundError as error:
            why, mend = f"not in {self.blobs!r}", "`tidings dead replay` once the store has it; or a longer keep="
            raise BusError(f"the blob {name} of a claim is missing", why=why, mend=mend) from error
        if sha256(body).hexdigest() != name[-64:]:
            raise BusError(f"the blob {name} of a claim is damaged", why="its hash differs", mend="restore it")
        return headed(replace(message, body=body, content_type=claim.content_type), HEADER, None)

    async def collect(self) -> int:
        """Remove the blobs of all days that ended longer than ``keep`` ago; how many days those were.

        Safe at any time, beside whoever publishes: ``@app.every("1d")``.
        """
        now = datetime.fromtimestamp(current_clock().now(), UTC)
        old = [day for day in await asyncio.to_thread(self.blobs.days) if _end(day, now) < now - _span(self.keep)]
        for day in old:
            await asyncio.to_thread(self.blobs.remove, day)
        return len(old)


MEND = "let ClaimCheck write it"


def _read(message: Message[Any]) -> Claim:
    try:
        return msgspec.json.decode(message.body, type=Claim)
    except msgspec.DecodeError as error:
        raise Undecodable("the body is no claim", why=str(error), mend=MEND) from error


def _span(keep: float) -> timedelta:
    return timedelta(seconds=keep)


def _end(day: str, unknown: datetime) -> datetime:
    """When a day ended; what is no day of ours is never old."""
    try:
        return datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC) + timedelta(days=1)
    except ValueError:
        return unknown
