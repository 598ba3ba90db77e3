"""What came before is not published again: by the id of a message, for as long as a sender may send it again.

Where the bus keeps records (memory, SQLite, PostgreSQL), that an id came is a record, committed with the message in one
transaction: it holds across restarts and replicas. Elsewhere each process remembers what it has published.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Any, Protocol

from tidings import State, Table, transact
from tidings.kernel.message import Message
from tidings.store import Store

from .gateway import Gateway
from .rights import Principal

SEEN = Table("tidings.webhooks", float, expires=True)  # until when
MOST = 100_000  # ids that one process remembers
PURGE_EVERY = 60.0  # seconds


class Inbox(Protocol):
    """Publishes, once."""

    async def admit(self, who: Principal, draft: Message[Any], window: float) -> bool:
        """Publish a draft, unless one of its id was published within ``window`` seconds: then False.

        Raises what publishing raises; then it may come again.
        """


def inbox(gateway: Gateway) -> Inbox:
    """The inbox of an open gateway: as good as its bus allows."""
    return Stored(gateway) if isinstance(gateway.bus.transport, Store) else Remembered(gateway)


class Stored:
    """On a bus that keeps records."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._purged = time.monotonic()

    async def admit(self, who: Principal, draft: Message[Any], window: float) -> bool:
        new, gateway = False, self.gateway
        gateway.admit(who, [draft])

        async def once(state: State) -> Message[Any] | None:
            nonlocal new
            now = gateway.bus.clock.now()
            new = (await state.get(SEEN, draft.id) or 0.0) <= now
            if not new:
                return None
            state.put(SEEN, draft.id, now + window, due=now + window)
            return draft

        await gateway.accepted(transact(gateway.app, once))
        gateway.counts["published"] += new
        store = gateway.bus.transport
        if isinstance(store, Store) and time.monotonic() - self._purged > PURGE_EVERY:
            self._purged = time.monotonic()
            await store.purge(SEEN.name, gateway.bus.clock.now())
        return new


class Remembered:
    """On any other bus: ids in this process, those seen for longest forgotten first. Of two at once one waits."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._known: OrderedDict[str, tuple[float, asyncio.Task[None] | None]] = OrderedDict()  # until, publishing

    async def admit(self, who: Principal, draft: Message[Any], window: float) -> bool:
        now, id = time.monotonic(), draft.id
        until, publishing = self._known.get(id, (0.0, None))
        if until > now:
            if publishing is not None:
                await asyncio.shield(publishing)
            return False

        async def publish() -> None:
            try:
                await self.gateway.publish(who, [draft])
            except BaseException:
                del self._known[id]
                raise
            self._known[id] = now + window, None

        task = asyncio.create_task(publish())
        self._known[id] = now + window, task
        self._known.move_to_end(id)
        if len(self._known) > MOST:
            self._forget()
        await asyncio.shield(task)
        return True

    def _forget(self) -> None:
        """The oldest that is not on its way."""
        for id, (_, publishing) in self._known.items():
            if publishing is None:
                del self._known[id]
                return
