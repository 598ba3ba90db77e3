"""From a store to other buses: what a handler with records sends elsewhere is stored with them, and relayed.

A bus that keeps no records cannot commit with a store, and a message that was published cannot be taken back. So such
messages are committed to a topic of the store's own, and a durable, ordered group of the app publishes them from there:
at least once, with the same ids, each key in its order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from .kernel.bus import Bus
from .kernel.errors import BusError, Defer, Unsupported
from .kernel.handler import Handler, Outcome
from .kernel.message import Message
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


def store_of(app: App) -> tuple[Store, Way]:
    """The store of an open app, and the way out of it."""
    name, store = choose(app.urls, app.bus)
    return store, Way(app.name, name)


async def relays(way: Way, buses: Mapping[str, Bus]) -> dict[str, Worker]:
    """Workers, not yet running, by group: one for each bus that is not the store."""
    store = buses[way.store]
    workers = {}
    for target, bus in buses.items():
        if target != way.store:
            group = f"{way.app}.relay-{way.store or 'default'}-{target or 'default'}"
            asked = Subscription(app=way.app, pattern=way.address(target), group=group, ordered=True, concurrency=1)
            work = Work(policy=Policy(group=group, ordered=True), concurrency=1)
            handler = Handler(many=relaying(bus), limit=lambda: BATCH, batch=True)
            workers[group] = await store.subscribe(asked, handler, work, None, "")
    return workers


def relaying(bus: Bus) -> Callable[[Sequence[Delivery]], Any]:
    """A handler that publishes what it gets to ``bus``, as it is; for as long as that cannot, it comes again."""

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        later = Defer(AGAIN, "the bus did not take it")
        try:
            failures = await bus.transport.publish([replace(d.message, address=None, bus="") for d in deliveries])
        except BusError:
            return [later] * len(deliveries)
        outcomes: list[Outcome] = [()] * len(deliveries)
        for failure in failures:
            outcomes[failure.index] = failure.error if failure.kind == "rejected" else later
        return outcomes

    return many
