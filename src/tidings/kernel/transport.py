"""The service provider interface: all that a transport is, on one page.

A transport moves sealed messages and keeps count of what its groups have settled. It decides nothing: what a failure
means is decided in ``outcome.py`` and reaches it as a ``Settlement``. Rules every transport keeps:

- ``receive`` is never cancelled by the kernel; ``stop`` ends it, and it then returns ``()``. ``settle`` works after
  ``stop``.
- A settlement publishes its ``outgoing``, then settles its input; in one transaction where ``atomic_settle``.
- A settlement of a lost session does nothing and is reported as a ``fenced`` failure; its neighbours are not touched.
- Patterns: ``*`` is one token, a last ``>`` one or more; a pattern whose first token is a wildcard matches no reserved
  topic.
- What is matched is ``message.destination``. A group also receives its private address ``_group.<group>``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from msgspec import Struct

from .message import Message

Level = Literal["native", "emulated", "unavailable"]


class Capabilities(Struct, frozen=True, kw_only=True):
    """What a transport can do, as values; final after ``open``. Seconds and bytes; ``None`` is no limit."""

    durable: Literal["power", "process", "none"]  # what an accepted message survives
    ordering: Literal["total", "key", "none"]  # of one topic's messages within a group, without failures
    ordered: Level = "unavailable"  # key order across a group's processes, also through failures
    delay: Level = "unavailable"
    delay_max: float | None = None
    delay_resolution: float = 0.0
    lease: Literal["timer", "connection", "assignment", "none"] = "none"
    fence: Literal["native", "scripted", "none"] = "none"
    crash_count: Level = "unavailable"
    start: Level = "unavailable"
    replay: Level = "unavailable"
    dedup: float | None = 0.0  # window within which the same id is stored once; 0 = not at all
    priority: Level = "unavailable"
    expiry: Level = "unavailable"
    wildcards: Level = "unavailable"
    atomic_settle: bool = False
    publish_atomic: bool = False
    peek: Level = "unavailable"
    provision: Level = "unavailable"
    stable_id: bool = False
    max_payload: int = 16 * 1024 * 1024
    request: Level = "unavailable"


class Event(Struct, frozen=True):
    """Something that happened to a transport, told by ``notify``."""

    kind: Literal["connected", "lost", "fenced", "dropped", "unrouted", "recovered", "clock", "retention", "wal"]
    count: int = 1
    detail: str = ""


class Subscription(Struct, frozen=True, kw_only=True):
    """What a consumer asks for. ``group=None`` is a live subscription: no group, no settlement, at most once."""

    app: str
    pattern: str
    group: str | None = None
    start: float | None = None  # Unix seconds; 0: the first retained; None: new messages. For a group's first time
    ordered: bool = False
    concurrency: int = 16
    timeout: float = 3600.0


class Session:
    """One ownership of deliveries: a lease, a connection, an assignment. Once not ``alive``, never again."""

    __slots__ = ("alive",)

    def __init__(self) -> None:
        self.alive = True


class Delivery(Struct, gc=False):
    """One message in one group's hands. ``failures`` and ``crashes`` are ours, never a broker's delivery count.

    The garbage collector does not look into it (that cost a tenth of the loop): a session or token must not refer to
    it for longer than its consumer is open.
    """

    message: Message[Any]
    session: Session
    token: Any = None  # the transport's own
    failures: int = 0
    crashes: int = 0
    suspect: bool = False  # its last holder died without settling it
    arrived: int = 0  # its number in its worker's hands

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self.failures + self.crashes + 1


class Ack(Struct, frozen=True):
    """Done."""


class Release(Struct, frozen=True):
    """Back to the group after ``delay`` seconds; counts nothing, and clears ``suspect``."""

    delay: float = 0.0


class Retry(Struct, frozen=True):
    """Back to the group after ``delay`` seconds, with the absolute number of ``failures``; clears ``suspect``."""

    delay: float
    failures: int
    why: str = ""


ACK = Ack()


class Settlement(Struct, gc=False):
    """What becomes of one delivery. A dead letter is an outgoing message and an ``Ack``."""

    delivery: Delivery
    action: Ack | Release | Retry = ACK
    outgoing: tuple[Message[Any], ...] = ()


class Failure(Struct, frozen=True):
    """One message or settlement of a call failed: never accepted, perhaps accepted, or no longer ours."""

    index: int
    kind: Literal["rejected", "unknown", "fenced"]
    error: BaseException


class Consumer(Protocol):
    """One subscription's end of the bus, in one process."""

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """At least one delivery and at most ``limit``, waiting for it; ``()`` once stopped."""

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        """Publish and settle each; ``()`` when all were."""

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Renew the leases of what is still held; one that is lost turns its ``session.alive`` to False.

        The transport says how often by ``lease``; a delivery that is not extended for that long goes back to its group.
        """

    async def mark(self, delivery: Delivery) -> bool:
        """Note durably that a suspect's handler is about to start; False: no longer yours, forget it."""

    def stop(self) -> None:
        """End ``receive``; settling goes on."""

    async def close(self) -> None:
        """Give back whatever is unsettled, uncounted."""

    lease: float  # seconds; infinity where nothing needs renewal


class Transport(Protocol):
    """A bus. ``client`` is the native client, for what only that bus can do."""

    capabilities: Capabilities
    client: Any

    async def open(self, notify: Callable[[Event], None]) -> None:
        """Connect; raises ``BusUnavailable`` or a subclass. ``notify`` is called on the event loop."""

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        """Store all; ``()``: every one was accepted. A message with ``reply_to`` and no receiver is ``rejected``."""

    async def subscribe(self, subscription: Subscription) -> Consumer:
        """Create what is needed, idempotently; start positions are durable when it returns."""

    async def close(self) -> None:
        """Flush and disconnect; consumers were closed before."""


class Options(Protocol):
    """A transport's typed options: what its URL says, and what a URL cannot say. The entry point of a scheme is one."""

    @classmethod
    def from_url(cls, url: str) -> Options:
        """Options from a URL; raises ``InvalidURL``, naming the unknown option and the nearest known one."""

    def transport(self) -> Transport:
        """A transport, not yet open."""


class TopicInfo(Struct, frozen=True):
    """A topic as the bus sees it; ``messages`` are those retained."""

    name: str
    messages: int
    last: float | None = None  # Unix seconds of the newest


class GroupInfo(Struct, frozen=True):
    """A group as the bus sees it. ``lag``: matching messages not yet handed out; ``oldest``: Unix seconds of the first
    unsettled; ``dead``: what its dead-letter topic holds, replayed ones and markers included.
    """

    name: str
    app: str
    pattern: str
    lag: int
    in_flight: int
    parked: int
    dead: int
    oldest: float | None
    members: int


class Stored(Struct, frozen=True):
    """A message as stored, and its position in the bus (larger is later)."""

    position: int
    message: Message[Any]


@runtime_checkable
class Inspectable(Protocol):
    """Buses that can be looked into without disturbing delivery."""

    async def topics(self, pattern: str = ">") -> Sequence[TopicInfo]: ...
    async def groups(self, pattern: str = ">") -> Sequence[GroupInfo]: ...
    async def peek(self, pattern: str, after: int = 0, limit: int = 100) -> Sequence[Stored]:
        """Retained messages whose destination matches, oldest first, beyond position ``after``."""


@runtime_checkable
class Manageable(Protocol):
    """Buses whose groups can be mended. Raises ``NotFound``; ``BusError`` for a group with members at work."""

    async def rename(self, group: str, to: str) -> None: ...
    async def drop(self, group: str) -> None: ...
    async def seek(self, group: str, start: float) -> None:
        """Replay: the group receives again all that is retained since ``start`` (Unix seconds; 0 = the first)."""
