"""What a message looks like in AMQP: CloudEvents attributes in its headers, beside the user's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from time import time as wall
from typing import Any

from msgspec import Struct

from tidings.kernel import errors
from tidings.kernel.message import Headers as Pairs
from tidings.kernel.message import Message, new_id
from tidings.kernel.topics import DEAD, GROUP, INTERNAL, REPLY, REQUEST, TICK
from tidings.kernel.transport import Delivery, Failure
from tidings.transports._wire import HEADERS, pairs, restored

from .channel import ChannelLost, Content, Headers, encoded

PREFIX = "cloudEvents:"
PREFIXES = (PREFIX, "cloudEvents_", "ce-")  # the AMQP binding allows two; the SDK's RabbitMQ binding writes the third
LEVEL, MARK = "tdgdelay", "tdgmarked"  # headers between us: where a delayed message stops; a suspect that had started
# no user's header begins so
BROKERS = ("x-first-death-", "x-last-death-", "x-stream-", "x-delivery-", "x-acquired-", LEVEL, MARK)
MEANT = {"CC", "BCC", "x-death"}  # headers that RabbitMQ routes by, or writes
RESERVED = (GROUP, DEAD, REQUEST, REPLY, TICK, INTERNAL)
LONGEST_TTL = 2**32 - 1  # milliseconds


class Sending(Struct, frozen=True, gc=False):
    """A message to be published; with ``counted`` (failures, crashes) as a copy ``to`` a private address."""

    message: Message[Any]
    to: str = ""
    counted: tuple[int, int] | None = None
    delay: float = 0.0  # seconds; of a copy


def words(pattern: str) -> str:
    """A pattern as a binding key: AMQP's ``#`` is zero words or more."""
    return pattern[:-1] + "*.#" if pattern.endswith(">") else pattern


def properties(message: Message[Any], told: Mapping[str, str], extra: Headers = (), *, id: str = "") -> bytes:
    """A message's properties; it expires by itself only when nobody would wait for it any longer.

    Raises ``InvalidOption`` for what cannot travel.
    """
    headers = [(PREFIX + name, value) for name, value in told.items()]
    if (own := message.headers) and not _travel(own):
        headers.append((PREFIX + HEADERS, pairs(own)))
    else:
        headers += own or ()
    headers += extra
    id = id or (message.id if len(message.id) <= 60 else "")
    expiration = ""
    if message.reply_to is not None and message.expires_at is not None and not extra:
        expiration = str(min(max(1, math.ceil((message.expires_at - wall()) * 1000)), LONGEST_TTL))
    try:
        return encoded(message.content_type, headers, id, message.time, message.priority, expiration)
    except OverflowError:
        raise errors.InvalidOption("the content type is longer than 255 bytes", mend="shorten it") from None


def _travel(headers: Pairs) -> bool:
    """Whether a user's headers can be AMQP's: of other names than those that mean something, short, each once."""
    names = {name for name, _ in headers}
    if not names.isdisjoint(MEANT) or len(names) < len(headers):
        return False
    return not any(name.startswith((*PREFIXES, *BROKERS)) or len(name.encode()) > 255 for name in names)


def opened(content: Content, topic: str = "") -> tuple[Message[Any], dict[str, str]]:
    """The message that came, and its attributes. ``topic``: of one from an exchange that is not ours."""
    told, headers = dict[str, str](), list[tuple[str, str]]()
    properties = content.properties
    for name, value in (properties.headers or {}).items():
        if type(value) is not str:
            if isinstance(value, list | dict | datetime | bytes | type(None)):
                continue
            value = str(value)
        if name.startswith(PREFIXES):
            told[name[3:] if name.startswith("ce-") else name[12:]] = value
        elif not name.startswith(BROKERS):
            headers.append((name, value))
    sent, destination = properties.timestamp, topic or content.method.routing_key or ""
    time = sent.timestamp() if sent is not None else wall()
    position = properties.message_id or ("" if "id" in told else new_id())
    content_type = properties.content_type or ""
    message = restored(destination, content.body, told, tuple(headers) or None, content_type, position, time)
    return message, told


def refused(lost: ChannelLost, what: str) -> errors.TidingsError:
    """What the broker says about a method, as an error of ours."""
    if lost.code == 403:
        mend = "give the user configure, write and read on what begins with the namespace, and write on amq.default"
        return errors.BusUnavailable(f"RabbitMQ refuses {what}", why=lost.text, mend=mend)
    if lost.code == 404:
        return errors.NotFound(f"RabbitMQ does not know {what}", why=lost.text, mend="create it, or correct its name")
    if lost.code in (405, 406):
        mend = "delete it, or name it: exchange= and queues= take what is there as it is; namespace= goes elsewhere"
        return errors.InvalidOption(f"{what} exists with other settings", why=lost.text, mend=mend)
    return errors.BusUnavailable(f"RabbitMQ could not do {what}", why=str(lost))


def fenced(index: int, delivery: Delivery) -> Failure:
    what = f"{delivery.message.topic!r}: not held any more"
    return Failure(index, "fenced", errors.BusError(what, why="its connection was lost, or it was settled"))
