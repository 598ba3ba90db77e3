"""What travels: messages, their ids, and durations.

A message has three states, one type: a *draft* (made by ``topic(...)``: data, no id, no time) is *sealed* when it is
published (body, id, time: what transports see) and *opened* for handlers that ask for ``Message`` (decoded data).
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from hashlib import blake2b
from itertools import count
from typing import Any, Generic, TypeVar

from msgspec import UNSET, Struct
from msgspec.structs import astuple

from .errors import Duration, InvalidOption

T_co = TypeVar("T_co", covariant=True)

JSON, TEXT, BINARY = "application/json", "text/plain", "application/octet-stream"

Headers = tuple[tuple[str, str], ...]


class Message(Struct, Generic[T_co], frozen=True):
    """An immutable message; attribute names follow CloudEvents where it has one (``docs/wire.md``).

    Times are Unix seconds (wall clock). ``topic`` is the channel a user sees; ``address`` is set only where the message
    travels elsewhere: a group's private address, its dead letters, a request or a reply.
    """

    topic: str
    body: bytes = b""
    id: str = ""
    key: str | None = None
    time: float = 0.0
    type: str = ""
    source: str = ""
    content_type: str = JSON
    headers: Headers | None = None
    priority: int = 0
    deliver_at: float | None = None
    expires_at: float | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    address: str | None = None  # up to here: what is sealed
    data: T_co = UNSET  # type: ignore[assignment]  # sealed messages have none
    delay: float | None = None  # drafts only: becomes deliver_at
    expires: float | None = None  # drafts only: becomes expires_at
    bus: str = ""  # drafts only: which of the app's buses

    def header(self, name: str, default: str = "") -> str:
        """The value of one header, or ``default``."""
        for known, value in self.headers or ():
            if known == name:
                return value
        return default

    @property
    def destination(self) -> str:
        """Where it really goes: its ``address``, or else its topic."""
        return self.address or self.topic


def opened(message: Message[Any], data: Any) -> Message[Any]:
    """A sealed message as handlers see it: the same kind on every transport, with its payload."""
    return Message(*astuple(message)[:16], data=data)  # type: ignore[misc]


class Ids:
    """Unique ids at a tenth of uuid4's cost: 80 random bits per process, then a counter. Renewed after ``fork()``."""

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.prefix = os.urandom(10).hex() + "-"
        self.next = count(1).__next__

    def __call__(self) -> str:
        return self.prefix + str(self.next())


new_id = Ids()


def derived_id(parent: str, group: str, destination: str, ordinal: int) -> str:
    """The id of a handler's ``ordinal``-th output: the same when the handler runs again, so downstream dedup works."""
    return blake2b(f"{parent}\0{group}\0{destination}\0{ordinal}".encode(), digest_size=16).hexdigest()


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def seconds(duration: Duration, name: str = "duration") -> float:
    """A duration in seconds. Raises ``InvalidOption`` for what is none, or is negative."""
    value = -1.0
    if isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, str):
        if duration and not _DURATION.sub("", duration):
            value = sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(duration))
    elif isinstance(duration, int | float) and not isinstance(duration, bool):
        value = float(duration)
    if not 0 <= value < 1e10:
        mend = 'write "250ms", "5s", "1h30m", "2d", or a number of seconds, at least 0'
        raise InvalidOption(f"{name} cannot be {duration!r}", mend=mend)
    return value
