"""Messages beside their bodies: CloudEvents attributes, for transports that carry them as native headers.

A transport adds its binding's prefix (``ce-``, ``ce_``, ``cloudEvents:``) and puts ``datacontenttype`` where the
binding wants it. The user's own headers travel as they are; where one of them would be taken for something else, all of
that message's travel in the attribute ``tdgheaders``. ``docs/wire.md`` says what each attribute means.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from tidings.kernel.message import JSON, Headers, Message

HEADERS = "tdgheaders"

FIRST, LAST = -62_135_596_800.0, 253_402_300_799.0  # the years 1 to 9999


def attributes(message: Message[Any]) -> dict[str, str]:
    """A sealed message's attributes, without ``datacontenttype``, which each binding has its own place for."""
    m = message
    told = {"specversion": "1.0", "id": m.id, "source": m.source, "type": m.type, "time": stamp(m.time)}
    if m.key is not None:
        told["partitionkey"] = m.key
    if m.address is not None:
        told["tdgtopic"] = m.topic
    if m.priority:
        told["tdgpriority"] = str(m.priority)
    if m.deliver_at is not None:
        told["tdgdeliverytime"] = stamp(m.deliver_at)
    if m.expires_at is not None:
        told["expirytime"] = stamp(m.expires_at)
    if m.reply_to is not None:
        told["tdgreplyto"] = m.reply_to
    if m.correlation_id is not None:
        told["correlationid"] = m.correlation_id
    if m.causation_id is not None:
        told["causationid"] = m.causation_id
    return told


def copied(message: Message[Any], failures: int, crashes: int) -> dict[str, str]:
    """Attributes of a copy that goes back to its group's private address: what it was, and its counts."""
    told = attributes(message)
    told.update(tdgtopic=message.topic, tdgfailures=str(failures), tdgcrashes=str(crashes))
    if message.address is not None:
        told["tdgaddress"] = message.address
    return told


def pairs(headers: Headers) -> str:
    """Headers as an attribute: a JSON array of [name, value] pairs."""
    return msgspec.json.encode(headers).decode()


def unpaired(text: str) -> Headers | None:
    """The headers in such an attribute; None for anything else."""
    try:
        return tuple(_pairs(text))
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None


def restored(
    destination: str,
    body: bytes,
    told: Mapping[str, str],
    headers: Headers | None = None,
    content_type: str = "",
    position: str = "",
    time: float = 0.0,
) -> Message[Any]:
    """The message that arrived at ``destination``. Never raises: what a stranger wrote into an attribute is ignored.

    ``position`` is the id of a message without one, ``time`` (Unix seconds) its time: both the broker's.
    """
    get = told.get
    topic = get("tdgtopic") or destination
    address = get("tdgaddress") if "tdgfailures" in told else destination if topic != destination else None
    priority, sent = get("tdgpriority"), get("time")
    if HEADERS in told:
        headers = unpaired(told[HEADERS]) or headers
    return Message(
        topic,
        body,
        get("id") or position,
        get("partitionkey"),
        (instant(sent) if sent else None) or time,
        get("type") or topic,
        get("source") or "",
        content_type,
        headers,
        int(priority) if priority and priority in "0123456789" else 0,
        instant(get("tdgdeliverytime")),
        instant(get("expirytime")),
        get("tdgreplyto"),
        get("correlationid"),
        get("causationid"),
        address,
    )


def counts(told: Mapping[str, str]) -> tuple[int, int]:
    """The failures and crashes of a copy; zeros for anything else."""
    failures, crashes = told.get("tdgfailures", ""), told.get("tdgcrashes", "")
    return (int(failures) if failures.isdecimal() else 0), (int(crashes) if crashes.isdecimal() else 0)


def data(message: Message[Any]) -> dict[str, Any]:
    """The body under its CloudEvents name: ``data`` for JSON and text, else ``data_base64``."""
    kind = message.content_type.partition(";")[0].strip().lower()
    if not message.body:
        return {}
    if kind in ("", JSON, "text/json") or kind.endswith("+json"):
        try:
            msgspec.json.decode(message.body)
            return {"data": msgspec.Raw(message.body)}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            kind = kind or "text/plain"
    if kind.startswith("text/"):
        try:
            return {"data": message.body.decode()}
        except UnicodeDecodeError:
            pass
    return {"data_base64": base64.b64encode(message.body).decode()}


def stamp(time: float) -> str:
    """Unix seconds as RFC 3339, to the tenth of a microsecond: just what a float of this century can hold."""
    try:
        whole, fraction = divmod(time, 1.0)
        tenths = round(fraction * 1e7)
        return f"{_second(int(whole) + tenths // 10_000_000)}.{tenths % 10_000_000:07d}Z"
    except (ValueError, OverflowError):  # what RFC 3339 cannot say: its first or last second
        return stamp(min(LAST, max(FIRST, time)))


def instant(text: str | None) -> float | None:
    """RFC 3339 as Unix seconds; None for anything else."""
    if not text:
        return None
    try:
        if len(text) == 28 and text[19] == "." and text[27] == "Z":  # as ``stamp`` writes it
            return _unix(text[:19]) + int(text[20:27]) / 1e7
        parsed = datetime.fromisoformat(text)
        at = parsed.timestamp() if parsed.tzinfo else parsed.replace(tzinfo=UTC).timestamp()
        return at if FIRST <= at <= LAST else None
    except (ValueError, OverflowError):
        return None


_pairs = msgspec.json.Decoder(list[tuple[str, str]]).decode


@lru_cache(256)
def _second(whole: int) -> str:
    return datetime.fromtimestamp(whole, UTC).isoformat()[:19]  # strftime writes years before 1000 in fewer digits


@lru_cache(256)
def _unix(text: str) -> int:
    return int(datetime.fromisoformat(text + "+00:00").timestamp())
