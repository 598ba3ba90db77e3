"""EIP: Messaging Bridge. What is published on one bus of an app is published on another one too."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import uuid
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from tidings.app import App
from tidings.channels import Topic
from tidings.kernel.bus import MARGIN
from tidings.kernel.codec import refuse_large
from tidings.kernel.dead import original_headers
from tidings.kernel.errors import BusError, InvalidName, InvalidOption, Reject, TidingsError, nearest, text_of
from tidings.kernel.handler import Many, One, Outcome
from tidings.kernel.message import Headers, Message
from tidings.kernel.outcome import Backoff
from tidings.kernel.topics import check_pattern, check_topic, refuse_reserved
from tidings.kernel.transport import Delivery, Failure, Transport

from ._pattern import describe

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tidings._decorators import Durable

log = logging.getLogger("tidings")

HEADER = "bridge"  # the buses a message has been on, each as a digest, the first first
HOPS = 8  # buses
BATCH, CONCURRENCY = 500, 4  # some are published while others are received and settled
AGAIN, AGAIN_MOST = 0.2, 5.0  # seconds between tries while the other bus takes nothing
PATIENT = Backoff(attempts=10**9)  # the other bus may be away for days: that says nothing about a message
LOCAL = re.compile(r"path=|Memory\(|localhost|127\.0\.0\.1|::1")  # options of what only this machine can reach


def bridge(
    app: App,
    pattern: Topic[Any] | str,
    /,
    *,
    to: str,
    source: str = "",
    rename: Callable[[str], str] | None = None,
    both: bool = False,
    **options: Unpack[Durable],
) -> None:
    """Publish on the bus ``to`` what is published on the bus ``source``, for topics that match ``pattern`` (a topic
    brings its own bus as ``source``); ``both``: the other way too. EIP: Messaging Bridge.

    Body, key, id, time, type, source, headers, content type, expiry and correlation stay, so a receiver knows a
    message again that comes twice. Its priority stays where ``to`` has priorities. ``rename``: from topic to topic.

    A bridge is a durable group (``group``, default ``"<app>.bridge-<source>-<to>"``; the way back adds ``-back``): it
    goes on where it stopped, and nothing is lost, also by ``kill -9``; what was on its way then comes again, with the
    same id. While ``to`` is away it waits, for as long as that takes. What ``to`` refuses (too large) is a dead letter
    of the group. Order per key is kept in one process; ``ordered=True`` keeps it over several and through a crash.

    The header ``bridge`` lists the buses a message has been on: it is not sent to one of those, and one that has been
    on 8 is a dead letter. A bus is known by its options: apps that open it with others get a message back at most so
    often, with the same id. ``options``: as in ``app.on``.

    Raises ``InvalidName`` and ``InvalidOption``; what the bus ``source`` cannot do is refused at start-up.
    """
    name = pattern if isinstance(pattern, str) else pattern.template
    source = source if isinstance(pattern, str) else pattern.bus
    refuse_reserved(check_pattern(name))
    if "bus" in options:
        raise InvalidOption("a bridge has two buses", mend="source=..., to=...")
    _refuse(app, source, to, rename, both)
    group = options.pop("group", "") or f"{app.name}.bridge-{source or 'default'}-{to or 'default'}"
    for here, there, full in ((source, to, group), (to, source, f"{group}-back"))[: 1 + both]:

        async def carried(bodies: list[bytes]) -> None:
            """Never called: what comes is carried by the way."""

        way, known = _Way(app, here, there, rename), () if rename else (Topic(name, bus=there),)
        told: Durable = {"backoff": PATIENT, "breaker": None, "concurrency": CONCURRENCY, **options}
        told["bus"], told["group"], told["middleware"] = here, full, (*options.get("middleware", ()), way)
        app.on(name, batch=BATCH, **told)(describe(carried, "messaging bridge", publishes=known))


def _refuse(app: App, source: str, to: str, rename: Any, both: bool) -> None:
    for name in (source, to):
        if name not in app.urls:
            mend = nearest(name, app.urls) or f"App({app.name!r}, ..., {name}=url)"
            raise InvalidName(f"{app.name!r} has no bus {name!r}", mend=mend)
    if source == to:
        raise InvalidOption("a bridge needs two buses", mend="on one bus, a handler that returns messages does it")
    if rename is not None and (both or not callable(rename)):
        what = "rename= is a function from topic to topic, one way"
        raise InvalidOption(what, mend="write a bridge for each way, with rename=lambda topic: f'edge.{topic}'")


class _Way:
    """One way of a bridge: the innermost middleware of its handler, which it does not call.

    There it has the messages as they came, so that none is decoded and made anew. What comes is handed on at once; what
    the other bus does not take waits here, and what is behind it, of its key too, waits with it.
    """

    def __init__(self, app: App, source: str, to: str, rename: Callable[[str], str] | None) -> None:
        self.app, self.source, self.to = app, source, to
        self.named = rename and lru_cache(4096)(lambda topic: refuse_reserved(check_topic(rename(topic))))
        self.hop = lru_cache(1024)(lambda been, here: ((HEADER, f"{been} {here}".lstrip()),))

    def __call__(self, one: One) -> One:
        return one

    def many(self, many: Many) -> Many:
        return self.carry

    async def carry(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        to, here, there = self.app.bus(self.to), _place(self.app, self.source), _place(self.app, self.to)
        limit, urgent = to.capabilities.max_payload - MARGIN, to.capabilities.priority != "unavailable"
        outcomes: list[Outcome] = [()] * len(deliveries)
        copies: dict[int, Message[Any]] = {}
        for index, delivery in enumerate(deliveries):
            message = delivery.message
            been = message.header(HEADER) if message.headers else ""
            if been and there in been:
                continue
            try:
                if been.count(" ") + 2 > HOPS:
                    raise Reject(f"it has been on {HOPS} buses: do bridges form a ring?")
                if len(message.body) > limit:
                    refuse_large(message, limit)
                topic = self.named(message.topic) if self.named else message.topic
                copies[index] = _copy(message, topic, self.hop(been, here), message.priority if urgent else 0)
            except Exception as error:
                outcomes[index] = Reject(f"{message.topic}: {text_of(error)}")
        for index, refusal in (await _published(to, copies)).items():
            outcomes[index] = refusal
        return outcomes


def _copy(m: Message[Any], topic: str, hop: Headers, priority: int) -> Message[Any]:
    """What travels stays; what belongs to a delivery (its address, when it was due) does not."""
    headers = hop
    if m.headers:
        headers = (*(header for header in original_headers(m.headers) or () if header[0] != HEADER), *hop)
    about = m.id, m.key, m.time, m.type, m.source, m.content_type
    ways = m.expires_at, m.reply_to, m.correlation_id, m.causation_id
    return Message(topic, m.body, *about, headers, priority, None, *ways)


async def _published(to: Transport, copies: dict[int, Message[Any]]) -> dict[int, Reject]:
    """Publish all, however long that takes; those that are refused for what they are, with why."""
    indices, failures = list(copies), await _tried(to, list(copies.values()))
    refused: dict[int, Reject] = {}
    for failure in failures:
        error: BaseException | None = failure.error
        if len(copies) > 1 or not _final(
            failure.error
        ):  # alone it may go, and only alone it says what is wrong with it
            error = await _alone(to, copies[indices[failure.index]])
        if error is not None:
            refused[indices[failure.index]] = Reject(text_of(error))
    return refused


async def _alone(to: Transport, copy: Message[Any]) -> BaseException | None:
    """Publish one, however long that takes: those behind it, of its key too, wait. Or why it never can be."""
    pause = AGAIN
    while failures := await _tried(to, [copy]):
        if _final(error := failures[0].error):
            return error
        log.warning("a bridge cannot publish, trying again: %s", error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, AGAIN_MOST)
    return None


async def _tried(to: Transport, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
    try:
        return await to.publish(messages) if messages else ()
    except BusError as error:
        return [Failure(index, "unknown", error) for index in range(len(messages))]


def _final(error: BaseException) -> bool:
    """Whether it is the message's fault, and not the bus's."""
    return isinstance(error, TidingsError) and not isinstance(error, BusError)


def _place(app: App, bus: str) -> str:
    """A bus, by a digest of its options, in which no password shows; of this machine, if no other can reach it."""
    transport = app.bus(bus)
    about = [repr(getattr(transport, "options", app.urls[bus]))]
    if LOCAL.search(about[0]):
        about.append(_here())
    if about[0].startswith("Memory(name=''"):
        about += [str(os.getpid()), str(id(transport))]
    return blake2b("\0".join(about).encode(), digest_size=6).hexdigest()


@cache
def _here() -> str:
    return f"{socket.gethostname()} {uuid.getnode()} {os.getcwd()}"
