"""What a message, a group and a stream's subjects are in JetStream: frames, names and bounds, without a connection.

A message is its body and headers: CloudEvents attributes as the NATS protocol binding says (``ce-``, values percent-
encoded), and the user's own as they are. Where those cannot travel so (a line break, a leading blank, a reserved name,
one that comes twice), all of that message's are in the attribute ``tdgheaders``.

A group is a durable consumer, or several: a *generation* follows another when the group's pattern changes or it seeks.
The newer says, in its metadata, from which position on it reads; what lies below is drained through the older. All of
them share one consumer of the group's private address, so that what lies there waits behind no topic.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from msgspec import Struct, structs

from tidings.kernel.errors import BusError, TidingsError
from tidings.kernel.message import Headers, Message
from tidings.kernel.topics import GROUP, matches
from tidings.kernel.transport import Delivery, Failure, Session
from tidings.transports._wire import HEADERS, counts, instant, pairs, restored

MQTT, SESSIONS = "$MQTT_msgs", "$MQTT.msgs."  # the server's stream of what devices send with QoS 1, and its subjects

_PLAIN = re.compile(r"(?:[^:\s]+: [!#$&-~]*\r\n)*").fullmatch
_BARE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
_NAME = re.compile(r"(?!nats-|nmqtt-|ce-|tdg-|content-type$)[!#$&'*+\-.^_`|~0-9A-Za-z]+", re.IGNORECASE).fullmatch
_VALUE = re.compile(r"(?:[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?)?").fullmatch


class Frame(NamedTuple):
    """One publication: where it goes, its headers, its body."""

    subject: str
    head: bytes
    body: bytes

    def to(self, reply: str) -> bytes:
        """As it goes over the wire; answers to ``reply``."""
        if not self.head:
            return b"PUB %s %s %d\r\n%s\r\n" % (self.subject.encode(), reply.encode(), len(self.body), self.body)
        length, head = len(self.head), self.head
        sizes = length, length + len(self.body)
        return b"HPUB %s %s %d %d\r\n%s%s\r\n" % (self.subject.encode(), reply.encode(), *sizes, head, self.body)


class Letter(Struct, frozen=True):
    """A message on its way: for whom (an index), where, as what, under which id."""

    index: int
    message: Message[Any]
    to: str
    told: Mapping[str, str]
    key: str
    due: float | None = None
    device: bool = False  # for sessions of MQTT, too

    def copies(self, devices: Sequence[str]) -> Sequence[Letter]:
        """It, and for the sessions of MQTT another: the server makes that of what comes by MQTT only."""
        if not any(matches(pattern, self.to) for pattern in devices):
            return (self,)
        to, key = SESSIONS + self.to, f"{self.key}/mqtt"
        return structs.replace(self, device=True), structs.replace(self, to=to, key=key, device=True)


class Refused(NamedTuple):
    """In the place of an answer: the server will not take it."""

    error: TidingsError
    data: bytes = b""


class Batch:
    """Frames that were sent, and the answers that came."""

    __slots__ = ("answers", "done", "left", "subjects")

    def __init__(self, subjects: Sequence[str], done: asyncio.Future[None]) -> None:
        self.subjects, self.done, self.left = subjects, done, len(subjects)
        self.answers: list[Any] = [None] * len(subjects)

    def answer(self, index: int, answer: Any) -> None:
        if self.answers[index] is None:
            self.answers[index] = answer
            self.left -= 1
            if not self.left:
                self.end()

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


def head(told: Mapping[str, str], content_type: str, headers: Headers | None, native: Mapping[str, str]) -> bytes:
    """A header block: ``native`` ones by their own name, attributes, the user's."""
    lines = [f"{name}: {value}\r\n" for name, value in native.items()]
    lines += [f"ce-{name}: {value}\r\n" for name, value in told.items()]
    if content_type:
        lines.append(f"ce-datacontenttype: {content_type}\r\n")
    text = "".join(lines)
    if not _PLAIN(text) or text.count("\n") != len(lines):  # a value might look like another header
        every = {**native, **{f"ce-{name}": value for name, value in told.items()}}
        every |= {"ce-datacontenttype": content_type} if content_type else {}
        text = "".join(f"{name}: {_schedule(name, value)}\r\n" for name, value in every.items())
    return f"NATS/1.0\r\n{text}{_own(headers) if headers else ''}\r\n".encode()


def _schedule(name: str, value: str) -> str:
    return value if name == "Nats-Schedule" else quote(value, safe=_BARE)  # the server reads "@at ..." as it is


@lru_cache(256)  # of what is bridged, all have the same
def _own(headers: Headers) -> str:
    if len(dict(headers)) == len(headers) and all(_NAME(name) and _VALUE(value) for name, value in headers):
        return "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"ce-{HEADERS}: {quote(pairs(headers), safe=_BARE)}\r\n"


def parsed(block: bytes) -> dict[str, str]:
    """A header block, read as the client reads it, at a fraction of its cost."""
    lines = [line.partition(":") for line in block.decode(errors="replace").split("\r\n")[1:-2]]
    return {name.strip(): value.strip() for name, colon, value in lines if colon}


@lru_cache(1024)
def _attribute(name: str) -> str | None:
    """What a header is called as an attribute; "" for the server's own, None for others."""
    return name[3:].lower() if name[:3] in ("ce-", "Ce-", "CE-") else "" if name[:5] in ("Nats-", "Nmqtt") else None


def opened(
    destination: str, body: bytes, headers: Mapping[str, str] | None, position: str, time: float
) -> tuple[Message[Any], Mapping[str, str]]:
    """A message that arrived, and its attributes. Never raises: what a stranger wrote is taken as far as it goes."""
    told: dict[str, str] = {}
    own: list[tuple[str, str]] = []
    for name, value in (headers or {}).items():
        attribute = _attribute(name)
        if attribute:
            told[attribute] = unquote(value) if "%" in value else value
        elif attribute is None:
            own.append((name, value))
    kind = told.get("datacontenttype", "")
    if not kind and own:
        kind = next((value for name, value in own if name.lower() == "content-type"), "")
    return restored(destination, body, told, tuple(own) or None, kind, position, time), told


def stored_at(answer: Any) -> float | None:
    """When the stream took a message that it gives, in Unix seconds."""
    return instant(answer.headers.get("Nats-Time-Stamp")) if answer is not None and answer.headers else None


# -- subjects


def superset(subject: str, other: str) -> bool:
    """Whether every subject in ``other`` is in ``subject``; both may have wildcards."""
    wide, narrow = subject.split("."), other.split(".")
    if len(narrow) < len(wide) or (len(narrow) > len(wide) and wide[-1] != ">"):
        return False
    return all(w == ">" or w == n or (w == "*" and n != ">") for w, n in zip(wide, narrow, strict=False))


def admitted(pattern: str, destination: str) -> bool:
    """Whether what a filter on ``pattern`` brought is in it: not what is reserved, unless it says so, or MQTT's."""
    return destination[0] not in "_$" or (matches(pattern, destination) and destination[0] != "$")


def widened(subjects: Iterable[str], more: Iterable[str]) -> list[str]:
    """Subjects of a stream with ``more`` in them, none within another: a server refuses those."""
    every = dict.fromkeys([*subjects, *more])
    return [s for s in every if not any(other != s and superset(other, s) for other in every)]


# -- deliveries

V1, START = 9, (2, 4)  # tokens of $JS.ACK[.domain.account].stream.consumer.delivered.position.number.time.pending


class Came(NamedTuple):
    """A message as it came; ``head`` is its header block, or what the client made of it."""

    subject: bytes
    reply: bytes
    body: bytes
    head: bytes | Mapping[str, str] | None


class Claim(Session):
    """What one ``receive`` handed out, when, and is not yet settled, by reply subject."""

    __slots__ = ("deadline", "failures", "marked", "renewed", "taken", "todo")

    def __init__(self, taken: float, deadline: float) -> None:
        super().__init__()
        self.taken, self.deadline = taken, deadline
        self.todo: dict[str, Delivery] = {}
        self.renewed: dict[str, float] = {}
        self.failures: dict[str, int] = {}  # as stored; the kernel adds those in place to its delivery
        self.marked: set[str] = set()

    def end(self, name: str) -> float:
        return self.renewed.get(name, self.deadline)

    def lose(self, names: Iterable[str]) -> None:
        for name in names:
            self.todo.pop(name).session = LOST

    def expire(self, now: float) -> None:
        """What was not renewed is lost."""
        if self.deadline <= now:
            self.lose([name for name in self.todo if self.end(name) <= now])
            self.deadline = min(map(self.end, self.todo), default=math.inf)


LOST = Session()
LOST.alive = False


def place(token: str) -> tuple[str, int, int]:
    """In a reply subject: the consumer, the position in the stream, and the delivery's number of that consumer."""
    parts = token.split(".")
    at = START[len(parts) > V1]
    return parts[at + 1], int(parts[at + 3]), int(parts[at + 4])


def forgotten(token: str, told: Mapping[str, Any], anew: bool, recent: bool) -> bool:
    """Whether a delivery is, or may be, anybody's: its server died before it had written down that it made it.

    ``told``: what each consumer has delivered, by its info, on a server that is ``anew``. Until that has delivered
    something (``last_active``) its numbers tell; after that they may be those of deliveries to others, and only the
    time tells: what was not ``recent`` when the connection was lost had been written down.
    """
    name, position, number = place(token)
    if (delivered := told.get(name)) is None:
        return False
    if position > delivered["stream_seq"]:
        return True
    return anew and (recent if "last_active" in delivered else number > delivered["consumer_seq"])


def fenced(delivery: Delivery, index: int) -> Failure:
    """A settlement that came too late."""
    delivery.session = LOST
    why = "its lease ended, or it was settled"
    return Failure(index, "fenced", BusError(f"{delivery.message.topic!r}: not held any more", why=why))


# -- groups


AGAIN = "@again"  # ends the name of a group's consumer of its private address


def durable(group: str, number: int = 1) -> str:
    """A generation's name as a consumer: ``shop.bill`` is ``shop~bill``, its second generation ``shop~bill@2``."""
    return group.replace(".", "~") + (f"@{number}" if number > 1 else "")


class Generation(Struct):
    """One consumer of a group: it reads ``pattern`` from position ``start`` on. ``again`` reads the private address."""

    name: str
    groups: tuple[str, ...]  # its group, then the names that had before
    app: str
    pattern: str
    number: int
    start: int
    again: str
    info: Any

    @classmethod
    def of(cls, info: Any, prefix: str) -> Generation:
        """From what the server says of a consumer, also of one that somebody else made."""
        told, config = info.config.metadata or {}, info.config
        base, _, number = info.name.partition("@")
        filters = config.filter_subjects or [config.filter_subject or ">"]
        groups = tuple(told.get("tidings-group", base.replace("~", ".")).split())
        topics = [s.removeprefix(prefix) for s in filters if not s.removeprefix(prefix).startswith(GROUP)]
        pattern = told.get("tidings-pattern") or (topics or [">"])[0]
        again, app = told.get("tidings-again") or info.name + AGAIN, told.get("tidings-app", "")
        number = int(number) if number.isdecimal() else 1
        return cls(info.name, groups, app, pattern, number, int(told.get("tidings-start", 0)), again, info)

    @property
    def ours(self) -> bool:
        return "tidings-group" in (self.info.config.metadata or {})

    def check(self, subject: str) -> None:
        """Somebody else's is used as it is, if it can be. Raises ``BusError``."""
        config = self.info.config
        has = config.filter_subjects or [config.filter_subject or ">"]
        if not self.ours and (config.ack_policy != "explicit" or subject not in has):
            why = f"it reads {', '.join(has)} and acknowledges {config.ack_policy}"
            what = f"the consumer {self.name!r} cannot be a group on {subject!r}"
            raise BusError(what, why=why, mend="rename one")


def metadata(groups: Sequence[str], app: str, pattern: str, start: int = 0, again: str = "") -> dict[str, str]:
    """What ``Generation.of`` reads."""
    told = {"tidings-group": " ".join(groups), "tidings-app": app, "tidings-pattern": pattern}
    return told | ({"tidings-start": str(start)} if start else {}) | ({"tidings-again": again} if again else {})


def starting(start: float | None) -> dict[str, Any]:
    """Where a new consumer begins: with what is new, at a time, or with the first."""
    if start:
        return {"deliver_policy": "by_start_time", "opt_start_time": datetime.fromtimestamp(start, UTC)}
    return {"deliver_policy": "new" if start is None else "all"}


class Bounds(Struct, frozen=True):
    """What a generation hands out; all else that its consumer brings is acknowledged unseen."""

    pattern: str
    end: float = float("inf")  # the last message

    def admits(self, destination: str, position: int) -> bool:
        return position <= self.end and admitted(self.pattern, destination)


def private(groups: Sequence[str], prefix: str) -> list[str]:
    """Filters of the consumer that reads a group's private address, also under its former names."""
    return [prefix + GROUP + name for name in groups]


def delivered(came: Came, claim: Claim, prefix: str, bounds: Mapping[str, Bounds]) -> Delivery | None:
    """What a consumer brought; None for what its generation does not hand out."""
    token, block = came.reply.decode(), came.head
    parts = token.split(".")
    at = START[len(parts) > V1]
    position, destination = parts[at + 3], came.subject.decode().removeprefix(prefix)
    bound = bounds.get(parts[at + 1])
    if bound is not None and not bound.admits(destination, int(position)):
        return None
    headers = parsed(block) if isinstance(block, bytes) else block
    message, told = opened(destination, came.body, headers, position, int(parts[at + 5]) / 1e9)
    delivery = Delivery(message, claim, token, suspect=parts[at + 2] != "1")
    if "tdgfailures" in told:
        delivery.failures, delivery.crashes = counts(told)
        claim.failures[token] = delivery.failures
    return delivery
