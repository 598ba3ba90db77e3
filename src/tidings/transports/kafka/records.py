"""Records and messages: CloudEvents in Kafka's binary mode (``ce_`` headers and ``content-type``), and names.

A topic's name is its name in Kafka, behind the namespace. Kafka allows no ``%``: it is written ``-Z`` (and a ``-Z`` of
one's own ``-_Z``). Replies share one topic, ``_reply``, in the partition of their address.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from math import isfinite
from typing import Any
from zlib import crc32

from confluent_kafka import Message as Raw
from msgspec import Struct

from tidings.kernel.message import Message
from tidings.kernel.topics import REPLY
from tidings.transports._wire import HEADERS, attributes, counts, instant, pairs, restored, stamp

DELAYED, STATE, MOVER, WRITER = "_tidings.delayed.", "_tidings.state", "_tidings.mover", "_tidings.settle."
REPLIES = REPLY.rstrip(".")
FACTOR = 4  # each level of delays is so many times the one before: 0, 1, 4, 16 ... seconds

USUAL = ("ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time")

Place = tuple[str, int]
"""A topic, as Kafka knows it, and a partition."""

Headers = list[tuple[str, str | bytes | None]] | dict[str, str | bytes | None]
"""As the client takes them; a dict of texts is nothing that the garbage collector looks into."""


_stamp = lru_cache(16)(stamp)  # what is published together has the same time


@lru_cache(64)
def _second(text: bytes) -> float | None:
    """Unix seconds of a time up to its point."""
    return instant(text.decode("utf-8", "replace") + "0000000Z")


def _instant(sent: bytes) -> float | None:
    """``instant``, faster for what ``stamp`` wrote."""
    part, usual = sent[20:27], len(sent) == 28 and sent[19:20] == b"." and sent[27:] == b"Z"
    if usual and part.isdigit() and (whole := _second(sent[:20])) is not None:
        return whole + int(part) / 1e7
    return instant(sent.decode("utf-8", "replace"))


@lru_cache(256)
def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "replace")


class Record(Struct, frozen=True, gc=False):
    """What is produced. ``partition`` -1: by key."""

    topic: str
    value: bytes | None
    key: str | bytes | None
    headers: Headers
    partition: int = -1


class Names:
    """Our names and Kafka's, in one namespace."""

    def __init__(self, namespace: str) -> None:
        self.prefix = f"{namespace}." if namespace else ""
        self.known: dict[str, str] = {}

    def topic(self, destination: str) -> str:
        """The Kafka topic of a destination."""
        found = self.known.get(destination)
        if found is None:
            name = REPLIES if destination.startswith(REPLY) else destination
            found = self.prefix + re.sub("-(_*)Z", r"-_\1Z", name).replace("%", "-Z")
            if not destination.startswith(REPLY):
                self.known[destination] = found
        return found

    def destination(self, topic: str) -> str | None:
        """What a Kafka topic is called here; None: it is not of this namespace."""
        if not topic.startswith(self.prefix) or topic.startswith("__"):
            return None
        name = topic[len(self.prefix) :]
        return re.sub("-(_*)Z", lambda found: f"-{found[1][1:]}Z" if found[1] else "%", name) if "-" in name else name

    def group(self, name: str) -> str:
        return self.prefix + name


def share(address: str, partitions: int) -> int:
    """The partition of a reply's address."""
    return crc32(address.encode()) % partitions


def level(delay: float) -> int:
    """The longest level that is no longer than a delay; 0 below a second."""
    longest = 0
    while (longer := longest * FACTOR or 1) <= delay:
        longest = longer
    return longest


def headers_of(message: Message[Any], told: Mapping[str, str] | None = None) -> Headers:
    """A message's headers; ``told``: the attributes, where they are not its own."""
    m: Any = message
    if told is not None or m.priority or not m.deliver_at is m.expires_at is m.reply_to is m.address is None:
        own: dict[str, str | bytes | None] = {f"ce_{name}": value for name, value in (told or attributes(m)).items()}
    else:  # what is usual, at a third of the cost
        at = _stamp(m.time)
        own = {"ce_specversion": "1.0", "ce_id": m.id, "ce_source": m.source, "ce_type": m.type, "ce_time": at}
        if m.key is not None:
            own["ce_partitionkey"] = m.key
        if m.correlation_id is not None:
            own["ce_correlationid"] = m.correlation_id
        if m.causation_id is not None:
            own["ce_causationid"] = m.causation_id
    if m.content_type:
        own["content-type"] = m.content_type
    if not m.headers:
        return own
    if any(name.startswith("ce_") or name == "content-type" for name, _ in m.headers):
        return own | {f"ce_{HEADERS}": pairs(m.headers)}
    return [*own.items(), *m.headers]


def record(names: Names, message: Message[Any], partitions: Mapping[str, int], turn: int) -> Record:
    """A sealed message as it is produced. Without a key it goes where it is whose ``turn``."""
    to = message.address or message.topic
    topic = names.known.get(to) or names.topic(to)
    if message.address is not None and to.startswith(REPLY):
        told = attributes(message) | {"tdgaddress": to}
        return Record(topic, message.body, to, headers_of(message, told), share(to, partitions.get(topic, 1)))
    partition = turn % partitions[topic] if message.key is None else -1
    return Record(topic, message.body, message.key, headers_of(message), partition)


def delayed(names: Names, to: Record, due: float, now: float) -> Record:
    """A record on its way to where it belongs, by way of a level of delays."""
    own = to.headers.items() if isinstance(to.headers, dict) else to.headers
    headers: Headers = [("tdgto", to.topic), ("tdgdue", repr(due)), *own]
    return Record(names.topic(f"{DELAYED}{level(due - now)}"), to.value, to.key, headers)


def undelayed(raw: Raw[Any, Any]) -> tuple[Record, float]:
    """What ``delayed`` wrapped, and when it is due. Raises ``ValueError`` for anything else."""
    headers: Any = raw.headers() or []
    if [name for name, _ in headers[:2]] != ["tdgto", "tdgdue"]:
        raise ValueError("its headers do not begin with tdgto and tdgdue")
    to, due = ((value or b"").decode() for _, value in headers[:2])
    if not isfinite(at := float(due)):
        raise ValueError(f"it is due at {due}")
    return Record(to, raw.value(), raw.key(), headers[2:]), at


class Opened(Struct):
    """A record that was read."""

    message: Message[Any]
    failures: int = 0
    crashes: int = 0
    suspect: bool = False


def opened(destination: str, raw: Raw[Any, Any]) -> Opened:
    """The message in a record. Never raises: what a stranger wrote is taken as it is."""
    found = lean(destination, raw)
    return found if isinstance(found, Opened) else Opened(found)


def lean(destination: str, raw: Raw[Any, Any]) -> Message[Any] | Opened:
    """What ``opened`` finds; a message alone if nothing is told beside it."""
    found: Any = raw.headers() or ()
    try:
        message = _usual(destination, raw, found) if len(found) > 4 else None
    except (AttributeError, TypeError, UnicodeDecodeError):  # a value that is none, or no text
        message = None
    return message or _strange(destination, raw, found)


def _usual(destination: str, raw: Any, found: list[tuple[str, bytes]]) -> Message[Any] | None:
    """The message of a record with the usual attributes in the order in which we write them: a third of the work."""
    (first, _), (second, id), (third, source), (fourth, kind), (fifth, sent), *rest = found
    if (first, second, third, fourth, fifth) != USUAL or (time := _instant(sent)) is None:
        return None
    key, content_type, own = raw.key(), "", None
    if key is not None:
        name, value = rest.pop(0) if rest else ("", b"")
        if name != "ce_partitionkey":
            return None
        key = value.decode()
    if rest and rest[0][0] == "content-type":
        content_type = _decoded(rest.pop(0)[1])
    if rest:
        if any(name.startswith("ce_") for name, _ in rest):
            return None
        own = tuple([(name, value.decode()) for name, value in rest])
    return Message(
        destination,
        raw.value() or b"",
        id.decode(),
        key,
        time,
        _decoded(kind) or destination,
        _decoded(source),
        content_type,
        own,
    )


def _strange(destination: str, raw: Raw[Any, Any], found: Any) -> Opened:
    """What has other attributes than the usual ones, or in another order."""
    told: dict[str, str] = {}
    own: list[tuple[str, str]] = []
    content_type: str | None = None
    for name, value in found:
        text = value.decode("utf-8", "replace") if value else ""
        if name.startswith("ce_") and name[3:] not in told:
            told[name[3:]] = text
        elif name == "content-type" and content_type is None:
            content_type = text
        else:
            own.append((name, text))
    key: Any = raw.key()
    body: Any = raw.value() or b""
    if key is not None and "partitionkey" not in told and "tdgaddress" not in told:
        told["partitionkey"] = _text(key)
    if destination == REPLIES:
        destination = told.pop("tdgaddress", destination)
    where = "" if "id" in told else f"{raw.topic()}/{raw.partition()}/{raw.offset()}"
    time = 0.0 if "time" in told else max(0, raw.timestamp()[1]) / 1000
    message = restored(destination, body, told, tuple(own) or None, content_type or "", where, time)
    if "tdgfailures" not in told:
        return Opened(message)
    return Opened(message, *counts(told), "tdgsuspect" in told)


def _text(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key.hex()
