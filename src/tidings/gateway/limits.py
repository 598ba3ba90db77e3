"""How much a client may ask for. Everything that a client can make grow has a bound here."""

from __future__ import annotations

import time
from collections import OrderedDict

from msgspec import Struct

from .refusals import Limited

KNOWN = 100_000  # clients whose rate is remembered


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of a gateway; bytes, seconds, counts."""

    body: int = 1024 * 1024  # of one message
    batch: int = 16 * 1024 * 1024  # of all that one call publishes
    messages: int = 10_000  # that one call publishes
    intake: int = 256 * 1024 * 1024  # of all request bodies that are being read and published
    rate: float = 0.0  # messages published per second by one client, twice as many at once; 0: any
    connections: int = 10_000  # open streams: events, WebSocket, gRPC
    subscriptions: int = 100  # of one connection
    unacknowledged: int = 1_000  # messages of one subscription that a client has in hand
    in_hand: int = 100_000  # that all clients together have in hand
    window: int = 1_000  # messages of a pattern that are kept for those who follow it
    heartbeat: float = 15.0  # between signs of life
    patience: float = 30.0  # that a client may take to read what was written, to answer a sign of life
    accept: float = 10.0  # that the bus may take to accept what is published
    deadline: float = 300.0  # that a request may wait for its reply
    acknowledge: float = 60.0  # that a client may have a message in hand


class Pace:
    """A token bucket a client; those not seen for longest are forgotten."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.known: OrderedDict[str, tuple[float, float]] = OrderedDict()  # name -> tokens left, and when

    def take(self, name: str, count: int) -> None:
        """Raises ``Limited`` unless the client may publish so many now. More than the bucket holds may go when full."""
        if not self.rate:
            return
        now, room = time.monotonic(), 2 * self.rate
        left, at = self.known.pop(name, (room, now))
        left = min(room, left + (now - at) * self.rate)
        self.known[name] = (left, now)
        if len(self.known) > KNOWN:
            self.known.popitem(last=False)
        if left < min(count, room):
            error = Limited(f"{name!r} publishes more than {self.rate:g} messages a second")
            error.after = (min(count, room) - left) / self.rate
            raise error
        self.known[name] = (left - count, now)
