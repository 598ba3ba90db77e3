"""Messages as the fields of a stream's entry: ``body``, ``content-type``, CloudEvents attributes as ``ce-…``, then the
user's own headers as they are.

A stranger's entry needs none of them. Its body is the field ``body``, else ``data``, else its only field; else the
whole entry is the message, as a JSON object of its fields.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

import msgspec

from tidings.kernel import errors
from tidings.kernel.message import JSON, Message
from tidings.kernel.topics import GROUP, REPLY
from tidings.kernel.transport import Ack, Delivery, Retry, Session, Settlement
from tidings.transports._wire import HEADERS, attributes, copied, counts, instant, pairs, restored, stamp

BODY, DATA, TYPE = b"body", b"data", b"content-type"
ORIGIN = "tdgorigin"  # of a copy: the original's topic and id, by which manage.lua finds it

_WRITTEN = {
    name: f"ce-{name}".encode()
    for name in (
        *("specversion", "id", "source", "type", "time", "partitionkey", "tdgtopic", "tdgpriority", "tdgdeliverytime"),
        *("expirytime", "tdgreplyto", "correlationid", "causationid", "tdgfailures", "tdgcrashes", "tdgaddress"),
        *(HEADERS, ORIGIN),
    )
}
_READ = {written: name for name, written in _WRITTEN.items()}
FIRST = [BODY, TYPE, *(_WRITTEN[name] for name in ("specversion", "id", "source", "type", "time"))]  # in all of ours
_SPEC, _ID, _SOURCE, _TYPE, _TIME = FIRST[2:]
PLAIN = 2 * len(FIRST)

Fields = list[Any]
Copy = tuple[int, int, str]  # failures and crashes, as stored; the origin, '' if not known
Token = tuple[bytes, bytes]  # stream and id
Deliveries = dict[Token, Delivery]
Taken = tuple[bytes, Deliveries, dict[Token, Copy]]  # a stream; what came of it; what of that are copies
Gaps = list[tuple[str, str]]  # of a stream: after which id up to which ('': to its end) a group does not read it

MAX_PAYLOAD, MAX_HEADERS = 16 * 1024 * 1024, 3000  # bytes of a body; a call inside a script has so many arguments
AT_ONCE = 1000  # ids in one such call


def fields(message: Message[Any], told: dict[str, str] | None = None) -> Fields:
    """A message as field, value, field, value …; ``told``: its attributes, if not the usual ones."""
    m = message
    out: Fields = [BODY, m.body, TYPE, m.content_type, _SPEC, "1.0", _ID, m.id, _SOURCE, m.source, _TYPE, m.type]
    out += (_TIME, stamp(m.time))
    if told is None and _is_plain(m):
        return out
    for name, value in list((told or attributes(m)).items())[5:]:
        out += (_WRITTEN[name], value)
    if m.headers and any(name.startswith("ce-") for name, _ in m.headers):
        return [*out, _WRITTEN[HEADERS], pairs(m.headers)]
    for header in m.headers or ():
        out += header
    return out


def _is_plain(m: Message[Any]) -> bool:
    """Whether a message has nothing but what all have."""
    plain = m.key is None and m.address is None and m.headers is None and not m.priority and m.deliver_at is None
    return plain and m.expires_at is None and m.reply_to is None and m.correlation_id is None and m.causation_id is None


def message(topic: str, id: bytes, entry: list[Any]) -> Message[Any]:
    """The message of an entry. A field that comes twice is first ours, then the user's."""
    return messages(topic, [(id, entry)])[0][0]


def messages(topic: str, entries: Iterable[Any]) -> tuple[list[Message[Any]], dict[bytes, Copy]]:
    """The messages of a stream's entries, whose lists are used up; by id what is known of those that are copies.

    All but body, id and time are mostly as in the entry before, and the time is in the same second: what is the same
    is compared, not read again.
    """
    found, copies = list[Message[Any]](), dict[bytes, Copy]()
    common, second, base, told = list[Any](), b"", 0.0, ("", "", "")
    for id, entry in entries:
        if len(entry) == PLAIN:
            body, own, time = entry[1], entry[7], entry[13]
            entry[1] = entry[7] = entry[13] = None
            try:
                if entry != common:
                    told, common = _told(entry), entry
                if time[:20] != second:
                    base, second = _second(time), time[:20]
                if own and len(time) == 28:
                    at = base + int(time[20:27]) / 1e7
                    found.append(Message(topic, body, own.decode(), None, at, *told))
                    continue
            except ValueError:
                common, second = [], b""
            entry = list(entry)
            entry[1], entry[7], entry[13] = body, own, time
        other, copy = _any_message(topic, id.decode(), entry)
        found.append(other)
        if copy is not None:
            copies[id] = copy
    return found, copies


def taken(key: bytes, topic: str, session: Session, entries: Sequence[Any]) -> Taken:
    """Deliveries of a stream's entries."""
    tokens = [(key, id) for id, _ in entries]
    found, copies = messages(topic, entries)
    deliveries = dict(zip(tokens, map(Delivery, found, repeat(session), tokens), strict=True))
    for id, (failures, crashes, _) in copies.items():
        delivery = deliveries[key, id]
        delivery.failures, delivery.crashes = failures, crashes
    return key, deliveries, {(key, id): copy for id, copy in copies.items()}


def _told(entry: list[Any]) -> tuple[str, str, str]:
    """Type, source and content type, of an entry like most of ours. Raises ``ValueError``."""
    _, _, _, kind, *_, source, _, type, _, _ = entry
    if entry[::2] != FIRST:
        raise ValueError("other fields")
    return type.decode(), source.decode(), kind.decode()


def _second(time: bytes) -> float:
    """The second of a stamp as we write it. Raises ``ValueError``."""
    at = instant(time[:20].decode() + "0000000Z")
    if at is None or time[19:20] != b".":
        raise ValueError("another stamp")
    return at


def _any_message(topic: str, id: str, entry: Sequence[bytes]) -> tuple[Message[Any], Copy | None]:
    told: dict[str, str] = {}
    headers: list[tuple[str, str]] = []
    body: bytes | None = None
    content_type: str | None = None
    known = _READ.get
    pairs = iter(entry)
    for field, value in zip(pairs, pairs, strict=True):
        name = known(field)
        if name is not None and name not in told:
            told[name] = str(value, "utf-8", "replace")
        elif field == BODY and body is None:
            body = value
        elif field == TYPE and content_type is None:
            content_type = str(value, "utf-8", "replace")
        else:
            headers.append((str(field, "utf-8", "replace"), str(value, "utf-8", "replace")))
    if body is None:
        body, content_type, headers = _foreign(entry, content_type, headers)
    own = tuple(headers) if headers else None
    position, time = (
        ("", 0.0) if "id" in told and "time" in told else (f"{topic}@{id}", int(id.partition("-")[0]) / 1e3)
    )
    found = restored(topic, body, told, own, content_type or "", position, time)
    return found, (*counts(told), told.get(ORIGIN, "")) if "tdgfailures" in told else None


def _foreign(
    entry: Sequence[bytes], content_type: str | None, headers: list[tuple[str, str]]
) -> tuple[bytes, str, list[tuple[str, str]]]:
    """Body, content type and headers of an entry without ``body``."""
    raw = dict(zip(entry[::2], entry[1::2], strict=True))
    rest = [field for field in raw if field not in _READ and field != TYPE]
    if DATA in raw:
        return raw[DATA], content_type or "", [header for header in headers if header[0] != "data"]
    if len(rest) == 1:
        return raw[rest[0]], content_type or "", []
    if rest:
        return msgspec.json.encode(dict(headers)), content_type or JSON, []
    return b"", content_type or "", []


class Outgoing:
    """Messages as arguments of a script: where to, and what."""

    def __init__(self, key: Callable[[str], str]) -> None:
        self.key = key
        self.places: dict[tuple[str, bool], int] = {}
        self.counts: dict[str, int] = {}
        self.plain = True  # all are for streams, now

    def add(self, message: Message[Any]) -> Fields:
        """The arguments of one message; raises ``TooLarge``."""
        destination = message.address or message.topic
        if len(message.body) > MAX_PAYLOAD or len(message.headers or ()) > MAX_HEADERS:
            what = f"a message to {destination!r} has {len(message.body):,} bytes, {len(message.headers or ())} headers"
            why = f"this bus takes {MAX_PAYLOAD:,} and {MAX_HEADERS:,}"
            raise errors.TooLarge(what, why=why, mend="publish where the data can be found")
        counts, due, asks = self.counts, "", message.reply_to is not None
        counts[destination] = counts.get(destination, 0) + 1
        if message.deliver_at is not None:
            due, self.plain = f"{message.deliver_at:.6f}", False
        if asks or destination[0] == "_":
            self.plain = False
        return self.place(destination, fields(message), due, asks)

    def place(self, destination: str, entry: Fields, due: str, asks: bool = False) -> Fields:
        if destination.startswith(REPLY):
            entry = [msgspec.msgpack.encode([v if isinstance(v, bytes) else v.encode() for v in entry])]
        number = self.places.setdefault((destination, asks), len(self.places) + 1)
        return [number, due, len(entry), *entry]

    def settlement(self, settlement: Settlement, group: str, copy: Copy | None, suspect: bool) -> Fields:
        """The arguments of a settlement: what it publishes, and the copy that comes back. ``copy``: if it is one."""
        delivery, action = settlement.delivery, settlement.action
        args: Fields = []
        for each in settlement.outgoing:
            args += self.add(each)
        count = len(settlement.outgoing)
        if not isinstance(action, Ack):
            m = delivery.message
            stored, _, origin = copy or (0, 0, f"{m.address or m.topic}@{delivery.token[1].decode()}")
            told = copied(m, action.failures if isinstance(action, Retry) else stored, delivery.crashes)
            entry = fields(m, told | {ORIGIN: origin} if origin else told)
            args += self.place(GROUP + group, entry, f"+{action.delay:.6f}" if action.delay > 0 else "")
            count += 1
        return [*delivery.token, "1" if suspect else "", count, *args]

    def head(self) -> Fields:
        """The destinations, which come before."""
        out: Fields = [len(self.places)]
        for destination, asks in self.places:
            out += (destination, self.key(destination), "1" if asks else "")
        return out


def parts(tokens: Iterable[Token]) -> list[list[Any]]:
    """Tokens as arguments of a script: for each stream its key, n, n ids; not too many ids in one."""
    streams = defaultdict[bytes, list[bytes]](list)
    for key, id in tokens:
        streams[key].append(id)
    some = [(key, ids[at : at + AT_ONCE]) for key, ids in streams.items() for at in range(0, len(ids), AT_ONCE)]
    return [[key, len(ids), *ids] for key, ids in some]


def within(id: bytes, gaps: Gaps) -> bool:
    """Whether an entry was added while the group did not read its topic."""
    at = _place(id.decode())
    return any(_place(after) < at and (not upto or at <= _place(upto)) for after, upto in gaps)


def _place(id: str) -> tuple[int, int]:
    ms, _, number = id.partition("-")
    return int(ms), int(number or 0)
