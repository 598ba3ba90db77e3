"""A bus opened to others (EIP: Messaging Gateway): what every protocol does, whoever asks.

HTTP, WebSocket and gRPC translate; what may be done, how much of it, and what it means is decided here, once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar
from weakref import WeakSet

from msgspec import Struct
from msgspec.structs import replace

from tidings import App
from tidings.assembly import group_of
from tidings.kernel.bus import Bus
from tidings.kernel.codec import seal
from tidings.kernel.errors import BusUnavailable, Duration, NotOpen, TooLarge, Unsupported
from tidings.kernel.message import Headers, Message, seconds
from tidings.kernel.outcome import Backoff
from tidings.kernel.topics import DEAD, check_pattern, check_topic, refuse_reserved
from tidings.kernel.transport import Inspectable, Subscription
from tidings.requests import Requester

from .claims import Claim, Hands
from .drafts import judge
from .feeds import Feeds, Follower
from .limits import Limits, Pace
from .refusals import Forbidden, Malformed
from .rights import Principal

audit = logging.getLogger("tidings.audit")

T = TypeVar("T")

LEAST = 1.0  # seconds to acknowledge in: a worker looks for what is late eight times in that


class Reply(Struct, frozen=True):
    """A service's reply as it came."""

    body: bytes
    content_type: str


class Gateway:
    """An open bus, for clients with rights and within limits.

    ``app``: whose default bus it is; opened with the gateway unless it is open already. Every method raises what the
    bus raises, ``Forbidden``, ``Limited`` and ``TooLarge``.
    """

    def __init__(self, app: App, limits: Limits = Limits(), backoff: Backoff | None = None) -> None:  # noqa: B008
        self.app, self.limits = app, limits
        self.backoff = backoff or app.backoff
        self.pace = Pace(limits.rate)
        self.streams = 0  # open
        self.counts = Counter[str]()  # published, delivered, gaps, slow: for the operator
        self._stack, self._claims, self._hands = AsyncExitStack(), WeakSet[Claim](), Hands(limits.in_hand)
        self._feeds: Feeds | None = None
        self._requester: Requester | None = None

    async def open(self) -> None:
        if self._feeds is not None:
            raise NotOpen("this gateway is already open", mend="open it once, or make another Gateway")
        if not self.app._buses:
            await self._stack.enter_async_context(self.app.connect())
        self._requester = Requester(self.bus, self.app.name)
        self._feeds = Feeds(self.bus.transport, self.app.name, self.limits, self.counts)

    async def close(self) -> None:
        """End all that is followed, asked and claimed."""
        feeds, requester, self._feeds, self._requester = self._feeds, self._requester, None, None
        await asyncio.gather(*(claim.close() for claim in tuple(self._claims)), return_exceptions=True)
        if feeds is not None and requester is not None:
            await feeds.close()
            await requester.close()
        await self._stack.aclose()

    async def __aenter__(self) -> Gateway:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def opened(self) -> bool:
        return self._feeds is not None

    @property
    def bus(self) -> Bus:
        return self.app._bus("")

    # -- what clients do

    async def publish(self, who: Principal, messages: Sequence[Message[Any]]) -> Sequence[Message[Any]]:
        """Publish drafts; when it returns, the bus has accepted them all. They are returned sealed.

        All or none where the bus has ``publish_atomic``; else ``PublishFailed`` says which were accepted.
        """
        self.admit(who, messages)
        bus = self.bus
        now = bus.clock.now()
        typed = (m if m.type else replace(m, type=m.topic) for m in messages)
        sealed = [seal(message, now=now, source=self.app.name) for message in typed]
        await self.accepted(bus.publish(sealed))
        self.counts["published"] += len(sealed)
        return sealed

    def admit(self, who: Principal, messages: Sequence[Message[Any]]) -> None:
        """Raises what ``publish`` raises before the bus is asked."""
        limits = self.limits
        if len(messages) > limits.messages:
            many = f"{len(messages):,} messages at once"
            raise TooLarge(f"{many} are more than {limits.messages:,}", mend="publish fewer")
        for topic in {message.topic for message in messages}:
            who.need("publish", refuse_reserved(check_topic(topic)))
        judge(messages, limits)
        self.pace.take(who.name, len(messages))

    async def accepted(self, publishing: Awaitable[T]) -> T:
        """What publishing returns. Raises ``BusUnavailable`` when the bus takes too long to accept it."""
        try:
            async with asyncio.timeout(self.limits.accept):
                return await publishing
        except TimeoutError:
            what, why = f"the bus did not accept it within {self.limits.accept:g} s", "it may still accept it"
            raise BusUnavailable(what, why=why, mend="publish it again with the same id") from None

    async def request(
        self,
        who: Principal,
        service: str,
        body: bytes,
        content_type: str,
        timeout: Duration = 30.0,
        headers: Headers = (),
    ) -> AsyncGenerator[Reply, None]:
        """The replies of a service, one or a stream of them. Raises ``NoAnswerer``, ``RequestTimeout``, …

        ``timeout``: until the last reply; ``limits.deadline`` at most.
        """
        who.need("request", refuse_reserved(check_topic(service)))
        self.pace.take(who.name, 1)
        if self._requester is None:
            raise NotOpen("this gateway is not open")
        ask = Message[Any](service, body, content_type=content_type, headers=headers or None)
        within = min(seconds(timeout, "timeout"), self.limits.deadline)
        async for reply in self._requester.replies(ask, Reply, within):
            yield reply

    async def follow(self, who: Principal, pattern: str, after: str | None = None) -> Follower:
        """Copies of what is published from now on, or since the cursor ``after``: at most once, nobody is disturbed."""
        who.need("subscribe", self._readable(pattern))
        if self._feeds is None:
            raise NotOpen("this gateway is not open")
        return await self._feeds.follow(pattern, after)

    async def claim(
        self,
        who: Principal,
        pattern: str,
        group: str,
        *,
        credit: int = 100,
        start: float | None = None,
        ordered: bool = False,
        acknowledge: Duration | None = None,
    ) -> Claim:
        """A share of a durable group: each message until it is acknowledged, once more after a failure, and so on.

        ``credit``: unacknowledged messages at most. ``start``: Unix seconds, for a new group; 0: the first retained.
        ``acknowledge``: how long the client may have a message in hand: a second to ``limits.acknowledge``. Raises
        ``Limited``; ``Forbidden`` for a group of an app that reads another pattern.
        """
        who.need("subscribe", self._readable(pattern))
        who.need("group", refuse_reserved(check_topic(group)))
        await self._refuse_to_narrow(group, pattern)
        limits, most = self.limits, self.limits.acknowledge
        claim = Claim(credit, limits.unacknowledged, self._hands, self.counts)
        patience = most if acknowledge is None else min(most, max(LEAST, seconds(acknowledge, "acknowledge")))
        subscription = Subscription(
            app=self.app.name,
            pattern=pattern,
            group=group,
            start=start,
            ordered=ordered,
            concurrency=max(claim.credit, 1),
            timeout=patience,
        )
        opening = asyncio.ensure_future(claim.open(self.bus, subscription, patience, self.backoff))
        self._claims.add(claim)
        try:
            await asyncio.shield(opening)
        except BaseException:  # whoever leaves meanwhile leaves no member behind
            with suppress(Exception):
                await opening
            await claim.close()
            raise
        return claim

    async def _refuse_to_narrow(self, group: str, pattern: str) -> None:
        """The last to join a group says what it reads: a client may join an app's, and not change what that gets."""
        known = {group_of(r, self.app.name): r.pattern for r in self.app.registrations if not r.live}
        if group not in known and isinstance(bus := self.bus.transport, Inspectable):
            with suppress(Unsupported):
                found = await self.accepted(bus.groups(group))
                known |= {each.name: each.pattern for each in found if each.app != self.app.name and each.pattern}
        if known.get(group, pattern) != pattern:
            what, mend = f"group {group!r} does not read {pattern!r}", f"join it with {known[group]!r}, or name another"
            raise Forbidden(what, why="it is an app's, which would no longer get what it reads", mend=mend)

    def _readable(self, pattern: str) -> str:
        if check_pattern(pattern) != pattern:
            raise Malformed(f"{pattern!r} has captures", mend="write * for a token")
        return pattern if pattern.startswith(DEAD) else refuse_reserved(pattern)
