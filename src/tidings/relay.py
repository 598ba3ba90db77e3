"""From a store to other buses: what a handler with records sends elsewhere is stored with them, and relayed.

A bus that keeps no records cannot commit with a store, and a message that was published cannot be taken back. So such
messages are committed to a topic of the store's own, and a durable, ordered group of the app publishes them from there:
at least once, with the same ids, each key in its order. What the bus will never take is a dead letter of that group;
while the bus is away, or full, all of it waits.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from .kernel.bus import Bus
from .kernel.errors import BusError, Defer, NotOpen, TidingsError, Unsupported
from .kernel.handler import Handler, Outcome
from .kernel.message import Message
from .kernel.outcome import Backoff
from .kernel.settling import Policy
from .kernel.topics import INTERNAL
from .kernel.transport import Delivery, Subscription, Transport
from .kernel.worker import Work, Worker
from .store import Store

if TYPE_CHECKING:
    from .app import App

BATCH, AGAIN = 500, 1.0  # messages at once; seconds until what a bus did not take is tried again


class Way(Struct, frozen=True):
    """How messages leave a store, which is the app's bus called ``store``."""

    app: str
    store: str

    def address(self, target: str) -> str:
        """Where the messages for the bus ``target`` wait in the store."""
        return f"{INTERNAL}relay.{self.app}.{target or '_'}"

    def group(self, target: str) -> str:
        """The group that publishes them to the bus ``target``."""
        return f"{self.app}.relay-{self.store or 'default'}-{target or 'default'}"

    def route(self, messages: Iterable[Message[Any]]) -> list[Message[Any]]:
        """Sealed messages as the store is to keep them: those for another bus at its address."""
        elsewhere = self.store
        return [m if m.bus == elsewhere or m.address else replace(m, address=self.address(m.bus)) for m in messages]


def choose(names: Iterable[str], bus: Callable[[str], Transport], own: str = "", where: str = "") -> tuple[str, Any]:
    """The name and transport of the bus that keeps records: ``own`` if it can, else the first that does.

    Raises ``Unsupported`` when none does.
    """
    for name in (own, *names):
        transport = bus(name)
        if isinstance(transport, Store):
            return name, transport
    raise Unsupported(
        "no bus of this app keeps records",
        why="memory, SQLite and PostgreSQL do",
        mend='give it one more: App("shop", "kafka://...", state="sqlite:///state.db")',
        where=where,
    )


def store_of(app: App, bus: str = "") -> tuple[Store, Way]:
    """The store of an open app, and the way out of it: ``bus``, if that keeps records. Raises ``InvalidName``."""
    name, store = choose(app.urls, app.bus, bus)
    return store, Way(app.name, name)


async def relays(app: str, buses: Mapping[str, Bus]) -> dict[str, Worker]:
    """Workers, not yet running, by group: from each bus that keeps records to each other one."""
    workers = {}
    for name, store in buses.items():
        way = Way(app, name)
        for target, bus in buses.items() if isinstance(store.transport, Store) else ():
            if target != name:
                group, backoff = way.group(target), Backoff(give_up=(TidingsError,))
                asked = Subscription(app=app, pattern=way.address(target), group=group, ordered=True, concurrency=1)
                work = Work(policy=Policy(group=group, ordered=True, backoff=backoff), concurrency=1)
                handler = Handler(many=relaying(bus), limit=lambda: BATCH, batch=True)
                workers[group] = await store.subscribe(asked, handler, work, None, "")
    return workers


def relaying(bus: Bus) -> Callable[[Sequence[Delivery]], Any]:
    """A handler that publishes what it gets to ``bus``, as it is, each key in its order; for as long as that cannot, it
    comes again, with what follows of its key."""

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        messages = [replace(d.message, address=None, bus="") for d in deliveries]
        outcomes: list[Outcome] = [Defer(AGAIN, "the bus did not take it")] * len(messages)
        whole, held = bus.transport.capabilities.publish_atomic, set[str | None]()
        todo = deque([[*range(len(messages))]] if whole else waves(messages))
        with suppress(BusError, NotOpen):  # what was not said to be taken comes again
            while todo and (some := [index for index in todo.popleft() if messages[index].key not in held]):
                failures = await bus.transport.publish([messages[index] for index in some])
                doubtful = {some[f.index] for f in failures if f.kind != "rejected" or isinstance(f.error, BusError)}
                if whole and failures and not doubtful and len(some) > 1:  # one of them is wrong, and none was stored
                    todo.extend([index] for index in some)
                    continue
                held |= {messages[index].key for index in doubtful} - {None}
                taken = dict.fromkeys(some, ()) | {some[f.index]: f.error for f in failures}
                for index in taken.keys() - doubtful:
                    outcomes[index] = taken[index]
                if len(doubtful) == len(some):
                    break  # it takes nothing now
        return outcomes

    return many


def waves(messages: Sequence[Message[Any]]) -> list[list[int]]:
    """Indices: the first message of each key and all without one, then the second of each key, and so on."""
    found, counts = defaultdict[int, list[int]](list), Counter[str | None]()
    for index, message in enumerate(messages):
        found[counts[message.key]].append(index)
        counts[message.key] += message.key is not None
    return [*found.values()]
